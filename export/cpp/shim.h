// What the native operators share: errors cross into Rust as a message, results as an owned tensor.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <string>

#define AERIE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

namespace aerie {

// Channels that one task works on: a cache line of floats times four, so that no two tasks share one.
constexpr int64_t kChannelBlock = 64;

// The message of the last failure on this thread.
std::string& last_error();

// Segments of packed tokens as plain arrays: segment `b` is `[bounds[b], bounds[b + 1])`.
struct Segments {
  at::Tensor bounds;  // i64 [B + 1]
  at::Tensor fresh;   // bool [B]

  int64_t count() const { return fresh.size(0); }
};

// Runs `work(segment, first_channel, last_channel)` for every segment and channel block, in parallel.
template <typename Work>
void for_each_tile(int64_t segments, int64_t channels, const Work& work) {
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  at::parallel_for(0, segments * blocks, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t tile = lo; tile < hi; tile++) {
      const int64_t first = tile % blocks * kChannelBlock;
      work(tile / blocks, first, std::min(channels, first + kChannelBlock));
    }
  });
}

// Runs `make`, turning an exception into a null pointer and a message.
template <typename Make>
at::Tensor* guarded(const Make& make) {
  try {
    return new at::Tensor(make());
  } catch (const std::exception& error) {
    last_error() = error.what();
    return nullptr;
  }
}

}  // namespace aerie
