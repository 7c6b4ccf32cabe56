// The short depthwise causal convolution over packed segments, with its backward.
#include "shim.h"

namespace aerie {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Taps, the current token among them.
constexpr int64_t kTaps = 4;

// The input `lag` tokens before `t`: in the segment, in the state `[3, R]` before it, or nothing.
template <typename S>
inline S* lagged(S* x, S* state, int64_t t, int64_t lag, int64_t begin, int64_t width) {
  const int64_t at = t - lag - begin;
  if (at >= 0) return x + (t - lag) * width;
  return state ? state + (kTaps - 1 + at) * width : nullptr;
}

// y[t] = bias + Σ_s weight[3 - s] x[t - s].
template <typename S>
AERIE_CLONES void forward_tile(const S* __restrict__ x, const S* __restrict__ weight,
                               const S* __restrict__ bias, const S* __restrict__ state,
                               S* __restrict__ y, int64_t begin, int64_t end, int64_t width,
                               int64_t lo, int64_t hi) {
  for (int64_t t = begin; t < end; t++) {
    S* out = y + t * width;
    for (int64_t c = lo; c < hi; c++) out[c] = bias[c];
    for (int64_t lag = 0; lag < kTaps; lag++) {
      const S* in = lagged(x, state, t, lag, begin, width);
      if (!in) break;
      const S* w = weight + (kTaps - 1 - lag) * width;
      for (int64_t c = lo; c < hi; c++) out[c] += w[c] * in[c];
    }
  }
}

// `d_x` and `d_state` are zero on entry; `d_weight` `[4, R]` and `d_bias` are this segment's own.
template <typename S>
AERIE_CLONES void backward_tile(const S* __restrict__ x, const S* __restrict__ weight,
                                const S* __restrict__ state, const S* __restrict__ grad,
                                S* __restrict__ d_x, S* __restrict__ d_weight,
                                S* __restrict__ d_bias, S* __restrict__ d_state, int64_t begin,
                                int64_t end, int64_t width, int64_t lo, int64_t hi) {
  S sum[kTaps + 1][kChannelBlock] = {};
  for (int64_t t = begin; t < end; t++) {
    const S* g = grad + t * width;
    for (int64_t c = lo; c < hi; c++) sum[kTaps][c - lo] += g[c];
    for (int64_t lag = 0; lag < kTaps; lag++) {
      const S* in = lagged(x, state, t, lag, begin, width);
      if (!in) break;
      S* d_in = lagged(d_x, state ? d_state : nullptr, t, lag, begin, width);
      const S* w = weight + (kTaps - 1 - lag) * width;
      for (int64_t c = lo; c < hi; c++) {
        d_in[c] += w[c] * g[c];
        sum[kTaps - 1 - lag][c - lo] += in[c] * g[c];
      }
    }
  }
  for (int64_t c = lo; c < hi; c++) {
    for (int64_t tap = 0; tap < kTaps; tap++) d_weight[tap * width + c] = sum[tap][c - lo];
    d_bias[c] = sum[kTaps][c - lo];
  }
}

struct Conv1d : torch::autograd::Function<Conv1d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight,
                        const Tensor& bias, const Tensor& state, const Tensor& bounds,
                        const Tensor& fresh) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = at::empty_like(x);
    const int64_t width = x.size(1);
    const int64_t* bound = bounds.const_data_ptr<int64_t>();
    const bool* is_fresh = fresh.const_data_ptr<bool>();
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv1d", [&] {
      const auto* lags = state.const_data_ptr<scalar_t>();
      for_each_tile(fresh.size(0), width, [&](int64_t b, int64_t lo, int64_t hi) {
        forward_tile<scalar_t>(
            x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
            bias.const_data_ptr<scalar_t>(),
            is_fresh[b] ? nullptr : lags + b * (kTaps - 1) * width,
            y.mutable_data_ptr<scalar_t>(), bound[b], bound[b + 1], width, lo, hi);
      });
    });
    ctx->save_for_backward({x, weight, state, bounds, fresh});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &state = saved[2];
    const Tensor &bounds = saved[3], &fresh = saved[4];
    const Tensor grad = grads[0].contiguous();
    const int64_t segments = fresh.size(0), width = x.size(1);
    Tensor d_x = at::zeros_like(x), d_state = at::zeros_like(state);
    Tensor d_weight = at::empty({segments, kTaps, width}, x.options());
    Tensor d_bias = at::empty({segments, width}, x.options());
    const int64_t* bound = bounds.const_data_ptr<int64_t>();
    const bool* is_fresh = fresh.const_data_ptr<bool>();
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv1d_backward", [&] {
      for_each_tile(segments, width, [&](int64_t b, int64_t lo, int64_t hi) {
        const int64_t lags = b * (kTaps - 1) * width;
        backward_tile<scalar_t>(
            x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
            is_fresh[b] ? nullptr : state.const_data_ptr<scalar_t>() + lags,
            grad.const_data_ptr<scalar_t>(), d_x.mutable_data_ptr<scalar_t>(),
            d_weight.mutable_data_ptr<scalar_t>() + b * kTaps * width,
            d_bias.mutable_data_ptr<scalar_t>() + b * width,
            d_state.mutable_data_ptr<scalar_t>() + lags, bound[b], bound[b + 1], width, lo, hi);
      });
    });
    return {d_x, d_weight.sum(0), d_bias.sum(0), d_state, Tensor(), Tensor()};
  }
};

}  // namespace
}  // namespace aerie

extern "C" at::Tensor* aerie_conv1d(const at::Tensor* x, const at::Tensor* weight,
                                    const at::Tensor* bias, const at::Tensor* state,
                                    const at::Tensor* bounds, const at::Tensor* fresh) {
  return aerie::guarded([&] {
    TORCH_CHECK(x->dim() == 2, "conv1d: x is [N, R]");
    TORCH_CHECK(weight->dim() == 2 && weight->size(0) == aerie::kTaps &&
                    weight->size(1) == x->size(1) && bias->size(0) == x->size(1),
                "conv1d: the weight is [4, R] and the bias [R]");
    TORCH_CHECK(state->dim() == 3 && state->size(0) == fresh->size(0) &&
                    state->size(1) == aerie::kTaps - 1 && state->size(2) == x->size(1),
                "conv1d: the state is [B, 3, R]");
    TORCH_CHECK(bounds->size(0) == fresh->size(0) + 1, "conv1d: the bounds are [B + 1]");
    return aerie::Conv1d::apply(x->contiguous(), weight->contiguous(), bias->contiguous(),
                                state->contiguous(), *bounds, *fresh);
  });
}
