// Vectors of floats by compiler extension, and exp, sigmoid and tanh on them.
//
// For files compiled once per instruction set (table.h): everything is in an anonymous namespace, so that
// no two objects share a function.
#pragma once

#include <cstdint>
#include <cstring>

namespace lrcn::simd {
namespace {

using Vec = float __attribute__((vector_size(LRCN_VECTOR_BYTES)));
using VecI = int32_t __attribute__((vector_size(LRCN_VECTOR_BYTES)));
using VecU = uint32_t __attribute__((vector_size(LRCN_VECTOR_BYTES)));

constexpr int kLanes = sizeof(Vec) / sizeof(float);

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n < kLanes values, zeros after them.
inline Vec load_part(const float* p, int64_t n) {
  Vec v{};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
}

inline void store_part(float* p, Vec v, int64_t n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

// load or load_part, store or store_part: n values exist, perhaps more than kLanes.
inline Vec take(const float* p, int64_t n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}

inline void put(float* p, Vec v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  store_part(p, v, n);
}

// Lanes are folded by halves, so the order of the additions is fixed.
inline float fold_max(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i + half] > lane[i] ? lane[i + half] : lane[i];
  return lane[0];
}

inline float fold_sum(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// exp(x) = 2^n * exp(r) with n = round(x / ln 2), so |r| <= ln(2) / 2. Taylor to r^7 leaves a remainder
// under r^8 / 8! = 6e-9: below float rounding. Overflows to infinity and underflows through the
// subnormals to 0; NaN stays NaN.
inline Vec exp_approx(Vec x) {
  // Past these, the result is infinity or 0 anyway. NaN compares false twice and goes through.
  const Vec low = Vec{} - 104.0f, high = Vec{} + 89.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;

  // Adding 1.5 * 2^23 shifts the fraction out of the mantissa: round-to-nearest in two adds. ln 2 is
  // split so that n * (its high part) is exact.
  constexpr float kRound = 12582912.0f;
  const Vec n = (x * 1.44269504f + kRound) - kRound;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;

  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;

  // 2^n in two factors: n reaches 128 and -150, one float's exponent only 127 and -126.
  const VecI exponent = __builtin_convertvector(n, VecI);
  const VecI half = exponent >> 1;
  const VecI a = (half + 127) << 23, b = (exponent - half + 127) << 23;
  return p * (Vec)a * (Vec)b;  // the same bits, read as float
}

inline Vec sigmoid(Vec x) {
  return 1.0f / (1.0f + exp_approx(-x));
}

// 1 - 2 / (exp(2|x|) + 1) loses its leading digits near 0, so |x| < 0.625 takes x + x^3 q(x^2), with q
// the Chebyshev fit of degree 4: relative error 1.9e-8.
inline Vec tanh_approx(Vec x) {
  const VecI sign = (VecI)x & INT32_MIN;
  const Vec magnitude = (Vec)((VecI)x & INT32_MAX);
  const Vec large = 1.0f - 2.0f / (exp_approx(magnitude + magnitude) + 1.0f);

  const Vec square = magnitude * magnitude;
  Vec q = square * -0.0061049457f + 0.02100364f;
  q = q * square - 0.0538525f;
  q = q * square + 0.13332783f;
  q = q * square - 0.33333328f;
  const Vec small = magnitude + magnitude * (square * q);
  return (Vec)((VecI)(magnitude < 0.625f ? small : large) | sign);
}

}  // namespace
}  // namespace lrcn::simd
