//! The native operators of `cpp/`, behind safe functions. They fail only on shapes that do not fit,
//! which is a bug, and then panic with libtorch's message, as tch's own operations do.
//!
//! They are for the CPU; what is on a GPU goes through the same equations in libtorch's operations.
#![allow(unsafe_code, reason = "the native operators are reached through a C interface")]

mod composed;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::torch::shim::composed::Places;

/// How packed tokens are cut into segments, as the native operators read it.
#[derive(Debug)]
pub struct Cut {
    /// i64 `[B+1]`: segment `b` is `bounds[b]..bounds[b+1]`.
    bounds: Tensor,
    /// bool `[B]`: the segment begins a session, so its state is void.
    fresh: Tensor,
    /// Where tokens stand in their segments, if the tokens are on a GPU.
    places: Option<Places>,
}

impl Cut {
    /// Cuts tokens on `device`: segment `b` is `bounds[b]..bounds[b+1]`, and begins a session where it
    /// is `fresh`.
    ///
    /// # Panics
    /// If a segment on a GPU is not fresh.
    pub fn new(bounds: &[i64], fresh: &[bool], device: Device) -> Self {
        let places = (device != Device::Cpu).then(|| {
            assert!(fresh.iter().all(|it| *it), "on a GPU all segments are fresh");
            Places::new(bounds, device)
        });
        Self { bounds: Tensor::from_slice(bounds), fresh: Tensor::from_slice(fresh), places }
    }

    /// bool `[B]`: the segment begins a session.
    pub fn fresh(&self) -> &Tensor {
        &self.fresh
    }
}

/// Griffin eq. 1 to 4 from the pre-activations of the gates; see `Backend::rg_lru`.
///
/// # Shapes
/// - `x`, `gate_a`, `gate_x` and the result: `[N, R]`; `p`: `[R]`; `h0`: `[B, R]`
///
/// # Numerics
/// All in the type of `x`, f32 or f64. The derivative of the normaliser's square root is bounded by
/// 1000, as in Google's code.
pub fn rg_lru(
    x: &Tensor,
    [gate_a, gate_x]: [&Tensor; 2],
    p: &Tensor,
    h0: &Tensor,
    cut: &Cut,
) -> Tensor {
    if let Some(places) = &cut.places {
        return composed::rg_lru(x, [gate_a, gate_x], p, places);
    }
    // SAFETY: every pointer is a live tensor for the length of the call; the operator takes no
    // ownership of them and checks shapes itself.
    own(unsafe {
        aerie_rg_lru(
            x.as_ptr(),
            gate_a.as_ptr(),
            gate_x.as_ptr(),
            p.as_ptr(),
            h0.as_ptr(),
            cut.bounds.as_ptr(),
            cut.fresh.as_ptr(),
        )
    })
}

/// Depthwise causal convolution with four taps; see `Backend::causal_conv1d`.
///
/// # Shapes
/// - `x` and the result: `[N, R]`; `weight`: `[4, R]`; `bias`: `[R]`; `state`: `[B, 3, R]`
pub fn conv1d(x: &Tensor, weight: &Tensor, bias: &Tensor, state: &Tensor, cut: &Cut) -> Tensor {
    if let Some(places) = &cut.places {
        return composed::conv1d(x, weight, bias, places);
    }
    // SAFETY: as in `rg_lru`.
    own(unsafe {
        aerie_conv1d(
            x.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
            state.as_ptr(),
            cut.bounds.as_ptr(),
            cut.fresh.as_ptr(),
        )
    })
}

/// Sum over rows of the cross entropy of `softmax(cap(x · tableᵀ))` against `targets`, in f64.
///
/// # Shapes
/// - `x`: `[N, D]`; `table`: `[V, D]`; `targets`: i64 `[N]`; the result has no axes
pub fn cross_entropy(
    x: &Tensor,
    table: &Tensor,
    targets: &Tensor,
    soft_cap: Option<f32>,
) -> Tensor {
    let cap = soft_cap.map_or(0.0, f64::from);
    // SAFETY: as in `rg_lru`.
    own(unsafe { aerie_cross_entropy(x.as_ptr(), table.as_ptr(), targets.as_ptr(), cap) })
}

/// The tanh form of GELU.
pub fn gelu(x: &Tensor) -> Tensor {
    if x.device() != Device::Cpu {
        return composed::gelu(x);
    }
    // SAFETY: as in `rg_lru`.
    own(unsafe { aerie_gelu(x.as_ptr()) })
}

