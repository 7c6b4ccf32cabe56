//! Local multi-query attention: block by block over whole documents, in time linear in their
//! length, and over the ring of keys of sessions that go on.

use std::iter::{self, zip};

use aerie_models::AttentionDims;
use tch::{Device, Kind, Tensor};

/// Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864).
const ROTARY_BASE: f64 = 10_000.0;
/// Score of a key that a query does not see; finite, so that no row of a softmax is undefined.
const UNSEEN: f64 = -1e9;

/// Rotations of every packed token, shared by all layers.
#[derive(Debug)]
pub struct Rotary {
    /// Dimensions that are rotated.
    dims: i64,
    /// `[N, 1, dims/2]`.
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Rotations by `position · 10000^(-2j / dims)`; angles are made in f64, since a stream's
    /// positions are unbounded.
    pub fn new(dims: AttentionDims, positions: &[i64], (kind, device): (Kind, Device)) -> Self {
        let half = dims.rotary_dims / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|j| ROTARY_BASE.powf(-2.0 * f64::from(j) / f64::from(dims.rotary_dims)))
            .collect();
        let positions = Tensor::from_slice(positions).to_kind(Kind::Double);
        let angles = positions.outer(&Tensor::from_slice(&frequencies)).unsqueeze(1);
        let [cos, sin] = [angles.cos(), angles.sin()].map(|it| it.to_kind(kind).to_device(device));
        Self { dims: i64::from(dims.rotary_dims), cos, sin }
    }

    /// Rotates the leading dimensions of each head of `x` `[N, H, d]`, dimension `j` paired with
    /// `j + dims/2`.
    pub fn turn(&self, x: &Tensor) -> Tensor {
        let half = self.dims / 2;
        let [a, b] = [x.narrow(2, 0, half), x.narrow(2, half, half)];
        let rest = x.narrow(2, self.dims, x.size()[2] - self.dims);
        let turned_a = &a * &self.cos - &b * &self.sin;
        let turned_b = b * &self.cos + a * &self.sin;
        Tensor::cat(&[turned_a, turned_b, rest], 2)
    }
}

/// Attention over documents that all begin anew: the packed tokens are cut into blocks of `W`, and a
/// query looks at its own block and the one before. Where a row is no longer than `W + 1`, the rows
/// are the blocks, and looking at one's own is enough.
#[derive(Debug)]
pub struct Blocks {
    heads: i64,
    /// Tokens of a block.
    block: i64,
    /// Tokens in all, and how many are added to fill the last block.
    tokens: i64,
    padding: i64,
    /// Whether a query looks at the block before its own.
    before: bool,
    /// `[blocks, 1, block, keys]`, zero where the query sees the key.
    mask: Tensor,
}

impl Blocks {
    /// Cuts tokens whose segments are `bounds` into blocks; no segment crosses a multiple of `row`.
    pub fn new(
        dims: AttentionDims,
        bounds: &[i64],
        row: i64,
        (kind, device): (Kind, Device),
    ) -> Self {
        let window = i64::from(dims.window);
        let tokens = bounds[bounds.len() - 1];
        let before = window + 1 < row.min(tokens);
        let block = if before { window } else { row.min(tokens) };
        let padding = (block - tokens % block) % block;

        // Padding belongs to segment -1, what lies before the first block to segment -2.
        let length = |it: i64| usize::try_from(it).expect("bounds ascend");
        let segments: Vec<i64> = zip(0.., bounds.windows(2))
            .flat_map(|(segment, it)| iter::repeat_n(segment, length(it[1] - it[0])))
            .chain(iter::repeat_n(-1, length(padding)))
            .collect();
        let own = Tensor::from_slice(&segments).view([-1, block]);
        let keys = if before {
            let first = Tensor::full([1, block], -2, (Kind::Int64, Device::Cpu));
            let earlier = Tensor::cat(&[first, own.slice(0, None, own.size()[0] - 1, 1)], 0);
            Tensor::cat(&[earlier, own.shallow_clone()], 1)
        } else {
            own.shallow_clone()
        };
        let same = own.unsqueeze(2).eq_tensor(&keys.unsqueeze(1));
        let at = Tensor::arange(block, (Kind::Int64, Device::Cpu)).unsqueeze(1);
        let key_at = Tensor::arange_start(
            if before { -block } else { 0 },
            block,
            (Kind::Int64, Device::Cpu),
        );
        let distance = at - key_at.unsqueeze(0);
        let near = distance.ge(0).logical_and(&distance.le(window));
        let seen = same.logical_and(&near.unsqueeze(0)).unsqueeze(1);
        let mask = Tensor::zeros_like(&seen).to_kind(kind).masked_fill(&seen.logical_not(), UNSEEN);
        let mask = mask.to_device(device);
        Self { heads: i64::from(dims.heads), block, tokens, padding, before, mask }
    }

