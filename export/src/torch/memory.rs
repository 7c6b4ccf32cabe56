//! What is said when there is no memory for a tensor.

#[cfg(test)]
mod tests;

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use anyhow::Context;
use thiserror::Error;

/// libtorch asked for memory in vain.
#[derive(Debug, Eq, Error, PartialEq)]
#[error("libtorch could not allocate {wanted}")]
pub struct OutOfMemory {
    /// An amount with its unit, as libtorch writes it.
    wanted: String,
}

/// Runs `work`, whose tensors may be too large, and says then what to do, which is `advice`. tch's operations
/// panic where libtorch throws; a panic for want of memory becomes an error, and leaves nothing of `work` behind; any
/// other goes on.
///
/// # Errors
/// [`OutOfMemory`], of the processor's memory or a GPU's, with `advice` before it; those of `work`.
pub fn guarded<T>(advice: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if wanted(panic.payload()).is_none() {
                usual(panic);
            }
        }));
    });
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| match wanted(&*panic) {
        Some(wanted) => Err(OutOfMemory { wanted }).context(advice.to_owned()),
        None => panic::resume_unwind(panic),
    })
}

/// What was asked for in vain, if that is what the panic is about.
fn wanted(panic: &(dyn Any + Send)) -> Option<String> {
    let message = panic.downcast_ref::<String>()?;
    // "DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code", and of a GPU
    // "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
    let (_, rest) = message.split_once("ried to allocate ")?;
    let (amount, rest) = rest.split_once(' ')?;
    let unit = rest.split(|it: char| !it.is_ascii_alphabetic()).next()?;
    Some(format!("{amount} {unit}"))
}
