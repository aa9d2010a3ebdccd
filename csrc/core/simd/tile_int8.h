// Tiles of int8 weights, in integers: a row of activations becomes 16-bit integers with one scale, a weight
// is widened to 16 bits, and two products a lane are added into 32 bits in one instruction.
//
// 512 products of at most 127 * 32767 fit 32 bits, so every 512 values of k the sum, which is exact, goes
// into a float32: the result depends on neither the tile nor the instruction set's order of additions.
// Rounding an activation to a step of max|x| / 32767 is nothing beside the step of max|w| / 127 of a weight.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>  // always inlined: emits no function (table.h)
#endif

#include <cstdint>
#include <cstring>

#include "tile.h"

namespace lrcn::simd {
namespace {

using VecS = int16_t __attribute__((vector_size(LRCN_VECTOR_BYTES)));
using VecUS = uint16_t __attribute__((vector_size(LRCN_VECTOR_BYTES)));

// sum[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]
inline VecI add_products(VecI sum, VecS a, VecS b) {
#if LRCN_VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
  return (VecI)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif LRCN_VECTOR_BYTES == 64 && defined(__AVX512BW__)
  return (VecI)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)a, (__m512i)b));
#elif LRCN_VECTOR_BYTES == 32 && defined(__AVX2__)
  sum += (VecI)_mm256_madd_epi16((__m256i)a, (__m256i)b);
  // GCC would add the products of two calls first, to shorten the chain, and spill the sums: 15 % at 5 rows.
  asm("" : "+x"(sum));
  return sum;
#elif LRCN_VECTOR_BYTES == 16 && defined(__SSE2__)
  return sum + (VecI)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const VecI low_a = (VecI)((VecU)a << 16) >> 16, low_b = (VecI)((VecU)b << 16) >> 16;
  return sum + low_a * low_b + ((VecI)a >> 16) * ((VecI)b >> 16);
#endif
}

struct Int8Tile {
  static constexpr int kValues = 4;
  static constexpr int kMaxRows = min(6, kSums / kVecs);
  // Three rows of two groups have too few registers left for the weights.
  static constexpr int groups(int rows) {
    return rows * kVecs * 4 <= kSums ? 4 : rows * kVecs * 3 <= kSums ? 2 : 1;
  }
  static constexpr int64_t kExact = 512;  // products that fit 32 bits
  static constexpr int64_t block(int) { return kExact; }

  template <int R, int S, bool kAhead>
  static void run(Groups in, const DotRows& x, int64_t first, int64_t begin, int64_t end, float* sums,
                  Ahead ahead) {
    for (int64_t k = begin; k < end; k += kExact) {
      const int64_t n = ((end - k < kExact ? end - k : kExact) + kValues - 1) / kValues;
      exact<R, S, kAhead>(in, x, first, k, n, sums, &ahead);
      in.words += n * kWordBytes;
    }
  }

 private:
  template <int R, int S, bool kAhead>
  static void exact(const Groups& in, const DotRows& x, int64_t first, int64_t k, int64_t n, float* sums,
                    Ahead* ahead) {
    constexpr int kN = S * kVecs;
    const char* words = in.words;
    const int64_t group_bytes = in.bytes;
    const int64_t kq = (x.k + kValues - 1) / kValues * kValues;
    VecI sum[R][kN];
    const int16_t* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      row[r] = x.q + (first + r) * kq + k;
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) sum[r][v] = VecI{};
    }

    for (int64_t i = 0; i < n; ++i) {
      // Bytes 0 and 2 of each word, then 1 and 3.
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        VecS w[kN];
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) {
          VecUS bits;
          std::memcpy(&bits, words + (v / kVecs) * group_bytes + (v % kVecs) * sizeof(Vec), sizeof bits);
          w[v] = (VecS)(odd ? bits : bits << 8) >> 8;
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          int32_t pair;
          std::memcpy(&pair, row[r] + kValues * i + 2 * odd, sizeof pair);
          const VecS pairs = (VecS)(VecI{} + pair);
#pragma GCC unroll 16
          for (int v = 0; v < kN; ++v) sum[r][v] = add_products(sum[r][v], w[v], pairs);
        }
      }
      if constexpr (kAhead) ahead->prefetch<S>(group_bytes);
      words += kWordBytes;
    }

#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) {
        float* out = sums + r * kPanel + v * kLanes;
        const Vec scale = load(in.scales + v * kLanes) * x.scale[first + r];
        store(out, load(out) + __builtin_convertvector(sum[r][v], Vec) * scale);
      }
  }
};

void quantise(int64_t k, const float* x, int16_t* q, float* scale) {
  Vec largest{}, bad{};  // bad: NaN where a value is not finite, else 0
  for (int64_t i = 0; i < k; i += kLanes) {
    const Vec v = take(x + i, k - i);
    const Vec magnitude = (Vec)((VecI)v & INT32_MAX);
    largest = magnitude > largest ? magnitude : largest;
    bad += v * 0.0f;
  }
  const float max = fold_max(largest);
  *scale = max / 32767.0f + fold_sum(bad);
  const float inverse = max > 1e-30f ? 32767.0f / max : 0.0f;  // a row under 1e-30 is zero: no overflow
  for (int64_t i = 0; i < k; i += kLanes) {
    // Adding 1.5 * 2^23 rounds to nearest and leaves the integer in the low bits.
    const VecI rounded = (VecI)(take(x + i, k - i) * inverse + 12582912.0f);
    int32_t value[kLanes];
    std::memcpy(value, &rounded, sizeof rounded);
    for (int j = 0; j < kLanes && i + j < k; j += 4) {
      const int16_t word[] = {static_cast<int16_t>(value[j]), static_cast<int16_t>(value[j + 2]),
                              static_cast<int16_t>(value[j + 1]), static_cast<int16_t>(value[j + 3])};
      std::memcpy(q + i + j, word, sizeof word);
    }
  }
}

}  // namespace
}  // namespace lrcn::simd
