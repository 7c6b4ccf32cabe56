//! Which parameters our products take packed, and how; packing itself, on all cores.

#[cfg(test)]
mod tests;

use std::thread;

use aerie_models::{ParameterSpec, Precision};
use aerie_ops::matmul::{Format, Order, PackError, Packing, packing::PANEL};

/// How our products hold weights of `precision`; none where products are the runtime's.
pub(crate) fn format(precision: Precision) -> Option<Format> {
    match precision {
        Precision::F32 | Precision::F16 => None,
        Precision::Bf16 => Some(Format::Bf16),
        Precision::Q8 => Some(Format::Q8),
        Precision::Q4 => Some(Format::Q4),
    }
}

/// How a matrix is packed, which is `[out, in]` or `[groups, in, out]`; none for what is no matrix.
pub(crate) fn packing(format: Format, spec: &ParameterSpec) -> Option<(Packing, Order)> {
    let extent = |extent: u64| usize::try_from(extent).expect("extents are below 2^32");
    match *spec.shape {
        [outputs, inputs] => {
            let (inputs, outputs) = (extent(inputs), extent(outputs));
            Some((Packing { format, groups: 1, inputs, outputs }, Order::OutputsInputs))
        }
        [groups, inputs, outputs] => {
            let [groups, inputs, outputs] = [groups, inputs, outputs].map(extent);
            Some((Packing { format, groups, inputs, outputs }, Order::InputsOutputs))
        }
        _ => None,
    }
}

/// Weights below which a part of a matrix is not worth a thread.
const PART_WEIGHTS_MIN: usize = 1 << 16;

/// As [`Packing::pack`], on as many threads as there are cores: parts that follow each other.
///
/// # Errors
/// See [`PackError`].
pub(crate) fn pack(
    packing: Packing,
    weight: &[f32],
    order: Order,
    importance: Option<&[f32]>,
) -> Result<Vec<Vec<u8>>, PackError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    pack_in_parts(Matrix { packing, weight, order, importance }, cores)
}

/// What is to be packed.
#[derive(Clone, Copy, Debug)]
struct Matrix<'a> {
    packing: Packing,
    weight: &'a [f32],
    order: Order,
    /// `[groups · inputs]`
    importance: Option<&'a [f32]>,
}

/// Cuts a matrix into up to `parts_max` parts and packs them beside each other: panels lie one after
/// the other and know nothing of each other.
fn pack_in_parts(matrix: Matrix<'_>, parts_max: usize) -> Result<Vec<Vec<u8>>, PackError> {
    let parts_max = parts_max.min(matrix.weight.len().div_ceil(PART_WEIGHTS_MIN)).max(1);
    let parts = matrix.parts(parts_max);
    let packed: Vec<Result<Vec<u8>, PackError>> = thread::scope(|scope| {
        let pack = |part: &Matrix<'_>| part.packing.pack(part.weight, part.order, part.importance);
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(move || pack(part))).collect();
        threads.into_iter().map(|it| it.join().expect("packing does not panic")).collect()
    });
    let mut first = 0;
    let named = parts.iter().zip(packed).map(|(part, packed)| {
        let packed = packed.map_err(|error| moved(error, first));
        first += part.weight.len();
        packed
    });
    named.collect()
}

/// The error with its index counted from the element before which there are `first` others.
fn moved(error: PackError, first: usize) -> PackError {
    match error {
        PackError::NotFinite { index, found } => {
            PackError::NotFinite { index: first + index, found }
        }
        PackError::TooLarge { index, found, bits } => {
            PackError::TooLarge { index: first + index, found, bits }
        }
        other @ PackError::Inputs { .. } => other,
    }
}

impl<'a> Matrix<'a> {
    /// At most `parts_max` matrices of whole groups or whole panels, each with its weights in one
    /// place; this one if there is no such cut.
    fn parts(self, parts_max: usize) -> Vec<Self> {
        let Packing { groups, inputs, outputs, .. } = self.packing;
        if 1 < groups {
            let step = groups.div_ceil(parts_max);
            let part = |first: usize| {
                let groups = step.min(groups - first);
                Self {
                    packing: Packing { groups, ..self.packing },
                    weight: &self.weight[first * inputs * outputs..][..groups * inputs * outputs],
                    importance: self.importance.map(|it| &it[first * inputs..][..groups * inputs]),
                    ..self
                }
            };
            return (0..groups).step_by(step).map(part).collect();
        }
        if self.order == Order::InputsOutputs {
            return vec![self];
        }
        let outputs = outputs.div_ceil(parts_max).next_multiple_of(PANEL);
        let packing = |weight: &[f32]| Packing { outputs: weight.len() / inputs, ..self.packing };
        let parts = self.weight.chunks(outputs * inputs);
        parts.map(|weight| Self { packing: packing(weight), weight, ..self }).collect()
    }
}
