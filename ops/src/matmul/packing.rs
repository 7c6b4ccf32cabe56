//! How the weights of a product lie in memory: in the order in which the kernels read them, so that a
//! bundle's file can be mapped and used as it is.
//!
//! Outputs are cut into panels of 64, each one sequential stream; what is missing to a whole panel or
//! to a whole unit of inputs is padded with weights of 0.
//!
//! | format | a panel, for `i` inputs | bytes for a weight |
//! |---|---|---|
//! | bf16 | `[i/2][64][2]` bf16 | 2 |
//! | 8-bit | 64 f32 scales, one for each output, then `[i/4][64][4]` bytes: `q + 128`, `|q| ≤ 127` | 1 |
//! | 4-bit | 64 f32 scales, then for each 32 inputs 64 bytes of multipliers and `[4][4][16][4]` bytes | 0.53125 |
//!
//! An 8-bit weight is its output's scale times `q`.
//!
//! A 4-bit weight is its output's scale times `m · q`, with `-8 ≤ q ≤ 7` and a multiplier `0 ≤ m ≤ 15`
//! for each block of 16 inputs. So `m · q` fits in a byte: many rows are multiplied as with 8 bits,
//! once a panel's weights are spread out, and sums of products of bytes stay exact across blocks. A
//! unit of 32 inputs is two blocks: byte `[o]` of its multipliers has output `o`'s for the first in its
//! lower bits and for the second in its upper ones; byte `[g][j][l][b]` of its weights has two of output
//! `16g + l`: of input `4j + b` in its lower bits and of input `16 + 4j + b` in its upper ones, each as
//! `q + 8`. Everything is little-endian.

use half::bf16;
use thiserror::Error;

use crate::{
    isa::SPAN,
    simd::{Loops, widest},
};

/// Outputs of a panel.
pub const PANEL: usize = 64;
/// Inputs that share a multiplier in the 4-bit format.
pub(super) const BLOCK: usize = 16;
/// Inputs that quantised panels are padded to a multiple of: two blocks, whose weights share bytes.
pub(super) const UNIT: usize = 2 * BLOCK;
/// Bytes of a unit of the 4-bit format.
pub(super) const UNIT_BYTES: usize = PANEL + PANEL * BLOCK;
/// Bytes of a quantised panel's scales.
pub(super) const SCALES_BYTES: usize = 4 * PANEL;
/// Largest weight of a quantised matrix, far beyond any model's.
const WEIGHT_MAX: f32 = 1e38;
/// Largest scale: times the largest number that a byte stands for, it still is one.
const SCALE_MAX: f32 = f32::MAX / 128.0;
/// Largest multiplier of the 4-bit format.
const MULTIPLIER_MAX: u8 = 15;
/// Most inputs of a quantised product: sums of as many products of bytes fit in 32 bits.
pub const INPUTS_MAX: usize = 1 << 16;

/// How a weight is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    Bf16,
    Q8,
    Q4,
}

impl Format {
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Q8, Self::Q4];

    /// Bits of a weight, without its scale: what the operators' attribute `bits` says.
    pub fn bits(self) -> usize {
        match self {
            Self::Bf16 => 16,
            Self::Q8 => 8,
            Self::Q4 => 4,
        }
    }

    /// Inputs that a panel is padded to a multiple of.
    pub(super) fn depth(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Q8 | Self::Q4 => UNIT,
        }
    }
}

/// Extents of packed weights: `groups` products side by side, each of `inputs` to `outputs`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Packing {
    pub format: Format,
    pub groups: usize,
    /// Of one group.
    pub inputs: usize,
    /// Of one group.
    pub outputs: usize,
}

/// Which axis of a group's matrix runs fastest before it is packed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// `[groups, outputs, inputs]`
    OutputsInputs,
    /// `[groups, inputs, outputs]`
    InputsOutputs,
}

/// Why weights cannot be packed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PackError {
    #[error("element {index} is {found}; only finite weights can be packed")]
    NotFinite { index: usize, found: f32 },
    #[error("element {index} is {found}, which is beyond what {bits}-bit weights can hold")]
    TooLarge { index: usize, found: f32, bits: usize },
    #[error("{found} inputs; at most {INPUTS_MAX} are supported with quantised weights")]
    Inputs { found: usize },
}

