//! How the weights of a product lie in memory: in the order in which the kernels read them, so that a
//! bundle's file can be mapped and used as it is.
//!
//! Outputs are cut into panels of 64, each one sequential stream; what is missing to a whole panel or
//! to a whole block of inputs is padded with weights of 0.
//!
//! | format | a panel, for `i` inputs | bytes for a weight |
//! |---|---|---|
//! | bf16 | `[i/2][64][2]` bf16 | 2 |
//! | 8-bit | 64 f32 scales, one for each output, then `[i/4][64][4]` bytes: `q + 128`, `|q| ≤ 127` | 1 |
//! | 4-bit | for each 32 inputs: 64 f16 scales, then `[4][4][16][4]` bytes | 0.5625 |
//!
//! Byte `[g][j][l][b]` of a 4-bit block holds two weights of output `16g + l`: of input `4j + b` in
//! its lower bits and of input `16 + 4j + b` in its upper ones, each as `q + 8`, `-8 ≤ q ≤ 7`.
//! A weight is its scale times `q`. Everything is little-endian.

use half::{bf16, f16};
use thiserror::Error;

/// Outputs of a panel.
pub const PANEL: usize = 64;
/// Inputs that share a scale in the 4-bit format.
pub const BLOCK4: usize = 32;
/// Bytes of a block of the 4-bit format.
pub(super) const BLOCK4_BYTES: usize = 2 * PANEL + PANEL * BLOCK4 / 2;
/// Bytes of a panel's scales in the 8-bit format.
pub(super) const SCALES8_BYTES: usize = 4 * PANEL;
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
            Self::Q8 => 4,
            Self::Q4 => BLOCK4,
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
            Format::Q8 => SCALES8_BYTES + self.depth() * PANEL,
            Format::Q4 => self.depth() / BLOCK4 * BLOCK4_BYTES,
        }
    }

    /// Shape of the packed bytes: `[groups, panels, panel_bytes]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.groups, self.panels(), self.panel_bytes()]
    }

    /// Packs `weight`, rounding each element to what the format can hold.
    ///
    /// # Errors
    /// [`PackError`], naming the first element that cannot be held.
    ///
    /// # Panics
    /// If `weight` is not as long as the extents say.
    pub fn pack(&self, weight: &[f32], order: Order) -> Result<Vec<u8>, PackError> {
        let Self { format, groups, inputs, outputs } = *self;
        assert_eq!(weight.len(), groups * inputs * outputs, "weight has the extents' length");
        if format != Format::Bf16 && INPUTS_MAX < inputs {
            return Err(PackError::Inputs { found: inputs });
        }
        if let Some(index) = weight.iter().position(|it| !it.is_finite()) {
            return Err(PackError::NotFinite { index, found: weight[index] });
        }
        let [panels, bytes] = [self.panels(), self.panel_bytes()];
        let mut packed = vec![0; groups * panels * bytes];
        let mut column = vec![0.0; self.depth()];
        for output in 0..groups * outputs {
            let (group, row) = (output / outputs, output % outputs);
            let index = |input: usize| match order {
                Order::OutputsInputs => output * inputs + input,
                Order::InputsOutputs => (group * inputs + input) * outputs + row,
            };
            for (input, value) in column[..inputs].iter_mut().enumerate() {
                *value = weight[index(input)];
            }
            let panel = &mut packed[(group * panels + row / PANEL) * bytes..][..bytes];
            write_column(format, panel, row % PANEL, &column).map_err(|input| {
                let (index, bits) = (index(input), format.bits());
                PackError::TooLarge { index, found: weight[index], bits }
            })?;
        }
        for (idx, panel) in packed.chunks_exact_mut(bytes).enumerate() {
            let first = idx % panels * PANEL;
            for spare in outputs.min(first + PANEL)..first + PANEL {
                column.fill(0.0);
                write_column(format, panel, spare - first, &column).expect("0 can be held");
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
        assert_eq!(packed.len(), self.shape().iter().product(), "packed has the extents' length");
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
                let scale = panel[4 * column..].first_chunk().expect("64 scales");
                let q = panel[SCALES8_BYTES + 4 * (input / 4 * PANEL + column) + input % 4];
                f32::from_le_bytes(*scale) * f32::from(i16::from(q) - 128)
            }
            Format::Q4 => {
                let block = &panel[input / BLOCK4 * BLOCK4_BYTES..][..BLOCK4_BYTES];
                let scale = f16::from_le_bytes([block[2 * column], block[2 * column + 1]]);
                let (at, shift) = nibble(column, input % BLOCK4);
                scale.to_f32() * f32::from(i16::from(block[at] >> shift & 15) - 8)
            }
        }
    }
}

