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

// exp(x) = 2^n * exp(r) with n = round(x / ln 2), so |r| <= ln(2) / 2.
struct Reduced {
  VecI n;
  Vec r;
};

inline Reduced reduce(Vec x) {
  // Adding 1.5 * 2^23 shifts the fraction out of the mantissa: round-to-nearest in two adds, with the integer
  // in the low bits. ln 2 is split so that n * (its high part) is exact.
  constexpr float kRound = 12582912.0f;
  const Vec shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  return {(VecI)shifted - (VecI)(Vec{} + kRound), (x - n * 0.693145752f) - n * 1.42860677e-6f};
}

// exp(r) - 1 for |r| <= ln(2) / 2: r + r^2 times the minimax fit of degree 4, relative error of
// exp(r) 3.1e-9.
inline Vec expm1_reduced(Vec r) {
  Vec p = r * 0.00138145986f + 0.00836871696f;
  p = p * r + 0.0416683881f;
  p = p * r + 0.166665206f;
  p = p * r + 0.499999934f;
  return p * (r * r) + r;
}

// 2^n for n in [-126, 127]; 0 at -127.
inline Vec power_of_two(VecI n) {
  return (Vec)((n + 127) << 23);  // the same bits, read as float
}

// Overflows to infinity and underflows through the subnormals to 0; NaN stays NaN.
inline Vec exp_approx(Vec x) {
  // Past these, the result is infinity or 0 anyway. NaN compares false twice and goes through.
  const Vec low = Vec{} - 104.0f, high = Vec{} + 89.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const auto [n, r] = reduce(x);
  // 2^n in two factors: n reaches 128 and -150, one float's exponent only 127 and -126.
  const VecI half = n >> 1;
  const Vec a = power_of_two(half);
  return (expm1_reduced(r) * a + a) * power_of_two(n - half);
}

inline Vec sigmoid(Vec x) {
  // exp(-x) as 2 * 2^(n-1) * exp(r): n from 128, where it is infinite and the result 0, down to -126, where
  // it is taken for 0.
  const Vec low = Vec{} - 89.0f, high = Vec{} + 87.5f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const auto [n, r] = reduce(-x);
  const Vec half = power_of_two(n - 1);
  return 1.0f / ((expm1_reduced(r) * half + half) * 2.0f + 1.0f);
}

// tanh(x) = m / (m + 2) with m = exp(2|x|) - 1 = 2^n * (exp(r) - 1) + (2^n - 1): small where x is small, and
// nothing is lost.
inline Vec tanh_approx(Vec x) {
  const VecI sign = (VecI)x & INT32_MIN;
  Vec magnitude = (Vec)((VecI)x & INT32_MAX);
  const Vec high = Vec{} + 16.0f;  // from 9.02 on the result is 1
  magnitude = magnitude > high ? high : magnitude;
  const auto [n, r] = reduce(magnitude + magnitude);
  const Vec power = power_of_two(n), m = expm1_reduced(r) * power + (power - 1.0f);
  return (Vec)((VecI)(m / (m + 2.0f)) | sign);
}

}  // namespace
}  // namespace lrcn::simd
