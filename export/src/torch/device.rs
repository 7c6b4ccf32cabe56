//! The processor that a training runs on.

#[cfg(test)]
mod tests;

use tch::{Cuda, Device};
use thiserror::Error;

use crate::torch::shim;

/// A device cannot be had.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error(
        "--device: libtorch's half for GPUs cannot be loaded; `make cuda` puts it beside the other ({0})"
    )]
    NotLoaded(String),
    #[error("--device is cuda:{number}; GPUs that CUDA finds here: {count}")]
    Absent { number: usize, count: usize },
}

/// Reads `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// What was expected, for any other name.
pub fn parse(name: &str) -> Result<Device, String> {
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|it| it.parse().ok()),
    };
    number.map(Device::Cuda).ok_or_else(|| "cpu, cuda or cuda:N is expected".to_owned())
}

/// Makes `device` ready. libtorch's half for GPUs is loaded only here: it is large, and few have it. This comes before
/// all other work of the process with tensors, since libtorch counts devices at the first gradient.
///
/// # Errors
/// [`DeviceError`] if that half or the device is not there.
pub fn open(device: Device) -> Result<(), DeviceError> {
    let Device::Cuda(number) = device else { return Ok(()) };
    shim::load_cuda().map_err(DeviceError::NotLoaded)?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if count <= number {
        return Err(DeviceError::Absent { number, count });
    }
    // Shapes repeat from step to step: the fastest way to convolve them is worth a search.
    Cuda::cudnn_set_benchmark(true);
    Ok(())
}
