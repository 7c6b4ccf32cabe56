// The tanh form of GELU, x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), as x sigmoid(2 …): one
// exponential instead of a hyperbolic tangent.
#include "math.h"
#include "shim.h"

namespace aerie {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Elements of one task.
constexpr int64_t kGrain = 1 << 14;
// 2 √(2/π).
constexpr double kSlope = 1.5957691216057308;
constexpr double kCubic = 0.044715;

template <typename S>
AERIE_CLONES void forward(const S* __restrict__ x, S* __restrict__ y, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    y[i] = x[i] * sigmoid(S(kSlope) * (x[i] + S(kCubic) * x[i] * x[i] * x[i]));
  }
}

template <typename S>
AERIE_CLONES void backward(const S* __restrict__ x, const S* __restrict__ grad,
                           S* __restrict__ d_x, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const S square = x[i] * x[i];
    const S s = sigmoid(S(kSlope) * x[i] * (1 + S(kCubic) * square));
    const S inner = S(kSlope) * (1 + 3 * S(kCubic) * square);
    d_x[i] = grad[i] * (s + x[i] * s * (1 - s) * inner);
  }
}

struct Gelu : torch::autograd::Function<Gelu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gelu", [&] {
      const auto* in = x.const_data_ptr<scalar_t>();
      auto* out = y.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t lo, int64_t hi) {
        aerie::forward<scalar_t>(in + lo, out + lo, hi - lo);
      });
    });
    ctx->save_for_backward({x});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor x = ctx->get_saved_variables()[0], grad = grads[0].contiguous();
    Tensor d_x = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "gelu_backward", [&] {
      const auto *in = x.const_data_ptr<scalar_t>(), *slope = grad.const_data_ptr<scalar_t>();
      auto* out = d_x.mutable_data_ptr<scalar_t>();
      at::parallel_for(0, x.numel(), kGrain, [&](int64_t lo, int64_t hi) {
        aerie::backward<scalar_t>(in + lo, slope + lo, out + lo, hi - lo);
      });
    });
    return {d_x};
  }
};

}  // namespace
}  // namespace aerie

extern "C" at::Tensor* aerie_gelu(const at::Tensor* x) {
  return aerie::guarded([&] { return aerie::Gelu::apply(x->contiguous()); });
}
