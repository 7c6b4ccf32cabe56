//! The operations that a model is made of. Whoever implements [`Backend`] gives the equations a
//! meaning; whoever is written against it can be trained, exported and served.

use crate::path::Path;

/// A reading of the equations.
///
/// One value of a backend stands for one step: the cut of the packed tokens into segments, their
/// lanes and positions belong to the backend, not to the model. No operation reports the extent of
/// the token or segment axis, so no model can come to depend on it.
///
/// An operation is here only if ONNX has it as one node or `aerie-ops` has a kernel for it;
/// everything else is composed in [`crate::layers`].
///
/// # Panics
/// Every operation may panic on operands whose shapes do not fit: shapes are settled by the
/// configuration, so a mismatch is a bug.
pub trait Backend {
    /// Cheap to clone: a handle, an edge of a graph, a shared buffer.
    type Tensor: Clone;

    /// The parameter at `path`, made according to `spec` where it does not exist yet.
    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Self::Tensor;

    /// Rows of `table` `[V, D]` chosen by `tokens` `[N]`: `[N, D]`.
    fn gather(&self, table: &Self::Tensor, tokens: &Self::Tensor) -> Self::Tensor;

    /// `x · weightᵀ + bias` for `x` `[N, in]`, `weight` `[out, in]`, `bias` `[out]`: `[N, out]`.
    fn linear(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
    ) -> Self::Tensor;

    /// [`Backend::linear`] with something that follows it.
    fn linear_then(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        then: Then,
    ) -> Self::Tensor {
        then_in_parts(self, &self.linear(x, weight, bias), then)
    }

    /// `residual + (x · weightᵀ + bias)`
    fn linear_plus(
        &self,
        residual: &Self::Tensor,
        x: &Self::Tensor,
        [weight, bias]: [&Self::Tensor; 2],
    ) -> Self::Tensor {
        self.add(residual, &self.linear(x, weight, Some(bias)))
    }

    /// `gelu(z · gelu_weightᵀ + gelu_bias)` and `z · weightᵀ + bias` for the norm `z`.
    fn linear_pair(
        &self,
        z: &Normed<Self::Tensor>,
        [gelu_weight, gelu_bias]: [&Self::Tensor; 2],
        [weight, bias]: [&Self::Tensor; 2],
    ) -> [Self::Tensor; 2] {
        pair_in_parts(self, z, [gelu_weight, gelu_bias], [weight, bias])
    }

    /// Queries, keys and values: `z · weightᵀ` of each weight for the norm `z`.
    fn qkv(&self, z: &Normed<Self::Tensor>, weights: [&Self::Tensor; 3]) -> [Self::Tensor; 3] {
        qkv_in_parts(self, z, weights)
    }

    /// `gelu(z · gateᵀ + gate_bias) ⊙ (z · upᵀ + up_bias)` for the norm `z`, of two weights with their
    /// biases as for [`Backend::linear`].
    fn gated_linear(
        &self,
        z: &Normed<Self::Tensor>,
        [gate, gate_bias]: [&Self::Tensor; 2],
        [up, up_bias]: [&Self::Tensor; 2],
    ) -> Self::Tensor {
        gated_in_parts(self, z, [gate, gate_bias], [up, up_bias])
    }

    /// `y[n, k·o + j] = Σ_i x[n, k·o + i] · weight[k, i, j] + bias[k·o + j]` with `weight`
    /// `[K, o, o]`, `x` and `y` `[N, K·o]`.
    fn block_diagonal(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
    ) -> Self::Tensor;

    /// `a + b`, both `[N, ·]`.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;

    /// `a ⊙ b`, both `[N, ·]`.
    fn mul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;

    /// `factor · x`.
    fn scale(&self, x: &Self::Tensor, factor: f32) -> Self::Tensor;

    /// The tanh form of GELU: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`.
    fn gelu(&self, x: &Self::Tensor) -> Self::Tensor;

    /// `tanh(x)`.
    fn tanh(&self, x: &Self::Tensor) -> Self::Tensor;

