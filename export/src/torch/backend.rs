//! The reading of a model's equations that computes them with libtorch, gradients included.

#[cfg(test)]
mod tests;

use std::iter::zip;

use aerie_models::{AttentionDims, Backend, Carry, ModelConfig, ParameterSpec, Path};
use tch::{Device, Kind, Tensor};

use crate::torch::{
    attention::{self, Rotary},
    parameters::Parameters,
    shim::{self, Cut},
};

/// Widest blocks of a block-diagonal weight that are multiplied as one dense matrix: the zeros cost
/// less than taking the activations apart and putting them together again.
const DENSE_BLOCK_MAX: i64 = 64;

/// How the packed tokens of one step fall into segments. State is `[B, …]`: each segment has the
/// row of its own number.
#[derive(Clone, Debug)]
pub struct Packing {
    /// Segment `b` is `bounds[b]..bounds[b+1]`.
    pub bounds: Vec<i64>,
    pub kind: PackingKind,
}

/// What the segments of a step are.
#[derive(Clone, Debug)]
pub enum PackingKind {
    /// Whole documents, or what a row has of them: all begin anew, and none goes on. State is not
    /// computed; what is returned is what was given.
    Documents {
        /// No segment crosses a multiple of this many tokens.
        row: i64,
    },
    /// The next tokens of sessions, whose state is read and returned.
    Sessions {
        /// Absolute position of each segment's first token; where it is 0 the session is fresh.
        positions: Vec<i64>,
    },
}

/// One step of a model with `parameters`.
#[derive(Debug)]
pub struct Reading<'a> {
    parameters: &'a Parameters,
    packing: Packing,
    cut: Cut,
    rotary: Rotary,
    /// Mask of block-local attention; only for documents.
    blocks: Option<attention::Blocks>,
    /// i64 `[B]`: each segment's last token.
    lasts: Tensor,
}

impl<'a> Reading<'a> {
    /// Prepares what all layers share: segment bounds, rotations and the attention mask.
    ///
    /// # Panics
    /// If a segment is empty, or there are not as many positions as segments.
    pub fn new(config: &ModelConfig, parameters: &'a Parameters, packing: Packing) -> Self {
        let bounds = &packing.bounds;
        assert!(bounds.windows(2).all(|it| it[0] < it[1]), "no segment is empty: {bounds:?}");
        let segments = bounds.len() - 1;
        let fresh = match &packing.kind {
            PackingKind::Documents { .. } => vec![true; segments],
            PackingKind::Sessions { positions } => {
                assert_eq!(positions.len(), segments, "every segment has a position");
                positions.iter().map(|&it| it == 0).collect()
            }
        };
        let dims = config.attention_dims();
        let options = parameters.options();
        let blocks = match packing.kind {
            PackingKind::Documents { row } => {
                Some(attention::Blocks::new(dims, bounds, row, options))
            }
            PackingKind::Sessions { .. } => None,
        };
        Self {
            cut: Cut::new(bounds, &fresh, options.1),
            rotary: Rotary::new(dims, &positions(&packing), options),
            lasts: (Tensor::from_slice(&bounds[1..]) - 1).to_device(options.1),
            parameters,
            packing,
            blocks,
        }
    }

    /// State of sessions that have none yet.
    pub fn void(&self, config: &ModelConfig) -> Carry<Tensor> {
        let segments = self.packing.bounds.len() as i64 - 1;
        void(config, segments, self.parameters.options())
    }
}

/// State `[segments, …]` of sessions that have none yet.
pub fn void(config: &ModelConfig, segments: i64, options: (Kind, Device)) -> Carry<Tensor> {
    Carry::layout(config).map(|spec| {
        let shape: Vec<i64> =
            [segments].into_iter().chain(spec.shape.iter().map(|&it| it as i64)).collect();
        // Zeros that take no room: nobody writes into a state.
        Tensor::zeros([1], options).expand(shape, false)
    })
}

/// Absolute position of every packed token.
fn positions(packing: &Packing) -> Vec<i64> {
    let segments = packing.bounds.windows(2).map(|it| it[1] - it[0]);
    match &packing.kind {
        PackingKind::Documents { .. } => segments.flat_map(|length| 0..length).collect(),
        PackingKind::Sessions { positions } => {
            zip(segments, positions).flat_map(|(length, &start)| start..start + length).collect()
        }
    }
}

