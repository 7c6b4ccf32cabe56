//! The loops of a product over one tile of its result.

use std::{cell::RefCell, hint};

use crate::{
    isa::{
        self, Isa, LANES, Lanes, Line, SPAN, SPAN_WORDS, Span, abreast,
        amx::{Amx, PADDING_MAX},
        prefetch,
    },
    math::{gelu, soft_cap},
    matmul::{
        Then, Weights,
        activations::{Quantised, Split},
        packing::{Format, PANEL, Packing, SCALES_BYTES, UNIT, UNIT_BYTES},
    },
    simd::{Loops, Tile},
};

/// Bytes of a vector.
const LINE: usize = size_of::<Line>();
/// Vectors of a panel's outputs.
const VECTORS: usize = PANEL / LANES;

/// A tile of a product: some rows by some panels of one group.
pub(super) struct Product<'a> {
    pub(super) packing: Packing,
    pub(super) weights: Weights<'a>,
    pub(super) then: Then<'a>,
    pub(super) group: usize,
    /// First row of the tile.
    pub(super) row: usize,
    /// First output of the tile within the group; a multiple of [`PANEL`].
    pub(super) column: usize,
    pub(super) x: Inputs<'a>,
    pub(super) y: Tile<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Inputs<'a> {
    /// `[N, groups · inputs]`
    Floats(&'a [f32]),
    Bytes(&'a Quantised),
    /// For tiles, which the machine has to have.
    Parts(&'a Split),
}

/// What a thread needs for a tile.
#[derive(Default)]
struct Desk {
    /// Results of the tile's rows for one panel, before the outputs' scales; and those of the second
    /// product.
    sums: [Vec<Sums>; 2],
    /// 4-bit weights of a span, spread out to bytes.
    bytes: Vec<[Line; VECTORS]>,
}

/// Rows up to which 4-bit weights are multiplied block by block; more read them often enough to have them
/// spread out to bytes before.
const BLOCKS_ROWS_MAX: usize = 16;

/// Rows from which on bytes are multiplied by tiles, where the machine has them: with eight they are no faster, and for
/// small groups slower.
const TILED_ROWS_MIN: usize = 12;

/// Rows up to which weights are read once, in order, and as fast as memory gives them: what the machine
/// fetches by itself, if it does, is what comes next.
const STREAMED_ROWS_MAX: usize = 2;

/// Words of inputs between two looks ahead.
const TURN: usize = UNIT / 4;
/// What they are multiplied with.
type Turn = [[Line; VECTORS]; TURN];
/// A row's results for one panel.
type Sums = [f32; PANEL];

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
}

impl Product<'_> {
    /// Computes the tile with `run`, which runs a kernel with some set of instructions.
    pub(super) fn run(mut self, run: impl Run) {
        let rows = self.y.rows();
        let amx = match self.x {
            Inputs::Bytes(_) if TILED_ROWS_MIN <= rows => run.amx(rows),
            Inputs::Parts(_) => Amx::of_parts(rows),
            _ => None,
        };
        DESK.with_borrow_mut(|Desk { sums: [sums, second], bytes }| {
            bytes.resize(SPAN_WORDS, [[0; LINE]; VECTORS]);
            let how = How { run, amx: amx.as_ref() };
            for column in (0..self.y.width()).step_by(PANEL) {
                self.panel(how, &self.weights, column, sums, bytes);
                if let Some(weights) = &self.then.second() {
                    self.panel(how, weights, column, second, bytes);
                }
                self.finish(run, column, [sums, second]);
            }
        });
    }

    /// All rows by the panel that begins at `column` of the tile.
    fn panel(
        &self,
        how: How<'_, impl Run>,
        weights: &Weights<'_>,
        column: usize,
        sums: &mut Vec<Sums>,
        bytes: &mut [[Line; VECTORS]],
    ) {
        let rows = self.y.rows();
        sums.resize(sums.len().max(rows + PADDING_MAX), [0.0; PANEL]);
        let panel = self.packing.panel(weights.packed, self.group, self.column + column);
        match self.x {
            Inputs::Floats(x) => self.floats(how.run, panel, x, &mut sums[..rows]),
            Inputs::Bytes(x) => self.bytes(how, panel, x, &mut sums[..rows], bytes),
            Inputs::Parts(x) => {
                let amx = how.amx.expect("the machine multiplies them by tiles");
                self.parts(amx, panel, x, &mut sums[..amx.padded(rows)]);
            }
        }
    }

    /// All rows by one panel of bf16.
    fn floats(&self, run: impl Run, panel: &[u8], x: &[f32], sums: &mut [Sums]) {
        // What the weights are unpacked to takes registers too.
        let rows_max = run.run(RowsMax).min(4);
        for (tile, sums) in sums.chunks_mut(rows_max).enumerate() {
            let row = |n| floats(x, &self.packing, self.input_row(tile * rows_max + n));
            match sums {
                [a] => run.run(Bf16 { panel, x: [0].map(row), sums: [a] }),
                [a, b] => run.run(Bf16 { panel, x: [0, 1].map(row), sums: [a, b] }),
                [a, b, c] => run.run(Bf16 { panel, x: [0, 1, 2].map(row), sums: [a, b, c] }),
                [a, b, c, d] => {
                    run.run(Bf16 { panel, x: [0, 1, 2, 3].map(row), sums: [a, b, c, d] });
                }
                _ => unreachable!("1 to 4 rows"),
            }
        }
    }

    /// All rows by one panel of bf16, a span of inputs after the other; sums of rows that are only there to have
    /// whole tiles are whatever they are.
    fn parts(&self, amx: &Amx, panel: &[u8], x: &Split, sums: &mut [Sums]) {
        sums.as_flattened_mut().fill(0.0);
        let mut rest = lines(panel);
        for span in 0.. {
            let (now, next) = rest.split_at(rest.len().min(SPAN / 2));
            if now.is_empty() {
                break;
            }
            let x = &x.rows(self.group, span)[self.row..][..sums.len()];
            let ahead = &next[..next.len().min(now.len())];
            amx.multiply_parts(x, now, sums, ahead.as_flattened().as_flattened());
            rest = next;
        }
    }

    /// All rows by one panel of 8 or 4 bits, a span of inputs after the other: its weights stay in the
    /// first cache while rows pass.
    fn bytes(
        &self,
        how: How<'_, impl Run>,
        panel: &[u8],
        x: &Quantised,
        sums: &mut [Sums],
        bytes: &mut [[Line; VECTORS]],
    ) {
        let How { run, amx } = how;
        sums.as_flattened_mut().fill(0.0);
        let weights = &panel[SCALES_BYTES..];
        let span_bytes = self.packing.span_bytes();
        let is_streamed = sums.len() <= STREAMED_ROWS_MAX && isa::streams_unasked();
        let ahead = if is_streamed { 0 } else { span_bytes };
        for (span, weights) in weights.chunks(span_bytes).enumerate() {
            let x = &x.rows(self.group, span)[self.row..][..sums.len()];
            let next = &panel[SCALES_BYTES + span * span_bytes + weights.len()..];
            let next = &next[..next.len().min(ahead)];
            let units = weights.as_chunks().0;
            let is_q4 = self.packing.format == Format::Q4;
            if is_q4 && amx.is_none() && sums.len() <= BLOCKS_ROWS_MAX {
                multiply(run, Form::Blocks(units), x, sums, next);
                continue;
            }
            let lines = if is_q4 {
                let spread = &mut bytes[..units.len() * UNIT / 4];
                run.run(Spread { units, bytes: spread });
                &*spread
            } else {
                lines(weights)
            };
            match amx {
                Some(amx) => amx.multiply(x, lines, sums, next),
                None => multiply(run, Form::Bytes(turns(lines)), x, sums, next),
            }
        }
    }

    /// Writes the results of the panel that begins at `column`.
    fn finish(&mut self, run: impl Run, column: usize, [sums, second]: [&[Sums]; 2]) {
        let width = PANEL.min(self.y.width() - column);
        let Self { packing, group, weights, .. } = *self;
        let first = self.column + column;
        let bias = group * packing.outputs + first..group * packing.outputs + first + width;
        let ends = [Some(weights), self.then.second()].map(|weights| {
            let Weights { packed, bias: whole } = weights?;
            let panel = packing.panel(packed, group, first);
            let scales = (packing.format != Format::Bf16).then(|| &panel[..SCALES_BYTES]);
            Some(End { scales, bias: whole.map(|it| &it[bias.clone()]) })
        });
        for row in 0..self.y.rows() {
            let y = &mut self.y.row_mut(row)[column..][..width];
            let [results, second] = [(sums, ends[0]), (second, ends[1])]
                .map(|(sums, end)| end.map(|end| Results { sums: &sums[row], end }));
            let results = results.expect("there is a first");
            let then = match self.then {
                Then::Plus(residual) => {
                    let from = (self.row + row) * packing.groups * packing.outputs + bias.start;
                    Then::Plus(&residual[from..][..width])
                }
                then => then,
            };
            run.run(Finish { results, second, then, y });
        }
    }

    /// The row of the inputs that meets `row` of the tile.
    fn input_row(&self, row: usize) -> usize {
        (self.row + row) * self.packing.groups + self.group
    }
}

