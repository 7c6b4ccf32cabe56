//! Products with packed weights: the bulk of a step. One row is bound by the memory that the weights
//! come from, many rows by multiplications; the same panels serve both.

mod activations;
mod kernels;
pub mod packing;

#[cfg(test)]
mod tests;

pub use packing::{Format, INPUTS_MAX, Order, PackError, Packing, WrongScale};

use self::{
    activations::{Quantised, Split},
    kernels::{Best, Checked, Inputs, Product},
    packing::PANEL,
};
use crate::{
    isa::amx::Amx,
    simd::{Cut, Parallel, for_each_tile, for_each_tile_of, widest},
};

/// A product with packed weights.
#[derive(Clone, Copy, Debug)]
pub struct MatMul<'a> {
    pub packing: Packing,
    pub weights: Weights<'a>,
    pub then: Then<'a>,
    pub activations: Activations,
}

/// What a product's results become.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    Nothing,
    /// `gelu(y)`, in its tanh form.
    Gelu,
    /// `c · tanh(y / c)`
    SoftCap(f32),
    /// `gelu(y) ⊙ u`, with a second product `u` of the same inputs.
    GeluTimes(Weights<'a>),
    /// `r + y`, with `r` as long as `y`.
    Plus(&'a [f32]),
}

impl<'a> Then<'a> {
    /// Weights of the second product.
    fn second(self) -> Option<Weights<'a>> {
        match self {
            Self::GeluTimes(weights) => Some(weights),
            Self::Nothing | Self::Gelu | Self::SoftCap(_) | Self::Plus(_) => None,
        }
    }
}

/// What inputs are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// As [`Packing::pack`] makes it.
    pub packed: &'a [u8],
    /// `[groups · outputs]`
    pub bias: Option<&'a [f32]>,
}

/// What a product takes its inputs as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activations {
    /// As they come.
    F32,
    /// Rounded to bytes, with a scale for each 256 inputs of a row.
    I8,
}

/// Memory that a product needs while it runs; kept, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    bytes: Quantised,
    split: Split,
}

/// Rows of a tile: their inputs stay in the second cache while panels stream by.
const ROWS: usize = 128;
/// Weights of a tile, at least: reading them takes longer than handing a tile out.
const TILE_WEIGHTS_MIN: usize = 1 << 16;

/// Computes `y[n, g·o + j] = bias[g·o + j] + Σ_i x[n, g·k + i] · w[g, j, i]` for `k` inputs and `o`
/// outputs of each group, and then what [`Then`] says.
///
/// # Shapes
/// - `x`: `[N, groups · inputs]`; `y`: `[N, groups · outputs]`
///
/// # Numerics
/// With bytes, sums are exact over inputs that share a scale; then they are scaled and added in f32,
/// in the order of the inputs, and last they take their output's scale. With floats they are fused
/// products in the order of the inputs; or, where the machine multiplies bf16 by tiles (AMX), in theirs, and
/// floats meet bf16 weights as sums of two bf16, which takes 2^-18 of them at most. Either way a row's results
/// do not depend on the other rows; nor, but for these tiles, on the machine.
///
/// # Panics
/// If a slice does not have the length that the others ask for, or bf16 weights meet bytes.
pub fn matmul(
    product: &MatMul<'_>,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
    parallel: &impl Parallel,
) {
    matmuls([*product], x, [y], scratch, parallel);
}

