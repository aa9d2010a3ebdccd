// Vectors of floats by compiler extension, and exp, sigmoid and tanh on them.
//
// For files compiled once per instruction set (table.h): everything is in an anonymous namespace, so that
// no two objects share a function.
#pragma once

#if LRCN_VECTOR_BYTES == 64 && defined(__AVX512F__)
#include <immintrin.h>  // always inlined: emits no function (table.h)
#endif

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

// a / b to the last bit or the one before, for b from 2^-126 to 2^126 and NaN. A division of 16 lanes keeps
// the processor busy for 16 cycles (Emerald Rapids), this for 4: an approximation of 1 / b to 14 bits, a
// Newton step to 28, and the quotient corrected by its remainder.
inline Vec divide(Vec a, Vec b) {
#if LRCN_VECTOR_BYTES == 64 && defined(__AVX512F__)
  Vec inverse = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)b);  // GCC 12 warns of the one without a mask
  inverse += inverse * (1.0f - b * inverse);
  const Vec quotient = a * inverse;
  return quotient + inverse * (a - b * quotient);
#else
  return a / b;
#endif
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
  // exp(-x) = 2^n * exp(r): n from 126, past which the result is taken for 0, down to -126, where exp(-x) is.
  const Vec low = Vec{} - 87.0f, high = Vec{} + 87.5f;
  const VecI is_zero = x < low;
  x = is_zero ? low : x;
  x = x > high ? high : x;
  const auto [n, r] = reduce(-x);
  const Vec power = power_of_two(n), result = divide(Vec{} + 1.0f, expm1_reduced(r) * power + power + 1.0f);
  return is_zero ? Vec{} : result;
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
  return (Vec)((VecI)divide(m, m + 2.0f) | sign);
}

}  // namespace
}  // namespace lrcn::simd
