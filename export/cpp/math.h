// Elementary functions in arithmetic that vectorizes; f64 takes the C library's.
#pragma once

#include <cmath>
#include <cstdint>

namespace aerie {

// exp within 2 units in the last place of f32: x = n ln 2 + f, a polynomial in f, and n into the
// exponent. Arguments beyond ±87 are taken for ±87.
inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  const float n = std::nearbyintf(x * 1.44269504088896341f);
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * f + 1.3981999507e-3f;
  y = y * f + 8.3334519073e-3f;
  y = y * f + 4.1665795894e-2f;
  y = y * f + 1.6666665459e-1f;
  y = y * f + 5.0000001201e-1f;
  y = y * f * f + f + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return y * scale;
}
inline double fast_exp(double x) { return std::exp(x); }

// 1 - exp(x) for x <= 0 without cancellation: a series near zero, the plain form elsewhere.
inline float one_minus_exp(float x) {
  float series = 1.0f / 5040;
  series = series * x + 1.0f / 720;
  series = series * x + 1.0f / 120;
  series = series * x + 1.0f / 24;
  series = series * x + 1.0f / 6;
  series = series * x + 0.5f;
  series = series * x + 1.0f;
  return x > -0.5f ? -x * series : 1.0f - fast_exp(x);
}
inline double one_minus_exp(double x) { return -std::expm1(x); }

template <typename S>
inline S sigmoid(S x) {
  return S(1) / (S(1) + fast_exp(-x));
}

}  // namespace aerie
