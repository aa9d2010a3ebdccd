// What the decoding kernels share: 32 dot products of a warp, orders as integers, warp reductions.
#pragma once

#include <cstring>

#include "decode.h"
#include "lstm_common.cuh"

namespace lrcn::cuda {

constexpr float kLowest = -3.402823466e38f;  // of float
constexpr int32_t kNoWord = 0x7fffffff;      // an entry of a list of words that is none
constexpr int kDecodeColumns = 4;            // weight rows of one warp

LRCN_DEVICE float minus_infinity() {
  return -HUGE_VALF;
}
LRCN_DEVICE bool is_finite(float x) {
  return x - x == 0.0f;
}

LRCN_DEVICE bool all_done(const DecodeRows& rows) {
  return rows.progress->finished >= rows.searches;
}
LRCN_DEVICE int64_t number_of(const DecodeStep& step) {
  return step.progress->base + step.offset;
}
LRCN_DEVICE bool is_live(const DecodeRows& rows, int64_t row) {
  return row < rows.count && (rows.tokens == nullptr || rows.tokens[row] >= 0);
}

// Four consecutive numbers, loaded together.
struct alignas(16) Four32 {
  uint32_t word[4];
};
struct alignas(8) Four16 {
  uint32_t word[2];
};
LRCN_DEVICE void load_four(const float* p, float (&to)[4]) {
  const Four32 words = *reinterpret_cast<const Four32*>(p);
  std::memcpy(to, &words, sizeof words);
}
template <typename T>
LRCN_DEVICE void load_four(const T* p, float (&to)[4]) {
  const Four16 words = *reinterpret_cast<const Four16*>(p);
  T narrow[4];
  std::memcpy(static_cast<void*>(narrow), &words, sizeof words);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = to_float(narrow[i]);
}

// sum[4 r + j] += this lane's part of x[r] . w[j], with `size` a multiple of 4: lane l takes the numbers
// 4 l .. 4 l + 3 of every 128. A weight is loaded once for all rows; rows come from the first-level cache,
// where the block's other warps find them too.
template <typename T>
LRCN_DEVICE void accumulate(float (&sum)[kDecodeRows * kDecodeColumns], const T* const (&w)[kDecodeColumns],
                            const float* const (&x)[kDecodeRows], int64_t size) {
#pragma unroll 1  // twice would spill
  for (int64_t k = lane_index() * 4; k < size; k += 128) {
    float weight[kDecodeColumns][4];
#pragma unroll
    for (int j = 0; j < kDecodeColumns; ++j) load_four(w[j] + k, weight[j]);
#pragma unroll
    for (int r = 0; r < kDecodeRows; ++r) {
      float value[4];
      load_four(x[r] + k, value);
#pragma unroll
      for (int j = 0; j < kDecodeColumns; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[r * kDecodeColumns + j] += weight[j][i] * value[i];
    }
  }
}

// The sum of value[l] over the lanes, on lane l: halves change sides, 31 shuffles in all. Each sum is added
// up in the same tree. (A recursion, because an array stays in registers only if all indices are constants.)
template <int kHalf = 16>
LRCN_DEVICE float collect(float (&value)[32]) {
  const bool upper = (lane_index() & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float keep = upper ? value[i + kHalf] : value[i], give = upper ? value[i] : value[i + kHalf];
    value[i] = keep + shuffle_xor(give, kHalf);
  }
  if constexpr (kHalf > 1)
    return collect<kHalf / 2>(value);
  else
    return value[0];
}

template <typename A>
LRCN_DEVICE A warp_sum(A x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x += shuffle_xor(x, bits);
  return x;
}
LRCN_DEVICE float warp_max(float x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) x = std::fmax(x, shuffle_xor(x, bits));
  return x;
}
LRCN_DEVICE uint64_t warp_max(uint64_t x) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const uint64_t other = shuffle_xor(x, bits);
    x = other > x ? other : x;
  }
  return x;
}

// A row's largest logit, and the logarithm of the sum of exp(logit - max), from those of its parts: a warp's.
struct RowTotal {
  float max, log_sum;
};
LRCN_DEVICE RowTotal row_total(const float* part_max, const float* part_sum, int64_t parts) {
  float max = kLowest;
  for (int64_t p = lane_index(); p < parts; p += 32) max = std::fmax(max, part_max[p]);
  max = warp_max(max);
  double sum = 0;
  for (int64_t p = lane_index(); p < parts; p += 32)
    sum += static_cast<double>(part_sum[p]) * std::exp(static_cast<double>(part_max[p]) - max);
  return {max, static_cast<float>(std::log(warp_sum(sum)))};
}

LRCN_DEVICE float penalised(float x, float repetition_penalty) {
  return x < 0 ? x * repetition_penalty : x / repetition_penalty;
}

// (value, larger first; index, lower first) as an integer, larger first. 0 comes after everything. Both
// zeros are one value; NaN is none.
LRCN_DEVICE uint64_t order_of(float value, int32_t index) {
  const float one_zero = value + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &one_zero, sizeof bits);
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
LRCN_DEVICE float value_of(uint64_t order) {
  uint32_t bits = static_cast<uint32_t>(order >> 32);
  bits = (bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
LRCN_DEVICE int32_t index_of(uint64_t order) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(order));
}

// f(T{}) with T the C++ type of the weights.
template <typename F>
void with_weight_type(Dtype type, F&& f) {
#ifndef LRCN_SIMT_MUTANT  // a bug in the common source shows in one type
  if (type == Dtype::kFloat16) return f(f16{});
  if (type == Dtype::kBFloat16) return f(bf16{});
#endif
  f(float{});
}

}  // namespace lrcn::cuda