/// What multiplies.
#[derive(Clone, Copy)]
struct How<'a, R> {
    run: R,
    /// For all rows of bytes, if there are.
    amx: Option<&'a Amx>,
}

/// Weights of a span of a panel.
#[derive(Clone, Copy)]
enum Form<'a> {
    Bytes(&'a [Turn]),
    Blocks(&'a [[u8; UNIT_BYTES]]),
}

/// All rows by a span of one panel: as few tiles of rows as there can be, as alike as there can be.
/// Meanwhile `next` comes closer.
fn multiply(run: impl Run, weights: Form<'_>, x: &[Span], sums: &mut [Sums], next: &[u8]) {
    let rows = sums.len();
    let tiles = rows.div_ceil(run.run(RowsMax));
    let each = rows.div_ceil(tiles);
    let large = rows + tiles - tiles * each;
    let turns = match weights {
        Form::Bytes(turns) => turns.len(),
        Form::Blocks(units) => units.len() * VECTORS,
    };
    let mut ahead = Ahead::new(next, tiles * turns);
    let (large, small) = sums.split_at_mut(each * large);
    let (x, x_small) = x.split_at(large.len());
    for (each, x, sums) in [(each, x, large), (each - 1, x_small, small)] {
        let tiles = Tiles { x, sums, ahead: &mut ahead };
        match each {
            1 => tiles.multiply::<1, 4>(run, weights),
            2 => tiles.multiply::<2, 4>(run, weights),
            3 => tiles.multiply::<3, 1>(run, weights),
            4 => tiles.multiply::<4, 1>(run, weights),
            5 => tiles.multiply::<5, 1>(run, weights),
            6 => tiles.multiply::<6, 1>(run, weights),
            _ => debug_assert!(tiles.sums.is_empty(), "no instructions have more rows"),
        }
    }
}

/// Weights that will be needed next, brought closer bit by bit while others are multiplied.
struct Ahead<'a> {
    rest: &'a [u8],
    /// Bytes of a turn.
    each: usize,
}