/// `x / √(mean(x²) + epsilon) ⊙ (1 + weight)` for `x` `[N, D]` and `weight` `[D]`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    if x.device() != Device::Cpu {
        return composed::rms_norm(x, weight, epsilon);
    }
    // SAFETY: as in `rg_lru`.
    own(unsafe { aerie_rms_norm(x.as_ptr(), weight.as_ptr(), epsilon) })
}

/// What one AdamW update is made with.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Learning rate over the bias of the first moment.
    pub step_size: f64,
    /// Bias of the second moment.
    pub bias2: f64,
    /// What decay leaves of the parameter.
    pub keep: f64,
    pub gradient_scale: f64,
}

/// Updates a parameter and its moments in place.
pub fn adamw(parameter: &Tensor, gradient: &Tensor, [m, v]: [&Tensor; 2], rates: Rates) {
    if parameter.device() != Device::Cpu {
        return composed::adamw(parameter, gradient, [m, v], rates);
    }
    let Rates { beta1, beta2, epsilon, step_size, bias2, keep, gradient_scale } = rates;
    let rates = [beta1, beta2, epsilon, step_size, bias2, keep, gradient_scale];
    // SAFETY: as in `rg_lru`; the rates are as many as the operator reads, and the tensors' values
    // are libtorch's to change through any reference, as tch's own in-place operations do.
    let failed = unsafe {
        aerie_adamw(parameter.as_ptr(), gradient.as_ptr(), m.as_ptr(), v.as_ptr(), rates.as_ptr())
    };
    assert!(failed == 0, "{}", last_error());
}

/// Loads libtorch's half for GPUs, to be called before anything asks for a GPU or a gradient.
///
/// # Errors
/// What the loader says, if that half or one of its needs is not there.
pub fn load_cuda() -> Result<(), String> {
    // SAFETY: loads a library whose initialisers only register it with libtorch.
    let failed = unsafe { aerie_load_cuda() };
    if failed == 0 { Ok(()) } else { Err(last_error()) }
}

/// Keeps memory that is freed for what is allocated next, from now on, in this process: steps of a training
/// ask for the same again and again.
pub fn keep_freed_memory() {
    // SAFETY: sets switches of the C library's allocator, which does so under its own locks.
    unsafe { aerie_keep_freed_memory() }
}

/// Lets products of f32 matrices round their operands to bfloat16 from now on, in this process; on
/// GPUs to the finer TF32, in convolutions too.
pub fn set_matmul_bf16(enabled: bool) {
    // SAFETY: sets a switch of libtorch's global context; no memory of ours is involved.
    let failed = unsafe { aerie_set_matmul_bf16(c_int::from(enabled)) };
    assert!(failed == 0, "{}", last_error());
}

/// Takes ownership of a result.
#[track_caller]
fn own(result: *mut C_tensor) -> Tensor {
    assert!(!result.is_null(), "{}", last_error());
    // SAFETY: the operators return a tensor on the heap that nobody else holds.
    unsafe { Tensor::from_ptr(result) }
}

fn last_error() -> String {
    // SAFETY: the message is a NUL-terminated string that lives until this thread's next failure.
    unsafe { CStr::from_ptr(aerie_last_error()) }.to_string_lossy().into_owned()
}

unsafe extern "C" {
    fn aerie_last_error() -> *const c_char;
    fn aerie_load_cuda() -> c_int;
    fn aerie_keep_freed_memory();
    fn aerie_set_matmul_bf16(enabled: c_int) -> c_int;
    fn aerie_gelu(x: *const C_tensor) -> *mut C_tensor;
    fn aerie_rms_norm(x: *const C_tensor, weight: *const C_tensor, epsilon: f64) -> *mut C_tensor;
    fn aerie_adamw(
        parameter: *const C_tensor,
        gradient: *const C_tensor,
        m: *const C_tensor,
        v: *const C_tensor,
        rates: *const f64,
    ) -> c_int;
    fn aerie_rg_lru(
        x: *const C_tensor,
        gate_a: *const C_tensor,
        gate_x: *const C_tensor,
        p: *const C_tensor,
        h0: *const C_tensor,
        bounds: *const C_tensor,
        fresh: *const C_tensor,
    ) -> *mut C_tensor;
    fn aerie_conv1d(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        state: *const C_tensor,
        bounds: *const C_tensor,
        fresh: *const C_tensor,
    ) -> *mut C_tensor;
    fn aerie_cross_entropy(
        x: *const C_tensor,
        table: *const C_tensor,
        targets: *const C_tensor,
        cap: f64,
    ) -> *mut C_tensor;
}
