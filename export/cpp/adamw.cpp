// One AdamW update of one parameter in one pass over its memory.
#include "shim.h"

#include <cmath>

namespace aerie {
namespace {

// Elements that one task updates.
constexpr int64_t kGrain = 1 << 15;

// What is the same for every element.
struct Rates {
  double beta1, beta2, epsilon;
  // Learning rate over the first moment's bias, and the second moment's bias.
  double step_size, bias2;
  // What the parameter is multiplied with, and the gradient, before all else.
  double keep, gradient_scale;
};

template <typename S>
AERIE_CLONES void update(S* __restrict__ parameter, const S* __restrict__ gradient,
                         S* __restrict__ m, S* __restrict__ v, int64_t count, const Rates& rates) {
  const S beta1 = rates.beta1, beta2 = rates.beta2, epsilon = rates.epsilon;
  const S step_size = rates.step_size, unbias2 = 1 / rates.bias2;
  const S keep = rates.keep, scale = rates.gradient_scale;
  for (int64_t i = 0; i < count; i++) {
    const S g = gradient[i] * scale;
    m[i] = beta1 * m[i] + (1 - beta1) * g;
    v[i] = beta2 * v[i] + (1 - beta2) * g * g;
    parameter[i] = keep * parameter[i] - step_size * m[i] / (std::sqrt(v[i] * unbias2) + epsilon);
  }
}

}  // namespace
}  // namespace aerie

extern "C" int aerie_adamw(const at::Tensor* parameter, const at::Tensor* gradient,
                           const at::Tensor* m, const at::Tensor* v, const double rates[7]) {
  try {
    const at::Tensor g = gradient->contiguous();
    TORCH_CHECK(parameter->is_contiguous() && m->is_contiguous() && v->is_contiguous(),
                "adamw: parameters and moments are contiguous");
    TORCH_CHECK(g.sizes() == parameter->sizes() && m->sizes() == parameter->sizes() &&
                    v->sizes() == parameter->sizes(),
                "adamw: gradient and moments have the parameter's shape");
    const aerie::Rates all{rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], rates[6]};
    AT_DISPATCH_FLOATING_TYPES(parameter->scalar_type(), "adamw", [&] {
      auto *p = parameter->data_ptr<scalar_t>(), *first = m->data_ptr<scalar_t>();
      auto* second = v->data_ptr<scalar_t>();
      const auto* slope = g.const_data_ptr<scalar_t>();
      at::parallel_for(0, g.numel(), aerie::kGrain, [&](int64_t lo, int64_t hi) {
        aerie::update<scalar_t>(p + lo, slope + lo, first + lo, second + lo, hi - lo, all);
      });
    });
    return 0;
  } catch (const std::exception& error) {
    aerie::last_error() = error.what();
    return 1;
  }
}