impl<'a> Ahead<'a> {
    fn new(rest: &'a [u8], turns: usize) -> Self {
        Self { rest, each: rest.len().div_ceil(turns).next_multiple_of(LINE) }
    }

    #[inline(always)]
    fn turn(&mut self) {
        let (now, rest) = self.rest.split_at(self.each.min(self.rest.len()));
        prefetch(now);
        self.rest = rest;
    }
}

/// Tiles of as many rows each.
struct Tiles<'a, 'n> {
    x: &'a [Span],
    /// Of the rows.
    sums: &'a mut [Sums],
    ahead: &'a mut Ahead<'n>,
}

impl Tiles<'_, '_> {
    fn multiply<const N: usize, const V: usize>(self, run: impl Run, weights: Form<'_>) {
        match weights {
            Form::Bytes(weights) => run.run(Bytes::<N> { weights, tiles: self }),
            Form::Blocks(units) => run.run(Blocks::<N, V> { units, tiles: self }),
        }
    }
}

/// Inputs of one group of a row as they came; rows are counted group by group.
#[inline(always)]
fn floats<'x>(x: &'x [f32], packing: &Packing, row: usize) -> &'x [f32] {
    &x[row * packing.inputs..][..packing.inputs]
}

/// Whoever runs kernels.
pub(super) trait Run: Copy {
    fn run<L: Lanes>(self, lanes: L) -> L::Output;

