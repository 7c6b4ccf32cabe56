//! The Real-Gated Linear Recurrent Unit with the projections of its gates.

use crate::{
    backend::{Backend, Init, ParameterSpec, Role},
    config::{AInit, ModelConfig},
    layers::block_diagonal::block_diagonal,
    path::Path,
};

/// Griffin eq. 1 to 4; returns the hidden states times `times` and the next state.
pub fn rg_lru<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    times: &B::Tensor,
    state: &B::Tensor,
) -> (B::Tensor, B::Tensor) {
    let gate = |name| block_diagonal(config, backend, [path, &Path::root().child(name)]);
    let gate_a = gate("recurrent_gate"); // eq. 1, before σ
    let gate_x = gate("input_gate"); // eq. 2, before σ
    let init = match config.a_init {
        AInit::Code => Init::RgLruCode { rho_min: 0.9, rho_max: 0.999 },
        AInit::Paper => Init::RgLruPaper { a_min: 0.9, a_max: 0.999 },
    };
    let p = backend.parameter(
        &path.child("recurrent_param"),
        ParameterSpec {
            shape: vec![u64::from(config.recurrence_width)],
            init,
            role: Role::Steering,
        },
    );
    let gates = [gate_a.each_ref(), gate_x.each_ref()];
    backend.gated_rg_lru(x, gates, &p, times, state) // eq. 3 and 4
}
