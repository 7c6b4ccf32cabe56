// The RG-LRU from the pre-activations of its gates to its hidden states, with its backward.
//
// Griffin eq. 1 to 4 (De et al. 2024, arXiv:2402.19427). The gates, the decay and the normaliser are
// made again in the backward pass instead of being kept: only inputs and hidden states are saved.
#include "math.h"
#include "shim.h"

namespace aerie {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// `c` in eq. 3: the exponent of the decay.
constexpr double kDecayExponent = 8.0;
// Bound on the derivative of the square root in the normaliser, as in Google's code: near a = 1 it
// would be infinite.
constexpr double kSqrtSlopeMax = 1000.0;

// What one channel of one token is made of.
template <typename S>
struct Gates {
  S r, i, a, m;
};

// `scale` is -8 softplus(p).
template <typename S>
inline Gates<S> gates(S gate_a, S gate_x, S scale) {
  const S r = sigmoid(gate_a), i = sigmoid(gate_x);
  const S log_a = scale * r;
  return {r, i, fast_exp(log_a), std::sqrt(one_minus_exp(2 * log_a))};
}

// One tile of one segment, forward in time. `h0` is null where the segment is fresh: its first token
// then takes the rule of position 0, a = 0 and m = 1.
template <typename S>
AERIE_CLONES void forward_tile(const S* __restrict__ x, const S* __restrict__ gate_a,
                               const S* __restrict__ gate_x, const S* __restrict__ scale,
                               const S* __restrict__ h0, S* __restrict__ h, int64_t begin,
                               int64_t end, int64_t width, int64_t lo, int64_t hi) {
  S state[kChannelBlock];
  for (int64_t c = lo; c < hi; c++) state[c - lo] = h0 ? h0[c] : S(0);
  int64_t t = begin;
  if (!h0 && begin < end) {
    const int64_t row = begin * width;
    for (int64_t c = lo; c < hi; c++) {
      state[c - lo] = sigmoid(gate_x[row + c]) * x[row + c];
      h[row + c] = state[c - lo];
    }
    t++;
  }
  for (; t < end; t++) {
    const int64_t row = t * width;
#pragma GCC ivdep
    for (int64_t c = lo; c < hi; c++) {
      const Gates<S> g = gates(gate_a[row + c], gate_x[row + c], scale[c]);
      state[c - lo] = g.a * state[c - lo] + g.m * g.i * x[row + c];
      h[row + c] = state[c - lo];
    }
  }
}

// Pointers of the backward pass; all but `scale`, `h0`, `d_scale` and `d_h0` are `[N, R]`.
template <typename S>
struct Backward {
  const S *x, *gate_a, *gate_x, *scale, *h0, *h, *grad;
  S *d_x, *d_gate_a, *d_gate_x, *d_scale, *d_h0;
};

// One tile of one segment, backward in time. `d_scale` receives the sum over this segment alone, so
// that the order of addition does not depend on the number of threads.
template <typename S>
AERIE_CLONES void backward_tile(const Backward<S>& p, bool fresh, int64_t begin, int64_t end,
                                int64_t width, int64_t lo, int64_t hi) {
  S delta[kChannelBlock] = {}, sum[kChannelBlock] = {};
  for (int64_t t = end - 1; t >= begin; t--) {
    const int64_t row = t * width;
    if (fresh && t == begin) {
      for (int64_t c = lo; c < hi; c++) {
        const S d = p.grad[row + c] + delta[c - lo], i = sigmoid(p.gate_x[row + c]);
        p.d_x[row + c] = d * i;
        p.d_gate_x[row + c] = d * p.x[row + c] * i * (1 - i);
        p.d_gate_a[row + c] = 0;
        delta[c - lo] = 0;
      }
      break;
    }
    const S* before = t == begin ? p.h0 : p.h + row - width;
    const S *x = p.x + row, *grad = p.grad + row, *gate_a = p.gate_a + row, *gate_x = p.gate_x + row;
    S *d_x = p.d_x + row, *d_gate_a = p.d_gate_a + row, *d_gate_x = p.d_gate_x + row;
    const S* scale = p.scale;
#pragma GCC ivdep
    for (int64_t c = lo; c < hi; c++) {
      const Gates<S> g = gates(gate_a[c], gate_x[c], scale[c]);
      const S d = grad[c] + delta[c - lo];
      const S steep = S(0.5) / g.m;
      const S slope = steep < S(kSqrtSlopeMax) ? steep : S(kSqrtSlopeMax);
      const S d_log_a = d * g.a * (before[c] - 2 * g.a * slope * g.i * x[c]);
      d_gate_a[c] = d_log_a * scale[c] * g.r * (1 - g.r);
      d_gate_x[c] = d * g.m * x[c] * g.i * (1 - g.i);
      d_x[c] = d * g.m * g.i;
      sum[c - lo] += d_log_a * g.r;
      delta[c - lo] = g.a * d;
    }
  }
  for (int64_t c = lo; c < hi; c++) {
    p.d_scale[c] = sum[c - lo];
    p.d_h0[c] = delta[c - lo];
  }
}

struct RgLru : torch::autograd::Function<RgLru> {
  // `scale` `[R]` is -8 softplus(p): its gradient flows on through libtorch's own softplus.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& gate_a,
                        const Tensor& gate_x, const Tensor& scale, const Tensor& h0,
                        const Tensor& bounds, const Tensor& fresh) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor h = at::empty_like(x);
    const int64_t width = x.size(1);
    const int64_t* bound = bounds.const_data_ptr<int64_t>();
    const bool* is_fresh = fresh.const_data_ptr<bool>();
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rg_lru", [&] {
      const auto* h0_data = h0.const_data_ptr<scalar_t>();
      for_each_tile(fresh.size(0), width, [&](int64_t b, int64_t lo, int64_t hi) {
        forward_tile<scalar_t>(
            x.const_data_ptr<scalar_t>(), gate_a.const_data_ptr<scalar_t>(),
            gate_x.const_data_ptr<scalar_t>(), scale.const_data_ptr<scalar_t>(),
            is_fresh[b] ? nullptr : h0_data + b * width, h.mutable_data_ptr<scalar_t>(), bound[b],
            bound[b + 1], width, lo, hi);
      });
    });
    ctx->save_for_backward({x, gate_a, gate_x, scale, h0, h, bounds, fresh});
    return h;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &gate_a = saved[1], &gate_x = saved[2], &scale = saved[3];
    const Tensor &h0 = saved[4], &h = saved[5], &bounds = saved[6], &fresh = saved[7];
    const Tensor grad = grads[0].contiguous();
    Tensor d_x = at::empty_like(x), d_gate_a = at::empty_like(x), d_gate_x = at::empty_like(x);
    Tensor d_scale = at::empty_like(h0), d_h0 = at::empty_like(h0);
    const int64_t width = x.size(1);
    const int64_t* bound = bounds.const_data_ptr<int64_t>();
    const bool* is_fresh = fresh.const_data_ptr<bool>();
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rg_lru_backward", [&] {
      for_each_tile(fresh.size(0), width, [&](int64_t b, int64_t lo, int64_t hi) {
        const int64_t row = b * width;
        const Backward<scalar_t> pointers{
            x.const_data_ptr<scalar_t>(),          gate_a.const_data_ptr<scalar_t>(),
            gate_x.const_data_ptr<scalar_t>(),     scale.const_data_ptr<scalar_t>(),
            h0.const_data_ptr<scalar_t>() + row,   h.const_data_ptr<scalar_t>(),
            grad.const_data_ptr<scalar_t>(),       d_x.mutable_data_ptr<scalar_t>(),
            d_gate_a.mutable_data_ptr<scalar_t>(), d_gate_x.mutable_data_ptr<scalar_t>(),
            d_scale.mutable_data_ptr<scalar_t>() + row,
            d_h0.mutable_data_ptr<scalar_t>() + row};
        backward_tile<scalar_t>(pointers, is_fresh[b], bound[b], bound[b + 1], width, lo, hi);
      });
    });
    return {d_x, d_gate_a, d_gate_x, d_scale.sum(0), d_h0, Tensor(), Tensor()};
  }
};

}  // namespace
}  // namespace aerie

extern "C" at::Tensor* aerie_rg_lru(const at::Tensor* x, const at::Tensor* gate_a,
                                    const at::Tensor* gate_x, const at::Tensor* p,
                                    const at::Tensor* h0, const at::Tensor* bounds,
                                    const at::Tensor* fresh) {
  return aerie::guarded([&] {
    TORCH_CHECK(x->dim() == 2 && gate_a->sizes() == x->sizes() && gate_x->sizes() == x->sizes(),
                "rg_lru: x and its gates are [N, R]");
    TORCH_CHECK(p->dim() == 1 && p->size(0) == x->size(1), "rg_lru: p is [R]");
    TORCH_CHECK(h0->dim() == 2 && h0->size(0) == fresh->size(0) && h0->size(1) == x->size(1),
                "rg_lru: the state is [B, R]");
    TORCH_CHECK(bounds->size(0) == fresh->size(0) + 1, "rg_lru: the bounds are [B + 1]");
    const at::Tensor scale = at::softplus(*p) * -aerie::kDecayExponent;
    return aerie::RgLru::apply(x->contiguous(), gate_a->contiguous(), gate_x->contiguous(), scale,
                               h0->contiguous(), *bounds, *fresh);
  });
}