/// [`matmul`] with several products of the same inputs, which are rounded once.
///
/// # Panics
/// As [`matmul`], or if the products' inputs or activations differ.
pub fn matmuls<const N: usize>(
    products: [MatMul<'_>; N],
    x: &[f32],
    ys: [&mut [f32]; N],
    scratch: &mut Scratch,
    parallel: &impl Parallel,
) {
    let MatMul { packing: Packing { format, groups, inputs, .. }, activations, .. } = products[0];
    assert!(x.len().is_multiple_of(groups * inputs), "x is [N, groups · inputs]");
    let rows = x.len() / (groups * inputs);
    for (product, y) in products.iter().zip(&ys) {
        let Packing { groups: own_groups, inputs: own_inputs, .. } = product.packing;
        assert_eq!([own_groups, own_inputs], [groups, inputs], "products of the same inputs");
        assert_eq!(product.activations, activations, "inputs are taken alike");
        product.check(rows, y);
    }
    let x = match (activations, format) {
        (Activations::F32, Format::Bf16) if Amx::has_parts() => {
            scratch.split.set(&products[0].packing, x, parallel);
            Inputs::Parts(&scratch.split)
        }
        (Activations::F32, _) => Inputs::Floats(x),
        (Activations::I8, Format::Q8 | Format::Q4) => {
            scratch.bytes.set(&products[0].packing, x, parallel);
            Inputs::Bytes(&scratch.bytes)
        }
        (Activations::I8, Format::Bf16) => panic!("bf16 weights take f32 inputs"),
    };
    let mut ys = products.iter().zip(ys);
    let cuts = [(); N].map(|()| {
        let (product, y) = ys.next().expect("a result for each product");
        (product.cut(rows), y, groups * product.packing.outputs)
    });
    for_each_tile_of(parallel, cuts, |which, [row, column], y| {
        let MatMul { packing, weights, then, .. } = products[which];
        let (group, column) = (column / packing.outputs, column % packing.outputs);
        let tile = Product { packing, weights, then, group, row, column, x, y };
        match (x, packing.format) {
            (Inputs::Floats(_), Format::Q8 | Format::Q4) => widest(Checked(tile)),
            _ => tile.run(Best),
        }
    });
}

impl MatMul<'_> {
    /// # Panics
    /// If a slice does not have the length that the others ask for.
    fn check(&self, rows: usize, y: &[f32]) {
        let Packing { groups, inputs, outputs, .. } = self.packing;
        assert!(0 < groups && 0 < inputs && 0 < outputs, "no extent is 0");
        for Weights { packed, bias } in [self.weights].into_iter().chain(self.then.second()) {
            assert_eq!(
                packed.len(),
                self.packing.shape().iter().product::<usize>(),
                "packed has the extents' length"
            );
            assert!(
                bias.is_none_or(|it| it.len() == groups * outputs),
                "bias is [groups · outputs]"
            );
        }
        assert_eq!(y.len(), rows * groups * outputs, "y is [N, groups · outputs]");
        if let Then::Plus(residual) = self.then {
            assert_eq!(residual.len(), y.len(), "what is added is as long as y");
        }
    }

    /// How `rows` rows of the product are cut.
    fn cut(&self, rows: usize) -> Cut {
        let Packing { groups, inputs, outputs, .. } = self.packing;
        let columns = match groups {
            1 => TILE_WEIGHTS_MIN.div_ceil(inputs * PANEL) * PANEL,
            _ => outputs,
        };
        let products = 1 + usize::from(self.then.second().is_some());
        Cut { rows: ROWS, columns, work: rows * groups * inputs * outputs * products }
    }
}

/// Reads rows of a table: `y[n] = w[tokens[n], ·]`, with a single group whose outputs are the rows.
///
/// # Shapes
/// - `tokens`: `[N]`; `y`: `[N, inputs]`
///
/// # Panics
/// If a token is not below `outputs`, or a slice does not have the length that the others ask for.
pub fn gather(
    packing: Packing,
    packed: &[u8],
    tokens: &[usize],
    y: &mut [f32],
    parallel: &impl Parallel,
) {
    assert_eq!(packing.groups, 1, "a table has one group");
    assert_eq!(
        packed.len(),
        packing.shape().iter().product::<usize>(),
        "packed has the extents' length"
    );
    assert_eq!(y.len(), tokens.len() * packing.inputs, "y is [N, inputs]");
    assert!(tokens.iter().all(|&it| it < packing.outputs), "tokens are rows of the table");
    let cut = Cut { rows: 1, columns: packing.inputs, work: y.len() };
    for_each_tile(parallel, cut, y, packing.inputs, |[row, _], mut y| {
        let panel = packing.panel(packed, 0, tokens[row]);
        for (input, y) in y.row_mut(0).iter_mut().enumerate() {
            *y = packing.element(panel, tokens[row], input);
        }
    });
}