/// A scale that no packing writes, and that would spoil whatever it meets.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("the scale of output {output} is {found}; scales are from 0 to {SCALE_MAX:e}")]
pub struct WrongScale {
    /// Counted over all groups.
    pub output: usize,
    pub found: f32,
}

impl Packing {
    /// Panels of a group.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Inputs of a group with their padding.
    pub(super) fn depth(&self) -> usize {
        self.inputs.next_multiple_of(self.format.depth())
    }

    pub fn panel_bytes(&self) -> usize {
        match self.format {
            Format::Bf16 => self.depth() * PANEL * 2,
            Format::Q8 => SCALES_BYTES + self.depth() * PANEL,
            Format::Q4 => SCALES_BYTES + self.depth() / UNIT * UNIT_BYTES,
        }
    }

    /// Bytes of as many inputs of a panel as share a scale.
    pub(super) fn span_bytes(&self) -> usize {
        match self.format {
            Format::Bf16 => SPAN * PANEL * 2,
            Format::Q8 => SPAN * PANEL,
            Format::Q4 => SPAN / UNIT * UNIT_BYTES,
        }
    }

    /// Shape of the packed bytes: `[groups, panels, panel_bytes]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.groups, self.panels(), self.panel_bytes()]
    }

    /// Packs `weight`, rounding each element to what the format can hold.
    ///
    /// `importance`, `[groups · inputs]`, says how much an error of a weight of each input counts: the
    /// mean square of that input over some text makes what is minimised the error of the product's
    /// results, up to correlations between inputs. Without it all count the same. Only the 4-bit format
    /// has a choice.
    ///
    /// # Errors
    /// [`PackError`], naming the first element that cannot be held.
    ///
    /// # Panics
    /// If `weight` or `importance` is not as long as the extents say.
    pub fn pack(
        &self,
        weight: &[f32],
        order: Order,
        importance: Option<&[f32]>,
    ) -> Result<Vec<u8>, PackError> {
        let Self { format, groups, inputs, outputs } = *self;
        assert_eq!(weight.len(), groups * inputs * outputs, "weight has the extents' length");
        assert!(importance.is_none_or(|it| it.len() == groups * inputs), "[groups · inputs]");
        if format != Format::Bf16 && INPUTS_MAX < inputs {
            return Err(PackError::Inputs { found: inputs });
        }
        if let Some(index) = weight.iter().position(|it| !it.is_finite()) {
            return Err(PackError::NotFinite { index, found: weight[index] });
        }
        let [panels, bytes] = [self.panels(), self.panel_bytes()];
        let mut packed = vec![0; groups * panels * bytes];
        let mut column = vec![0.0; self.depth()];
        let mut counts = vec![1.0; self.depth()];
        for output in 0..groups * outputs {
            let (group, row) = (output / outputs, output % outputs);
            let index = |input: usize| match order {
                Order::OutputsInputs => output * inputs + input,
                Order::InputsOutputs => (group * inputs + input) * outputs + row,
            };
            for (input, value) in column[..inputs].iter_mut().enumerate() {
                *value = weight[index(input)];
            }
            if let Some(importance) = importance {
                counts[..inputs].copy_from_slice(&importance[group * inputs..][..inputs]);
            }
            let panel = &mut packed[(group * panels + row / PANEL) * bytes..][..bytes];
            write_column(format, panel, row % PANEL, [&column, &counts]).map_err(|input| {
                let (index, bits) = (index(input), format.bits());
                PackError::TooLarge { index, found: weight[index], bits }
            })?;
        }
        for (idx, panel) in packed.chunks_exact_mut(bytes).enumerate() {
            let first = idx % panels * PANEL;
            for spare in outputs.min(first + PANEL)..first + PANEL {
                column.fill(0.0);
                write_column(format, panel, spare - first, [&column, &counts])
                    .expect("0 can be held");
            }
        }
        Ok(packed)
    }

    /// What [`Packing::pack`] has made of its input, in its order.
    ///
    /// # Panics
    /// If `packed` is not as long as the extents say.
    pub fn unpack(&self, packed: &[u8], order: Order) -> Vec<f32> {
        let Self { groups, inputs, outputs, .. } = *self;
        assert_eq!(
            packed.len(),
            self.shape().iter().product::<usize>(),
            "packed has the extents' length"
        );
        let at =
            |group, output, input| self.element(self.panel(packed, group, output), output, input);
        let mut weight = Vec::with_capacity(groups * inputs * outputs);
        for group in 0..groups {
            match order {
                Order::OutputsInputs => {
                    for output in 0..outputs {
                        weight.extend((0..inputs).map(|input| at(group, output, input)));
                    }
                }
                Order::InputsOutputs => {
                    for input in 0..inputs {
                        weight.extend((0..outputs).map(|output| at(group, output, input)));
                    }
                }
            }
        }
        weight
    }

    /// The first scale of `packed` that [`Packing::pack`] would not write, if there is one.
    ///
    /// # Panics
    /// If `packed` is not as long as the extents say.
    pub fn wrong_scale(&self, packed: &[u8]) -> Option<WrongScale> {
        assert_eq!(packed.len(), self.shape().iter().product::<usize>(), "the extents' length");
        if self.format == Format::Bf16 {
            return None;
        }
        let outputs = (0..self.groups * self.outputs).map(|output| {
            let (group, row) = (output / self.outputs, output % self.outputs);
            let found = scale(self.panel(packed, group, row), row % PANEL);
            WrongScale { output, found }
        });
        outputs.into_iter().find(|it| !(0.0..=SCALE_MAX).contains(&it.found))
    }

    /// The panel that holds `output` of `group`.
    pub(super) fn panel<'p>(&self, packed: &'p [u8], group: usize, output: usize) -> &'p [u8] {
        let bytes = self.panel_bytes();
        &packed[(group * self.panels() + output / PANEL) * bytes..][..bytes]
    }

    /// One weight of a panel.
    #[inline(always)]
    pub(super) fn element(&self, panel: &[u8], output: usize, input: usize) -> f32 {
        let column = output % PANEL;
        match self.format {
            Format::Bf16 => {
                let at = 4 * (input / 2 * PANEL + column) + 2 * (input % 2);
                bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
            }
            Format::Q8 => {
                let q = panel[SCALES_BYTES + 4 * (input / 4 * PANEL + column) + input % 4];
                scale(panel, column) * f32::from(i16::from(q) - 128)
            }
            Format::Q4 => {
                let unit = &panel[SCALES_BYTES + input / UNIT * UNIT_BYTES..][..UNIT_BYTES];
                let (at, shift) = nibble(column, input % UNIT);
                let m = i16::from(unit[column] >> shift & 15);
                scale(panel, column) * f32::from(m * (i16::from(unit[at] >> shift & 15) - 8))
            }
        }
    }
}

