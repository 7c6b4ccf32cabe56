//! Which parameters our products take packed, and how.

use aerie_models::{ParameterSpec, Precision};
use aerie_ops::matmul::{Format, Order, Packing};

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
