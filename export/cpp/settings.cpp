// Switches of libtorch that its Rust bindings do not offer, and the last error.
#include "shim.h"

#include <ATen/Context.h>

namespace aerie {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

}  // namespace aerie

extern "C" const char* aerie_last_error() { return aerie::last_error().c_str(); }

// Lets matrix products of f32 tensors round their operands to bfloat16; sums stay f32.
extern "C" int aerie_set_matmul_bf16(int enabled) {
  try {
    at::globalContext().setFloat32Precision(
        at::Float32Backend::MKLDNN, at::Float32Op::MATMUL,
        enabled ? at::Float32Precision::BF16 : at::Float32Precision::IEEE);
    return 0;
  } catch (const std::exception& error) {
    aerie::last_error() = error.what();
    return 1;
  }
}