    /// `x / √(mean(x²) + epsilon) ⊙ (1 + weight)` over the last axis, with `weight` `[D]`.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Tensor, epsilon: f32) -> Self::Tensor;

    /// The row of each segment's last token: `[N, D]` to `[B, D]`.
    fn last_rows(&self, x: &Self::Tensor) -> Self::Tensor;

    /// Depthwise causal convolution: `y[t] = bias + Σ_s weight[C-1-s] ⊙ x[t-s]`, `s = 0 … C-1`.
    ///
    /// # Shapes
    /// - `x`, `y`: `[N, R]`; `weight`: `[C, R]`, its last row meets the current token; `bias`: `[R]`
    /// - `state`: `[lanes, C-1, R]`, the inputs before the segment, oldest first
    ///
    /// Lags that reach before the start of a session read zero.
    fn causal_conv1d(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        state: &Self::Tensor,
    ) -> (Self::Tensor, Self::Tensor);

    /// The Real-Gated Linear Recurrent Unit, from its input and the pre-activations of its gates.
    ///
    /// Griffin eq. 1 to 4 (De et al. 2024, arXiv:2402.19427) with `a = σ(Λ)` written as
    /// `log a = -softplus(p)`:
    /// `ℓ = -8 · σ(gate_a) · softplus(p)`, `a = exp(ℓ)`, `m = √(1 - exp(2ℓ))`,
    /// `h[t] = a ⊙ h[t-1] + m ⊙ σ(gate_x) ⊙ x[t]`. At the first token of a session `a` is 0 and
    /// `m` is 1.
    ///
    /// # Shapes
    /// - `x`, `gate_a`, `gate_x`, and the result `h`: `[N, R]`; `p`: `[R]`; `state`: `[lanes, R]`
    ///
    /// # Numerics
    /// `ℓ`, `a`, `m` and the state are f32 whatever the type of the activations.
    fn rg_lru(
        &self,
        x: &Self::Tensor,
        gate_a: &Self::Tensor,
        gate_x: &Self::Tensor,
        p: &Self::Tensor,
        state: &Self::Tensor,
    ) -> (Self::Tensor, Self::Tensor);

    /// [`Backend::rg_lru`] with its gates' projections before it, as for
    /// [`Backend::block_diagonal`], and a product after it: `times ⊙ h`, `[N, R]`.
    fn gated_rg_lru(
        &self,
        x: &Self::Tensor,
        [gate_a, gate_x]: [[&Self::Tensor; 2]; 2],
        p: &Self::Tensor,
        times: &Self::Tensor,
        state: &Self::Tensor,
    ) -> (Self::Tensor, Self::Tensor) {
        gated_rg_lru_in_parts(self, x, [gate_a, gate_x], p, times, state)
    }

    /// Local multi-query attention, rotary embedding included; returns the next keys and values.
    ///
    /// Query `q` sees keys `q - W ..= q` of its own session. The first `rotary_dims` of each head
    /// are rotated by `position · 10000^(-2j / rotary_dims)`, dimension `j` paired with
    /// `j + rotary_dims / 2`; keys are kept rotated.
    ///
    /// # Shapes
    /// - `q` and the result: `[N, H·d]`; `k`, `v`: `[N, d]`
    /// - `keys`, `values`: `[lanes, W+1, d]`, the key of position `p` in row `p mod (W+1)`
    fn local_attention(
        &self,
        dims: AttentionDims,
        qkv: [&Self::Tensor; 3],
        keys: &Self::Tensor,
        values: &Self::Tensor,
    ) -> (Self::Tensor, [Self::Tensor; 2]);
}

/// What follows a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    Gelu,
    /// `c · tanh(y / c)`
    SoftCap(f32),
}

/// What follows a product in other operations.
pub fn then_in_parts<B: Backend + ?Sized>(backend: &B, y: &B::Tensor, then: Then) -> B::Tensor {
    match then {
        Then::Gelu => backend.gelu(y),
        Then::SoftCap(cap) => backend.scale(&backend.tanh(&backend.scale(y, cap.recip())), cap),
    }
}