/// Writes one output's weights; `Err` is the input that is too large.
fn write_column(
    format: Format,
    panel: &mut [u8],
    column: usize,
    weights: &[f32],
) -> Result<(), usize> {
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
            let (scale, inverse) = scale8(weights);
            panel[4 * column..][..4].copy_from_slice(&scale.to_le_bytes());
            for (input, weight) in weights.iter().enumerate() {
                let at = SCALES8_BYTES + 4 * (input / 4 * PANEL + column) + input % 4;
                panel[at] = offset(weight * inverse, -127, 127, 128);
            }
        }
        Format::Q4 => {
            let blocks = weights.chunks_exact(BLOCK4).zip(panel.chunks_exact_mut(BLOCK4_BYTES));
            for (idx, (weights, block)) in blocks.enumerate() {
                let scale = scale4(weights).ok_or(idx * BLOCK4)?;
                block[2 * column..][..2].copy_from_slice(&scale.to_le_bytes());
                for (input, &weight) in weights.iter().enumerate() {
                    let (at, shift) = nibble(column, input);
                    block[at] &= !(15 << shift);
                    block[at] |= quantise4(weight, scale.to_f32()) << shift;
                }
            }
        }
    }
    Ok(())
}

/// Where a block of the 4-bit format holds a weight: byte and shift.
#[inline(always)]
fn nibble(column: usize, input: usize) -> (usize, usize) {
    let (half, j, b) = (input / 16, input % 16 / 4, input % 4);
    (2 * PANEL + ((column / 16 * 4 + j) * 16 + column % 16) * 4 + b, 4 * half)
}

/// A scale that maps the largest weight to 127, and its inverse.
pub(super) fn scale8(weights: &[f32]) -> (f32, f32) {
    let max = weights.iter().fold(0.0f32, |max, it| max.max(it.abs()));
    // Below this the inverse would overflow; such weights are nothing.
    if max < 1e-30 { (0.0, 0.0) } else { (max / 127.0, 127.0 / max) }
}

/// The f16 scale with the least squared error among those that map the largest weight near the end
/// of the range; none if it is beyond f16.
fn scale4(weights: &[f32]) -> Option<f16> {
    const ENDS: [f32; 8] = [-8.0, -7.75, -7.5, -7.25, -7.0, 7.0, 7.25, 7.5];
    let max =
        weights.iter().copied().fold(0.0f32, |max, it| if max.abs() < it.abs() { it } else { max });
    let error = |scale: f16| -> f32 {
        let scale = scale.to_f32();
        let off = |&it: &f32| it - scale * (f32::from(quantise4(it, scale)) - 8.0);
        weights.iter().map(|it| off(it) * off(it)).sum()
    };
    let scales = ENDS.map(|end| f16::from_f32(max / end));
    let finite = scales.into_iter().filter(|it| it.is_finite());
    finite.map(|it| (error(it), it)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, scale)| scale)
}

/// The weight as `q + 8`.
fn quantise4(weight: f32, scale: f32) -> u8 {
    if scale == 0.0 { 8 } else { offset(weight / scale, -8, 7, 8) }
}

/// `value` rounded and held to `min..=max`, plus `zero`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held to the range")]
fn offset(value: f32, min: i16, max: i16, zero: i16) -> u8 {
    (value.round_ties_even().clamp(min.into(), max.into()) as i16 + zero) as u8
}