    /// For so many rows of bytes; none if it has no instructions for tiles.
    fn amx(self, rows: usize) -> Option<Amx>;
}

/// Runs kernels with the best instructions of this machine.
#[derive(Clone, Copy)]
pub(super) struct Best;

impl Run for Best {
    fn run<L: Lanes>(self, lanes: L) -> L::Output {
        isa::best(lanes)
    }

    fn amx(self, rows: usize) -> Option<Amx> {
        Amx::new(rows)
    }
}

/// Asks for the most rows of a kernel.
struct RowsMax;

impl Lanes for RowsMax {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> usize {
        I::ROWS
    }
}

/// Rows by a panel of bf16: sums over pairs of inputs, in their order, in f32.
struct Bf16<'a, const N: usize> {
    panel: &'a [u8],
    x: [&'a [f32]; N],
    sums: [&'a mut Sums; N],
}

impl<const N: usize> Lanes for Bf16<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if I::NARROW {
            for vector in 0..VECTORS {
                self.vectors::<I, 1>(isa, vector);
            }
        } else {
            self.vectors::<I, VECTORS>(isa, 0);
        }
    }
}

impl<const N: usize> Bf16<'_, N> {
    /// `V` vectors of outputs, from `first` on.
    #[inline(always)]
    fn vectors<I: Isa, const V: usize>(&mut self, isa: I, first: usize) {
        let pairs = self.x.map(|x| x.as_chunks::<2>());
        let (lines, rest) = lines(self.panel).split_at(pairs[0].0.len());
        let mut sums = [[isa.floats(0.0); V]; N];
        for (lines, x) in lines.iter().zip(abreast(pairs.map(|it| it.0), lines.len())) {
            sums = bf16_pair(isa, sums, &lines[first..][..V], x.map(|it| *it));
        }
        if let [lines] = rest {
            let x = pairs.map(|(_, last)| [last[0], 0.0]);
            sums = bf16_pair(isa, sums, &lines[first..][..V], x);
        }
        for (to, sums) in self.sums.iter_mut().zip(settle(sums)) {
            let to = &mut to.as_chunks_mut().0[first..];
            to.iter_mut().zip(sums).for_each(|(to, it)| *to = isa.store(it));
        }
    }
}

#[inline(always)]
fn bf16_pair<I: Isa, const N: usize, const V: usize>(
    isa: I,
    mut sums: [[I::Floats; V]; N],
    lines: &[Line],
    x: [[f32; 2]; N],
) -> [[I::Floats; V]; N] {
    for (vector, line) in lines.iter().enumerate() {
        let [even, odd] = isa.bf16_pairs(isa.bytes(line));
        for n in 0..N {
            let sum = isa.mul_add(isa.floats(x[n][0]), even, sums[n][vector]);
            sums[n][vector] = isa.mul_add(isa.floats(x[n][1]), odd, sum);
        }
    }
    sums
}