    /// Attends with `q` `[N, H, d]`, `k` and `v` `[N, d]`; the result is `[N, H·d]`.
    pub fn attend(&self, [q, k, v]: [&Tensor; 3]) -> Tensor {
        let head_dim = k.size()[1];
        let q = q.constant_pad_nd([0, 0, 0, 0, 0, self.padding]);
        // [blocks, H·block, d]: one key head, so that the heads are rows of one product.
        let q = q.view([-1, self.block, self.heads, head_dim]).transpose(1, 2).flatten(1, 2);
        let [k, v] = [k, v].map(|it| self.keys(it));
        let scores = (q * (head_dim as f64).sqrt().recip()).bmm(&k.transpose(1, 2));
        let scores = scores.unflatten(1, [self.heads, self.block]) + &self.mask;
        let shares = scores.softmax(-1, None).flatten(1, 2);
        let y = shares.bmm(&v).unflatten(1, [self.heads, self.block]).transpose(1, 2);
        y.flatten(2, 3).flatten(0, 1).narrow(0, 0, self.tokens)
    }

    /// `[N, d]` as `[blocks, keys, d]`.
    fn keys(&self, x: &Tensor) -> Tensor {
        let own = x.constant_pad_nd([0, 0, 0, self.padding]).unflatten(0, [-1, self.block]);
        if !self.before {
            return own;
        }
        let earlier = own.slice(0, None, own.size()[0] - 1, 1);
        Tensor::cat(&[earlier.constant_pad_nd([0, 0, 0, 0, 1, 0]), own], 1)
    }
}

/// Attention of sessions that go on, segment after segment, over rings of keys.
#[derive(Clone, Copy, Debug)]
pub struct Sessions<'a> {
    /// Segment `b` is `bounds[b]..bounds[b+1]`.
    pub bounds: &'a [i64],
    /// Absolute position of each segment's first token.
    pub positions: &'a [i64],
}

impl Sessions<'_> {
    /// Attends with `q` `[N, H, d]`, `k` and `v` `[N, d]` after what the rings `[B, W+1, d]` hold;
    /// returns `[N, H·d]` and the next rings.
    pub fn attend(
        self,
        dims: AttentionDims,
        [q, k, v]: [&Tensor; 3],
        rings: [&Tensor; 2],
    ) -> (Tensor, [Tensor; 2]) {
        let mut found = Vec::with_capacity(self.positions.len());
        let mut next = [Vec::new(), Vec::new()];
        for (row, (it, &position)) in zip(0.., zip(self.bounds.windows(2), self.positions)) {
            let part = |x: &Tensor| x.slice(0, it[0], it[1], 1);
            let session = Session { dims, position, tokens: it[1] - it[0] };
            let (y, rings) =
                session.attend([&part(q), &part(k), &part(v)], rings.map(|ring| ring.get(row)));
            found.push(y);
            for (next, ring) in zip(&mut next, rings) {
                next.push(ring);
            }
        }
        (Tensor::cat(&found, 0), next.map(|it| Tensor::stack(&it, 0)))
    }
}

/// One segment of a session that goes on.
#[derive(Clone, Copy, Debug)]
struct Session {
    dims: AttentionDims,
    position: i64,
    tokens: i64,
}

impl Session {
    fn attend(self, [q, k, v]: [&Tensor; 3], rings: [Tensor; 2]) -> (Tensor, [Tensor; 2]) {
        let window = i64::from(self.dims.window);
        let slots = window + 1;
        let end = self.position + self.tokens;
        // Positions that the ring still holds and a query here may see.
        let old: Vec<i64> = ((self.position - window).max(0)..self.position).collect();
        let old_slots: Vec<i64> = old.iter().map(|it| it % slots).collect();
        let old_slots = Tensor::from_slice(&old_slots);
        let [keys, values] = [(&rings[0], k), (&rings[1], v)].map(|(ring, new)| {
            Tensor::cat(&[ring.index_select(0, &old_slots), new.shallow_clone()], 0)
        });

        let at = Tensor::arange_start(self.position, end, (Kind::Int64, Device::Cpu));
        let key_at = Tensor::cat(&[Tensor::from_slice(&old), at.shallow_clone()], 0);
        let distance = at.unsqueeze(1) - key_at.unsqueeze(0);
        let unseen = distance.lt(0).logical_or(&distance.gt(window));
        let head_dim = f64::from(self.dims.head_dim);
        let scores = q.transpose(0, 1).matmul(&keys.transpose(0, 1)) * head_dim.sqrt().recip();
        let shares = scores.masked_fill(&unseen, UNSEEN).softmax(-1, None);
        let y = shares.matmul(&values).transpose(0, 1).flatten(1, 2);

        let kept = self.tokens.min(slots);
        let new_slots: Vec<i64> = (end - kept..end).map(|it| it % slots).collect();
        let new_slots = Tensor::from_slice(&new_slots);
        let next = zip(rings, [k, v])
            .map(|(ring, new)| ring.index_copy(0, &new_slots, &new.slice(0, -kept, None, 1)));
        let next: Vec<Tensor> = next.collect();
        (y, next.try_into().expect("two rings"))
    }
}
