// Cross entropy through the tied head without ever holding all logits: rows go through the head in
// chunks, and each chunk's share of the gradients is made while its probabilities are at hand.
#include "shim.h"

#include <algorithm>

namespace aerie {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows whose logits exist at one time.
constexpr int64_t kChunkRows = 512;

struct CrossEntropy : torch::autograd::Function<CrossEntropy> {
  // The sum over rows of -log softmax(z)[target], where z = x tableᵀ, or c tanh(x tableᵀ / c) if the
  // cap c is above zero. In f64, so that many rows add up without loss.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& table,
                        const Tensor& targets, double cap) {
    at::AutoDispatchBelowADInplaceOrView below;
    const bool differentiated = x.requires_grad() || table.requires_grad();
    const int64_t rows = x.size(0);
    Tensor total = at::zeros({}, x.options().dtype(at::kDouble));
    Tensor d_x = differentiated ? at::empty_like(x) : Tensor();
    Tensor d_table = differentiated ? at::zeros_like(table) : Tensor();
    for (int64_t begin = 0; begin < rows; begin += kChunkRows) {
      const int64_t count = std::min(kChunkRows, rows - begin);
      const Tensor x_part = x.narrow(0, begin, count);
      const Tensor target = targets.narrow(0, begin, count).unsqueeze(1);
      Tensor z = at::mm(x_part, table.t());
      if (0 < cap) z.div_(cap).tanh_().mul_(cap);
      Tensor log_p = at::log_softmax(z, 1);
      total.sub_(log_p.gather(1, target).sum(at::kDouble));
      if (!differentiated) continue;
      Tensor d_z = log_p.exp_();
      d_z.scatter_add_(1, target, at::full_like(target, -1, d_z.options()));
      if (0 < cap) d_z.mul_(1 - (z / cap).square_());
      d_x.narrow(0, begin, count).copy_(at::mm(d_z, table));
      d_table.addmm_(d_z.t(), x_part);
    }
    if (differentiated) ctx->save_for_backward({d_x, d_table});
    return total;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor factor = grads[0].to(saved[0].scalar_type());
    return {saved[0] * factor, saved[1] * factor, Tensor(), Tensor()};
  }
};

}  // namespace
}  // namespace aerie

extern "C" at::Tensor* aerie_cross_entropy(const at::Tensor* x, const at::Tensor* table,
                                           const at::Tensor* targets, double cap) {
  return aerie::guarded([&] {
    TORCH_CHECK(x->dim() == 2 && table->dim() == 2 && x->size(1) == table->size(1),
                "cross_entropy: x is [N, D] and the table [V, D]");
    TORCH_CHECK(targets->dim() == 1 && targets->size(0) == x->size(0),
                "cross_entropy: the targets are [N]");
    return aerie::CrossEntropy::apply(*x, *table, *targets, cap);
  });
}