/// Tiles of `N` rows by a span of a panel of 8 bits: sums of products of bytes, exact; then scaled and
/// added.
struct Bytes<'a, 'n, const N: usize> {
    weights: &'a [Turn],
    tiles: Tiles<'a, 'n>,
}

impl<const N: usize> Lanes for Bytes<'_, '_, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { weights, tiles } = self;
        let tiles_x = tiles.x.as_chunks::<N>().0;
        for (x, to) in tiles_x.iter().zip(tiles.sums.as_chunks_mut::<N>().0) {
            if I::NARROW {
                narrow(isa, to, weights, x);
                continue;
            }
            let mut sums = start(isa, x);
            for (at, turn) in weights.iter().enumerate() {
                tiles.ahead.turn();
                for (step, lines) in turn.iter().enumerate() {
                    let weights = lines.each_ref().map(|line| isa.bytes(line));
                    sums = dot(isa, sums, weights, x, at * TURN + step);
                }
            }
            finish(isa, to, sums, x);
        }
    }
}

/// Tiles of `N` rows by a span of a panel of 4 bits: sums of products of bytes over each block, and of
/// those the sums of products with the blocks' multipliers, two blocks at a time. Neither leaves 16 or
/// 32 bits, so they are what [`Bytes`] gives once the weights are spread out.
///
/// `V` vectors of outputs are multiplied side by side: as many as leave registers for all sums.
struct Blocks<'a, 'n, const N: usize, const V: usize> {
    units: &'a [[u8; UNIT_BYTES]],
    tiles: Tiles<'a, 'n>,
}

impl<const N: usize, const V: usize> Lanes for Blocks<'_, '_, N, V> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { units, tiles } = self;
        let tiles_x = tiles.x.as_chunks::<N>().0;
        for (x, to) in tiles_x.iter().zip(tiles.sums.as_chunks_mut::<N>().0) {
            for first in (0..VECTORS).step_by(V) {
                let mut sums = [[isa.ints(0); N]; V];
                for (at, unit) in units.iter().enumerate() {
                    tiles.ahead.turn();
                    for (v, sums) in sums.iter_mut().enumerate() {
                        *sums = blocks(isa, *sums, unit, first + v, x, at);
                    }
                }
                for (v, sums) in sums.into_iter().enumerate() {
                    for n in 0..N {
                        let to = &mut to[n].as_chunks_mut().0[first + v];
                        let sum = isa.convert(sums[n]);
                        *to = isa.store(isa.mul_add(sum, isa.floats(x[n].scale), isa.load(to)));
                    }
                }
            }
        }
    }
}

/// Adds the products of unit `at` of each row with one vector of a panel's outputs.
#[inline(always)]
fn blocks<I: Isa, const N: usize>(
    isa: I,
    mut sums: [I::Ints; N],
    unit: &[u8; UNIT_BYTES],
    vector: usize,
    x: &[Span; N],
    at: usize,
) -> [I::Ints; N] {
    let (multipliers, weights) = unit.split_at(PANEL);
    let pairs = isa.nibble_pairs(&multipliers.as_chunks().0[vector]);
    let weights = lines(weights)[vector].each_ref().map(|line| isa.bytes(line));
    for n in 0..N {
        let words: &[i32; UNIT / 4] = &x[n].words.as_chunks().0[at];
        let [zero_low, zero_high] = x[n].zeros.as_chunks().0[at];
        let [mut low, mut high] = [isa.ints(zero_low), isa.ints(zero_high)];
        for j in 0..4 {
            low = isa.dot4(low, isa.low(weights[j]), &words[j]);
            high = isa.dot4(high, isa.high(weights[j]), &words[4 + j]);
        }
        sums[n] = isa.add_pairs(sums[n], low, high, pairs);
    }
    sums
}

