//! The processor that a training runs on.

#[cfg(test)]
mod tests;

use anyhow::{anyhow, ensure};
use tch::{Cuda, Device};

use crate::torch::shim;

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

/// Makes `device` ready. libtorch's half for GPUs is loaded only here: it is large, and few have it.
///
/// # Errors
/// If that half or the device is not there.
pub fn open(device: Device) -> anyhow::Result<()> {
    let Device::Cuda(number) = device else { return Ok(()) };
    shim::load_cuda().map_err(|error| {
        anyhow!("--device: libtorch's half for GPUs is not here; `make cuda` fetches it ({error})")
    })?;
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    ensure!(number < count, "--device is cuda:{number}; GPUs that CUDA finds here: {count}");
    // Shapes repeat from step to step: the fastest way to convolve them is worth a search.
    Cuda::cudnn_set_benchmark(true);
    Ok(())
}