impl Backend for Reading<'_> {
    /// Shared with the parameter store and between layers; libtorch counts its references.
    type Tensor = Handle;

    fn parameter(&self, path: &Path, _spec: ParameterSpec) -> Handle {
        Handle::of(&self.parameters.at(path).tensor)
    }

    fn gather(&self, table: &Handle, tokens: &Handle) -> Handle {
        Handle(Tensor::embedding(table, tokens, -1, false, false))
    }

    fn linear(&self, x: &Handle, weight: &Handle, bias: Option<&Handle>) -> Handle {
        Handle(x.linear(weight, bias.map(|it| &it.0)))
    }

    fn block_diagonal(&self, x: &Handle, weight: &Handle, bias: &Handle) -> Handle {
        let [blocks, extent] = [weight.size()[0], weight.size()[1]];
        if extent <= DENSE_BLOCK_MAX {
            let dense = Tensor::block_diag(&weight.unbind(0));
            return Handle(x.linear(&dense.transpose(0, 1), Some(&bias.0)));
        }
        let by_block = x.unflatten(1, [blocks, -1]).transpose(0, 1);
        let y = by_block.bmm(weight).transpose(0, 1).flatten(1, 2);
        Handle(y + &bias.0)
    }

    fn add(&self, a: &Handle, b: &Handle) -> Handle {
        Handle(&a.0 + &b.0)
    }

    fn mul(&self, a: &Handle, b: &Handle) -> Handle {
        Handle(&a.0 * &b.0)
    }

    fn scale(&self, x: &Handle, factor: f32) -> Handle {
        Handle(&x.0 * f64::from(factor))
    }

    fn gelu(&self, x: &Handle) -> Handle {
        Handle(shim::gelu(x))
    }

    fn tanh(&self, x: &Handle) -> Handle {
        Handle(x.0.tanh())
    }

    fn rms_norm(&self, x: &Handle, weight: &Handle, epsilon: f32) -> Handle {
        Handle(shim::rms_norm(x, weight, f64::from(epsilon)))
    }

    fn last_rows(&self, x: &Handle) -> Handle {
        Handle(x.0.index_select(0, &self.lasts))
    }

    fn causal_conv1d(
        &self,
        x: &Handle,
        weight: &Handle,
        bias: &Handle,
        state: &Handle,
    ) -> (Handle, Handle) {
        let y = Handle(shim::conv1d(x, weight, bias, state, &self.cut));
        if let PackingKind::Documents { .. } = self.packing.kind {
            return (y, state.clone());
        }
        let lags = state.size()[1];
        let keep = Tensor::logical_not(self.cut.fresh()).to_kind(x.kind()).to_device(x.device());
        let keep = keep.view([-1, 1, 1]);
        let before = &state.0 * keep;
        let next = zip(0.., self.packing.bounds.windows(2)).map(|(row, it)| {
            let inputs = Tensor::cat(&[before.get(row), x.0.slice(0, it[0], it[1], 1)], 0);
            inputs.slice(0, inputs.size()[0] - lags, None, 1)
        });
        (y, Handle(Tensor::stack(&next.collect::<Vec<_>>(), 0)))
    }

    fn rg_lru(
        &self,
        x: &Handle,
        gate_a: &Handle,
        gate_x: &Handle,
        p: &Handle,
        state: &Handle,
    ) -> (Handle, Handle) {
        let h = Handle(shim::rg_lru(x, [gate_a, gate_x], p, state, &self.cut));
        let next = match self.packing.kind {
            PackingKind::Documents { .. } => state.clone(),
            PackingKind::Sessions { .. } => self.last_rows(&h),
        };
        (h, next)
    }

    fn local_attention(
        &self,
        dims: AttentionDims,
        [q, k, v]: [&Handle; 3],
        keys: &Handle,
        values: &Handle,
    ) -> (Handle, [Handle; 2]) {
        let q = self.rotary.turn(&q.0.unflatten(1, [i64::from(dims.heads), -1]));
        let k = self.rotary.turn(&k.0.unsqueeze(1)).squeeze_dim(1);
        match (&self.packing.kind, &self.blocks) {
            (PackingKind::Sessions { positions }, _) => {
                let segments = attention::Sessions { bounds: &self.packing.bounds, positions };
                let (y, [keys, values]) = segments.attend(dims, [&q, &k, v], [keys, values]);
                (Handle(y), [Handle(keys), Handle(values)])
            }
            (PackingKind::Documents { .. }, blocks) => {
                let blocks = blocks.as_ref().expect("documents have blocks");
                (Handle(blocks.attend([&q, &k, v])), [keys.clone(), values.clone()])
            }
        }
    }
}

/// A tensor that can be cloned: a clone is another reference to the same values.
#[derive(Debug)]
pub struct Handle(pub Tensor);

impl Handle {
    /// Another reference to `tensor`.
    pub fn of(tensor: &Tensor) -> Self {
        Self(tensor.shallow_clone())
    }
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl std::ops::Deref for Handle {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}