/// A tile of [`Bytes`], one vector of outputs after the other.
#[inline(always)]
fn narrow<I: Isa, const N: usize>(isa: I, to: &mut [Sums; N], weights: &[Turn], x: &[Span; N]) {
    let steps = weights.as_flattened().as_chunks().0;
    let words = x.each_ref().map(|x| &x.words.as_chunks().0[..steps.len()]);
    for vector in 0..VECTORS {
        let zeros = x.each_ref().map(|x| isa.ints(x.sum.wrapping_mul(-I::DOT8_ZERO)));
        let sums = settle(isa.dots8(zeros, steps, vector, words));
        for n in 0..N {
            let to = &mut to[n].as_chunks_mut().0[vector];
            let sum = isa.convert(sums[n]);
            *to = isa.store(isa.mul_add(sum, isa.floats(x[n].scale), isa.load(to)));
        }
    }
}

/// What the sums of a tile begin with.
#[inline(always)]
fn start<I: Isa, const N: usize>(isa: I, x: &[Span; N]) -> [[I::Ints; VECTORS]; N] {
    let mut sums = [[isa.ints(0); VECTORS]; N];
    // A loop, as a closure might be left to be called.
    for n in 0..N {
        sums[n] = [isa.ints(x[n].sum.wrapping_mul(-I::DOT8_ZERO)); VECTORS];
    }
    sums
}

/// Adds the products of one word of each row.
#[inline(always)]
fn dot<I: Isa, const N: usize>(
    isa: I,
    mut sums: [[I::Ints; VECTORS]; N],
    weights: [I::Bytes; VECTORS],
    x: &[Span; N],
    word: usize,
) -> [[I::Ints; VECTORS]; N] {
    for n in 0..N {
        sums[n] = isa.dot8(sums[n], weights, &x[n].words[word]);
    }
    sums
}

/// Adds a tile's sums to its results.
#[inline(always)]
fn finish<I: Isa, const N: usize>(
    isa: I,
    to: &mut [Sums; N],
    sums: [[I::Ints; VECTORS]; N],
    x: &[Span; N],
) {
    for n in 0..N {
        add_scaled(isa, &mut to[n], sums[n], x[n].scale);
    }
}

/// Spreads units of a panel of 4 bits out to the bytes of an 8-bit one.
struct Spread<'a> {
    units: &'a [[u8; UNIT_BYTES]],
    bytes: &'a mut [[Line; VECTORS]],
}

impl Lanes for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let bytes = self.bytes.as_chunks_mut::<{ UNIT / 4 }>().0;
        for (unit, bytes) in self.units.iter().zip(bytes) {
            let (multipliers, weights) = unit.split_at(PANEL);
            let multipliers = multipliers.as_chunks::<LANES>().0;
            for (vector, (multipliers, lines)) in multipliers.iter().zip(lines(weights)).enumerate()
            {
                let [first, second] = isa.nibbles(multipliers);
                for (j, line) in lines.iter().enumerate() {
                    let line = isa.bytes(line);
                    bytes[j][vector] = isa.store_bytes(isa.spread(isa.low(line), first));
                    bytes[VECTORS + j][vector] =
                        isa.store_bytes(isa.spread(isa.high(line), second));
                }
            }
        }
    }
}

/// `to += scale · sums`
#[inline(always)]
fn add_scaled<I: Isa>(isa: I, to: &mut Sums, sums: [I::Ints; VECTORS], scale: f32) {
    for (to, sums) in to.as_chunks_mut().0.iter_mut().zip(sums) {
        let sum = isa.mul_add(isa.convert(sums), isa.floats(scale), isa.load(to));
        *to = isa.store(sum);
    }
}

/// What follows the sums of a panel.
#[derive(Clone, Copy)]
struct End<'a> {
    /// Little-endian; none where weights have no scale.
    scales: Option<&'a [u8]>,
    bias: Option<&'a [f32]>,
}

/// One row's results for a panel.
#[derive(Clone, Copy)]
struct Results<'a> {
    sums: &'a Sums,
    end: End<'a>,
}