/// The scale of one output of a quantised panel.
#[inline(always)]
fn scale(panel: &[u8], column: usize) -> f32 {
    f32::from_le_bytes(*panel[4 * column..].first_chunk().expect("64 scales"))
}

/// Writes one output's weights, each of which counts as much as it says; `Err` is the input that is too
/// large.
fn write_column(
    format: Format,
    panel: &mut [u8],
    column: usize,
    [weights, counts]: [&[f32]; 2],
) -> Result<(), usize> {
    let is_large = |it: &f32| WEIGHT_MAX < it.abs();
    if format != Format::Bf16
        && let Some(input) = weights.iter().position(is_large)
    {
        return Err(input);
    }
    match format {
        Format::Bf16 => {
            for (input, &weight) in weights.iter().enumerate() {
                let rounded = bf16::from_f32(weight);
                if rounded.is_infinite() {
                    return Err(input);
                }
                let at = 4 * (input / 2 * PANEL + column) + 2 * (input % 2);
                panel[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
            }
        }
        Format::Q8 => {
            let max = largest(weights);
            let [scale, inverse] = if max < TINY { [0.0; 2] } else { [max / 127.0, 127.0 / max] };
            panel[4 * column..][..4].copy_from_slice(&scale.to_le_bytes());
            for (input, weight) in weights.iter().enumerate() {
                let at = SCALES_BYTES + 4 * (input / 4 * PANEL + column) + input % 4;
                panel[at] = offset(weight * inverse, -127, 127, 128);
            }
        }
        Format::Q4 => widest(Nibbles { panel, column, weights, counts }),
    }
    Ok(())
}

/// Writes one output's weights in the 4-bit format.
struct Nibbles<'a> {
    panel: &'a mut [u8],
    column: usize,
    weights: &'a [f32],
    counts: &'a [f32],
}