/// A tensor whose norm is what is asked for: the norm itself need not be anywhere.
#[derive(Clone, Debug)]
pub struct Normed<T> {
    /// `[N, D]`
    pub x: T,
    /// `[D]`
    pub weight: T,
    pub epsilon: f32,
}

impl<T> Normed<T> {
    /// See [`Backend::rms_norm`].
    pub fn tensor<B: Backend<Tensor = T> + ?Sized>(&self, backend: &B) -> T {
        backend.rms_norm(&self.x, &self.weight, self.epsilon)
    }
}

/// [`Backend::linear_pair`] in other operations: what it is where nothing does it at once.
pub fn pair_in_parts<B: Backend + ?Sized>(
    backend: &B,
    z: &Normed<B::Tensor>,
    [gelu_weight, gelu_bias]: [&B::Tensor; 2],
    [weight, bias]: [&B::Tensor; 2],
) -> [B::Tensor; 2] {
    let z = z.tensor(backend);
    let first = backend.linear_then(&z, gelu_weight, Some(gelu_bias), Then::Gelu);
    [first, backend.linear(&z, weight, Some(bias))]
}

/// [`Backend::qkv`] in other operations.
pub fn qkv_in_parts<B: Backend + ?Sized>(
    backend: &B,
    z: &Normed<B::Tensor>,
    weights: [&B::Tensor; 3],
) -> [B::Tensor; 3] {
    let z = z.tensor(backend);
    weights.map(|weight| backend.linear(&z, weight, None))
}

/// [`Backend::gated_linear`] in other operations.
pub fn gated_in_parts<B: Backend + ?Sized>(
    backend: &B,
    z: &Normed<B::Tensor>,
    [gate, gate_bias]: [&B::Tensor; 2],
    [up, up_bias]: [&B::Tensor; 2],
) -> B::Tensor {
    let z = z.tensor(backend);
    let gate = backend.linear_then(&z, gate, Some(gate_bias), Then::Gelu);
    backend.mul(&gate, &backend.linear(&z, up, Some(up_bias)))
}

/// [`Backend::gated_rg_lru`] in other operations.
pub fn gated_rg_lru_in_parts<B: Backend + ?Sized>(
    backend: &B,
    x: &B::Tensor,
    gates: [[&B::Tensor; 2]; 2],
    p: &B::Tensor,
    times: &B::Tensor,
    state: &B::Tensor,
) -> (B::Tensor, B::Tensor) {
    let [gate_a, gate_x] = gates.map(|[weight, bias]| backend.block_diagonal(x, weight, bias));
    let (h, state) = backend.rg_lru(x, &gate_a, &gate_x, p, state);
    (backend.mul(&h, times), state)
}

/// What has to be known to make a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    pub shape: Vec<u64>,
    pub init: Init,
    pub role: Role,
}

/// What training does with a parameter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Learns it, and weight decay applies.
    Matrix,
    /// Learns it, and weight decay does not apply: recurrence, norms, gains and biases.
    Steering,
    /// Keeps a running average in it, which evaluation needs.
    Average,
}

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    /// This value everywhere.
    Constant(f64),
    /// Zero-mean normal with this standard deviation.
    Normal {
        std: f64,
    },
    /// `p = ln(1/ρ - 1)` where `ρ²` is uniform on `[ρ_min² + 1e-8, ρ_max² + 1e-8]`: what Google's
    /// code does, a factor 8 in the exponent away from the paper.
    RgLruCode {
        rho_min: f64,
        rho_max: f64,
    },
    /// `ρ⁸` uniform on `[a_min, a_max]`: Griffin §2.4.
    RgLruPaper {
        a_min: f64,
        a_max: f64,
    },
}

/// Extents of local multi-query attention.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AttentionDims {
    pub heads: u32,
    pub head_dim: u32,
    /// `W`: tokens before the query that it sees.
    pub window: u32,
    /// Leading dimensions of each head that are rotated; even.
    pub rotary_dims: u32,
}
