// Tiles of int8 weights, in integers: rows of activations become 8-bit integers with a scale for every 128
// values, and four products a lane are added into 32 bits.
//
// A weight w, |w| <= 127, is stored as w + 128, since the instructions multiply bytes without a sign by bytes
// with one:
//     sum_k w[k] * q[k] = sum_k (w[k] + 128) * q[k] - 128 * sum_k q[k]
// and the last sum is one number for a row's block, whatever the output. Where pairs of products are added in
// 16 bits (AVX2, AVX-512 without VNNI), 2 * 255 * 64 is as much as fits, and |q| <= 64.
//
// The sum of a block is exact, and the blocks' sums are added in float32 in the order of k: the result of a
// row does not depend on the tile.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>  // always inlined: emits no function (table.h)
#endif

#include <cstdint>
#include <cstring>

#include "tile.h"

namespace lrcn::simd {
namespace {

#if LRCN_VECTOR_BYTES >= 32 && !defined(LRCN_DOT_BYTES)
constexpr float kLargestInt8 = 64.0f;
#else
constexpr float kLargestInt8 = 127.0f;
#endif

// sum[i] + the products of the four bytes of w[i], without a sign, and those of q[i], with one.
inline VecI add_products(VecI sum, VecI w, VecI q) {
#if LRCN_VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
  return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)q);
#elif LRCN_VECTOR_BYTES == 64 && defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)w, (__m512i)q);
  return sum + (VecI)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif LRCN_VECTOR_BYTES == 32 && defined(__AVX2__)
  sum += (VecI)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)w, (__m256i)q), _mm256_set1_epi16(1));
  // GCC would add the products of two calls first, to shorten the chain, and spill the sums.
  asm("" : "+x"(sum));
  return sum;
#elif LRCN_VECTOR_BYTES == 16 && defined(__SSE2__)
  const __m128i even_w = (__m128i)(w & 0x00ff00ff), odd_w = _mm_srli_epi16((__m128i)w, 8);
  const __m128i even_q = _mm_srai_epi16(_mm_slli_epi16((__m128i)q, 8), 8),
                odd_q = _mm_srai_epi16((__m128i)q, 8);
  return sum + (VecI)_mm_madd_epi16(even_w, even_q) + (VecI)_mm_madd_epi16(odd_w, odd_q);
#else
  for (int i = 0; i < 4; ++i) sum += ((w >> 8 * i) & 0xff) * (q << (24 - 8 * i) >> 24);
  return sum;
#endif
}

struct Int8Tile {
  static constexpr int kValues = 4;
  static constexpr int kMaxRows = min(6, kSums / kVecs);
  // Three rows of two groups leave no registers for the weights.
  static constexpr int groups(int rows) {
    return rows * kVecs * 4 <= kSums ? 4 : rows * kVecs * 3 <= kSums ? 2 : 1;
  }
  static constexpr int64_t block(int groups) { return 1536 / groups; }  // 24 KB, as in float32
  static constexpr int64_t kWidensFrom = 0;
  static_assert(1536 / 4 % kInt8Block == 0);

  template <int R, int S, int kAhead>
  static void run(const Groups& in, const DotRows& x, int64_t first, int64_t begin, int64_t end, float* sums,
                  Ahead ahead) {
    constexpr int kN = S * kVecs;
    const char* words = in.words;
    const int64_t group_bytes = in.bytes;
    const char* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) row[r] = x.q + (first + r) * x.q_bytes + begin;
    const Int8Scale* scales = x.scales + first * x.blocks + begin / kInt8Block;

    for (int64_t k = begin; k < end; k += kInt8Block, ++scales) {
      const int64_t left = end - k < kInt8Block ? end - k : kInt8Block;
      const char* const last = words + (left + kValues - 1) / kValues * kWordBytes;
      VecI sum[R][kN];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) sum[r][v] = VecI{} + scales[r * x.blocks].offset;

      for (; words < last; words += kWordBytes) {
        VecI w[kN];
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v)
          std::memcpy(&w[v], words + (v / kVecs) * group_bytes + (v % kVecs) * sizeof(Vec), sizeof(Vec));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          int32_t word;
          std::memcpy(&word, row[r], sizeof word);
          row[r] += kValues;
          const VecI q = VecI{} + word;
#pragma GCC unroll 16
          for (int v = 0; v < kN; ++v) sum[r][v] = add_products(sum[r][v], w[v], q);
        }
        if constexpr (kAhead > 0) ahead.prefetch<S, kAhead>();
      }

#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec scale = Vec{} + scales[r * x.blocks].scale;
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) {
          float* out = sums + r * kPanel + v * kLanes;
          store(out,
                load(out) + __builtin_convertvector(sum[r][v], Vec) * (scale * load(in.scales + v * kLanes)));
        }
      }
    }
  }
};

// The low bytes of the lanes.
inline void store_bytes(int8_t* q, VecU v) {
#if LRCN_VECTOR_BYTES == 32 && defined(__AVX2__)  // GCC takes 40 instructions for it
  const __m256i low = _mm256_shuffle_epi8((__m256i)v, _mm256_set1_epi32(0x0c080400));
  const __m256i eight = _mm256_permutevar8x32_epi32(low, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
  const int64_t bytes = _mm_cvtsi128_si64(_mm256_castsi256_si128(eight));
#else
  using Bytes = int8_t __attribute__((vector_size(kLanes)));
  const Bytes bytes = __builtin_convertvector(v, Bytes);
#endif
  std::memcpy(q, &bytes, sizeof bytes);
}

void quantise(int64_t k, const float* x, int8_t* q, Int8Scale* scales) {
  for (int64_t begin = 0; begin < k; begin += kInt8Block, ++scales) {
    const int64_t end = k - begin < kInt8Block ? k : begin + kInt8Block;
    Vec largest{}, bad{};  // bad: NaN where a value is not finite, else 0
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec v = take(x + i, end - i);
      const Vec magnitude = (Vec)((VecI)v & INT32_MAX);
      largest = magnitude > largest ? magnitude : largest;
      bad += v * 0.0f;
    }
    const float max = fold_max(largest);
    const float inverse = max > 1e-30f ? kLargestInt8 / max : 0.0f;  // 0 where it could overflow
    VecU total{};  // without a sign, like all below: what is not finite may overflow
    for (int64_t i = begin; i < end; i += kLanes) {
      // Adding 1.5 * 2^23 rounds to nearest and leaves the integer in the low bits.
      const VecU rounded = (VecU)(take(x + i, end - i) * inverse + 12582912.0f) - 0x4b400000u;
      total += rounded;
      store_bytes(q + i, rounded);
    }
    uint32_t sum = 0;
    for (int j = 0; j < kLanes; ++j) sum += total[j];
    *scales = {max / kLargestInt8 + fold_sum(bad), static_cast<int32_t>(-128u * sum)};
  }
}

}  // namespace
}  // namespace lrcn::simd
