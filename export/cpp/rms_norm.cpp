// Root-mean-square normalisation, y = x / sqrt(mean(x²) + epsilon) (1 + w), with its backward.
#include "shim.h"

#include <cmath>

namespace aerie {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of one task; fixed, so that sums over rows do not depend on the number of threads.
constexpr int64_t kTaskRows = 64;
// Partial sums of a row: as many as the widest registers hold, so that the loop vectorizes.
constexpr int64_t kLanes = 16;

// Σ f(i) for i in 0..count.
template <typename S, typename F>
inline __attribute__((always_inline)) S sum(int64_t count, const F& f) {
  S lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; lane++) lanes[lane] += f(i + lane);
  }
  S total = 0;
  for (; i < count; i++) total += f(i);
  for (const S lane : lanes) total += lane;
  return total;
}

template <typename S>
AERIE_CLONES void forward_rows(const S* __restrict__ x, const S* __restrict__ w, S* __restrict__ y,
                               S* __restrict__ scale, int64_t rows, int64_t width, S epsilon) {
  for (int64_t row = 0; row < rows; row++, x += width, y += width) {
    const S squares = sum<S>(width, [&](int64_t i) { return x[i] * x[i]; });
    scale[row] = 1 / std::sqrt(squares / width + epsilon);
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * scale[row] * (1 + w[i]);
  }
}

// `d_w` `[D]` is zero on entry and receives the sum over these rows alone.
template <typename S>
AERIE_CLONES void backward_rows(const S* __restrict__ x, const S* __restrict__ w,
                                const S* __restrict__ scale, const S* __restrict__ grad,
                                S* __restrict__ d_x, S* __restrict__ d_w, int64_t rows,
                                int64_t width) {
  for (int64_t row = 0; row < rows; row++, x += width, grad += width, d_x += width) {
    const S s = scale[row];
    const S dot = sum<S>(width, [&](int64_t i) { return grad[i] * (1 + w[i]) * x[i]; });
    const S pull = dot * s * s * s / width;
    for (int64_t i = 0; i < width; i++) {
      d_x[i] = s * grad[i] * (1 + w[i]) - pull * x[i];
      d_w[i] += grad[i] * x[i] * s;
    }
  }
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& w, double epsilon) {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t rows = x.size(0), width = x.size(1);
    Tensor y = at::empty_like(x), scale = at::empty({rows}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm", [&] {
      at::parallel_for(0, rows, kTaskRows, [&](int64_t lo, int64_t hi) {
        forward_rows<scalar_t>(x.const_data_ptr<scalar_t>() + lo * width,
                               w.const_data_ptr<scalar_t>(),
                               y.mutable_data_ptr<scalar_t>() + lo * width,
                               scale.mutable_data_ptr<scalar_t>() + lo, hi - lo, width, epsilon);
      });
    });
    ctx->save_for_backward({x, w, scale});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &scale = saved[2];
    const Tensor grad = grads[0].contiguous();
    const int64_t rows = x.size(0), width = x.size(1);
    const int64_t tasks = (rows + kTaskRows - 1) / kTaskRows;
    Tensor d_x = at::empty_like(x), d_w = at::zeros({tasks, width}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "rms_norm_backward", [&] {
      at::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; task++) {
          const int64_t lo = task * kTaskRows, hi = std::min(rows, lo + kTaskRows);
          backward_rows<scalar_t>(
              x.const_data_ptr<scalar_t>() + lo * width, w.const_data_ptr<scalar_t>(),
              scale.const_data_ptr<scalar_t>() + lo, grad.const_data_ptr<scalar_t>() + lo * width,
              d_x.mutable_data_ptr<scalar_t>() + lo * width,
              d_w.mutable_data_ptr<scalar_t>() + task * width, hi - lo, width);
        }
      });
    });
    return {d_x, d_w.sum(0), Tensor()};
  }
};

}  // namespace
}  // namespace aerie

extern "C" at::Tensor* aerie_rms_norm(const at::Tensor* x, const at::Tensor* w, double epsilon) {
  return aerie::guarded([&] {
    TORCH_CHECK(x->dim() == 2 && w->dim() == 1 && w->size(0) == x->size(1),
                "rms_norm: x is [N, D] and the weight [D]");
    return aerie::RmsNorm::apply(x->contiguous(), w->contiguous(), epsilon);
  });
}