impl Results<'_> {
    /// With their scales and their bias.
    #[inline(always)]
    fn write(self, y: &mut [f32]) {
        let results = y.iter_mut().zip(self.sums);
        match (self.end.scales.map(|it| it.as_chunks().0), self.end.bias) {
            (None, None) => results.for_each(|(y, sum)| *y = *sum),
            (None, Some(bias)) => {
                results.zip(bias).for_each(|((y, sum), bias)| *y = sum + bias);
            }
            (Some(scales), None) => {
                let results = results.zip(scales);
                results.for_each(|((y, sum), scale)| *y = sum * f32::from_le_bytes(*scale));
            }
            (Some(scales), Some(bias)) => {
                results.zip(scales).zip(bias).for_each(|(((y, sum), scale), bias)| {
                    *y = sum * f32::from_le_bytes(*scale) + bias;
                });
            }
        }
    }
}

/// Writes one row's results for a panel.
struct Finish<'a> {
    results: Results<'a>,
    second: Option<Results<'a>>,
    then: Then<'a>,
    y: &'a mut [f32],
}

impl Lanes for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let Self { results, second, then, y } = self;
        results.write(y);
        match then {
            Then::Nothing => {}
            Then::Gelu => y.iter_mut().for_each(|y| *y = gelu(*y)),
            Then::SoftCap(cap) => y.iter_mut().for_each(|y| *y = soft_cap(*y, cap)),
            Then::GeluTimes(_) => {
                let mut u = [0.0; PANEL];
                second.expect("there is a second product").write(&mut u[..y.len()]);
                y.iter_mut().zip(u).for_each(|(y, u)| *y = gelu(*y) * u);
            }
            Then::Plus(residual) => y.iter_mut().zip(residual).for_each(|(y, r)| *y += r),
        }
    }
}

/// Moves sums to where they can be indexed, once: left alone, compilers index the loop's own and
/// write every sum to memory in every turn of it.
#[inline(always)]
fn settle<T>(sums: T) -> T {
    hint::black_box(sums)
}

/// By turns; there are whole ones, as weights are padded.
#[inline(always)]
fn turns(lines: &[[Line; VECTORS]]) -> &[Turn] {
    lines.as_chunks().0
}

/// Bytes by fours of vectors.
#[inline(always)]
fn lines(bytes: &[u8]) -> &[[Line; VECTORS]] {
    bytes.as_chunks::<{ size_of::<Line>() }>().0.as_chunks::<VECTORS>().0
}

/// The tile with inputs as they came and any format, one weight at a time: slow, and what the fast
/// ways are checked with.
pub(super) struct Checked<'a>(pub(super) Product<'a>);

impl Loops for Checked<'_> {
    #[inline(always)]
    fn run(self) {
        let Product { packing, weights, then, group, row: first, column, x, mut y } = self.0;
        let Inputs::Floats(x) = x else { panic!("checking takes floats") };
        for row in 0..y.rows() {
            let x = floats(x, &packing, (first + row) * packing.groups + group);
            let one = |Weights { packed, bias }: Weights<'_>, output: usize| {
                let panel = packing.panel(packed, group, output);
                let products = x.iter().enumerate();
                let sum = products.fold(0.0f32, |sum, (input, x)| {
                    x.mul_add(packing.element(panel, output, input), sum)
                });
                sum + bias.map_or(0.0, |bias| bias[group * packing.outputs + output])
            };
            for (output, y) in (column..).zip(y.row_mut(row)) {
                let result = one(weights, output);
                *y = match then {
                    Then::Nothing => result,
                    Then::Gelu => gelu(result),
                    Then::SoftCap(cap) => soft_cap(result, cap),
                    Then::GeluTimes(weights) => gelu(result) * one(weights, output),
                    Then::Plus(residual) => {
                        let row = (first + row) * packing.groups * packing.outputs;
                        residual[row + group * packing.outputs + output] + result
                    }
                };
            }
        }
    }
}