impl Loops for Nibbles<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { panel, column, weights, counts } = self;
        let blocks = || weights.as_chunks::<BLOCK>().0.iter().zip(counts.as_chunks().0);
        let max = largest(weights);
        let whole = if max < TINY { 0.0 } else { max / (8.0 * f32::from(MULTIPLIER_MAX)) };
        // A scale that reaches the largest weight of all, with q = 7 or -8, leaves the others'
        // multipliers coarse.
        let scales = [8.0 / 7.0, 1.0, 0.875, 0.75].map(|share| whole * share);
        let error = |scale: f32| blocks().map(|(w, c)| multiplier(w, c, scale).1).sum::<f32>();
        let scale = scales.into_iter().map(|it| (error(it), it)).min_by(|a, b| a.0.total_cmp(&b.0));
        let scale = scale.expect("several scales").1;
        panel[4 * column..][..4].copy_from_slice(&scale.to_le_bytes());
        for (block, (weights, counts)) in blocks().enumerate() {
            let unit = &mut panel[SCALES_BYTES + block / 2 * UNIT_BYTES..][..UNIT_BYTES];
            let m = multiplier(weights, counts, scale).0;
            for (input, q) in quantise(weights, scale * f32::from(m)).into_iter().enumerate() {
                let (at, shift) = nibble(column, block % 2 * BLOCK + input);
                put(&mut unit[at], shift, offset(q, -8, 7, 8));
            }
            put(&mut unit[column], block % 2 * 4, m);
        }
    }
}

/// The multiplier with the least error among those near what maps the largest weight to the end of
/// the range, and the error.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to 0..=15")]
fn multiplier(weights: &[f32; BLOCK], counts: &[f32; BLOCK], scale: f32) -> (u8, f32) {
    const AROUND: [f32; 4] = [-1.0, 0.0, 1.0, 2.0];
    let middle = if scale == 0.0 { 0.0 } else { (largest(weights) / (8.0 * scale)).floor() };
    let mut best = (0, f32::INFINITY);
    for around in AROUND {
        let m = (middle + around).clamp(0.0, MULTIPLIER_MAX.into());
        let step = m * scale;
        let q = quantise(weights, step);
        let mut errors: [f32; BLOCK] = std::array::from_fn(|input| {
            let off = weights[input] - step * q[input];
            counts[input] * off * off
        });
        // By halves, a sum that vectors can take, and one order everywhere.
        for half in [8, 4, 2, 1] {
            for input in 0..half {
                errors[input] += errors[input + half];
            }
        }
        if errors[0] < best.1 {
            best = (m as u8, errors[0]);
        }
    }
    best
}

/// Weights as `q`, in steps of `step`.
#[inline(always)]
fn quantise(weights: &[f32; BLOCK], step: f32) -> [f32; BLOCK] {
    let inverse = if step == 0.0 { 0.0 } else { step.recip() };
    // Adding and subtracting 1.5 · 2^23 rounds to nearest, ties to even.
    weights.map(|it| ((it * inverse).clamp(-8.0, 7.0) + 12_582_912.0) - 12_582_912.0)
}

/// Where a unit of the 4-bit format holds a weight: byte and shift.
#[inline(always)]
fn nibble(column: usize, input: usize) -> (usize, usize) {
    let (half, j, b) = (input / BLOCK, input % BLOCK / 4, input % 4);
    (PANEL + ((column / 16 * 4 + j) * 16 + column % 16) * 4 + b, 4 * half)
}

/// Writes four bits of a byte.
#[inline(always)]
fn put(byte: &mut u8, shift: usize, bits: u8) {
    *byte = *byte & !(15 << shift) | bits << shift;
}

/// Weights below this are nothing: the inverse of their scale would overflow.
const TINY: f32 = 1e-30;

/// The largest absolute value.
#[inline(always)]
fn largest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0f32, |max, it| max.max(it.abs()))
}

/// `value` rounded and held to `min..=max`, plus `zero`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to the range")]
fn offset(value: f32, min: i16, max: i16, zero: i16) -> u8 {
    (value.round_ties_even().clamp(min.into(), max.into()) as i16 + zero) as u8
}
