// Switches of libtorch that its Rust bindings do not offer, one of the C library, and the last error.
#include "shim.h"

#include <ATen/Context.h>
#include <dlfcn.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace aerie {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

}  // namespace aerie

extern "C" const char* aerie_last_error() { return aerie::last_error().c_str(); }

// Loads libtorch's half for GPUs, which registers itself. Programs are not linked with it, so that they start
// without it; it must be there before libtorch is asked for a GPU, or for a gradient, the first time.
extern "C" int aerie_load_cuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) return 0;
  aerie::last_error() = dlerror();
  return 1;
}

// Lets the C library keep what is freed for what is allocated next. Otherwise it gives large maps back to the system, and
// the next ones come page by page, each with a fault and zeros: a twelfth of a classifier's training on one thread.
extern "C" void aerie_keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kNever = -1;
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, kNever);
#endif
}

// Lets matrix products of f32 tensors round their operands to bfloat16; sums stay f32. GPUs have a kind of
// their own for this, TF32, of which a convolution is a matrix product, too.
extern "C" int aerie_set_matmul_bf16(int enabled) {
  try {
    at::globalContext().setFloat32Precision(
        at::Float32Backend::MKLDNN, at::Float32Op::MATMUL,
        enabled ? at::Float32Precision::BF16 : at::Float32Precision::IEEE);
    for (const auto op : {at::Float32Op::MATMUL, at::Float32Op::CONV}) {
      at::globalContext().setFloat32Precision(
          at::Float32Backend::CUDA, op,
          enabled ? at::Float32Precision::TF32 : at::Float32Precision::IEEE);
    }
    return 0;
  } catch (const std::exception& error) {
    aerie::last_error() = error.what();
    return 1;
  }
}
