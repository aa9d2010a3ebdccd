// Tiles of bfloat16 weights where one instruction multiplies pairs of bfloat16: the activations are rounded
// to bfloat16 too, and two products a lane are added to a float32.
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>  // always inlined: emits no function (table.h)
#endif

#include <cstdint>
#include <cstring>

#include "tile.h"

namespace lrcn::simd {
namespace {

// sum[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1], the even elements being the low halves.
inline Vec add_pairs(Vec sum, VecU a, VecU b) {
#if defined(__AVX512BF16__)
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  return sum + (Vec)(a << 16) * (Vec)(b << 16) + (Vec)(a & 0xffff0000u) * (Vec)(b & 0xffff0000u);
#endif
}

struct BFloat16Tile {
  static constexpr int kValues = 2;
  static constexpr int kMaxRows = min(6, kSums / kVecs);
  static constexpr int groups(int rows) { return groups_that_fit(rows); }
  static constexpr int64_t block(int groups) { return 768 / groups; }  // 24 KB, as in float32
  static constexpr int64_t kWidensFrom = 0;

  template <int R, int S, int kAhead>
  static void run(const Groups& in, const DotRows& x, int64_t first, int64_t begin, int64_t end, float* sums,
                  Ahead ahead) {
    constexpr int kN = S * kVecs;
    const char* words = in.words;
    Vec sum[R][kN];
    const char* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      row[r] = x.q + (first + r) * x.q_bytes;
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) sum[r][v] = load(sums + r * kPanel + v * kLanes);
    }
    for (int64_t k = begin; k < end; k += kValues) {
      VecU w[kN];
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v)
        std::memcpy(&w[v], words + (v / kVecs) * in.bytes + (v % kVecs) * sizeof(Vec), sizeof(Vec));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        uint32_t pair;
        std::memcpy(&pair, row[r] + k * sizeof(int16_t), sizeof pair);
        const VecU pairs = VecU{} + pair;
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) sum[r][v] = add_pairs(sum[r][v], w[v], pairs);
      }
      if constexpr (kAhead > 0) ahead.prefetch<S, kAhead>();
      words += kWordBytes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) store(sums + r * kPanel + v * kLanes, sum[r][v]);
  }
};

void round_bfloat16(int64_t k, const float* x, int16_t* q) {
  for (int64_t i = 0; i < k; i += kLanes) {
    const Vec value = take(x + i, k - i);
    const VecU bits = (VecU)value, nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const VecU rounded = value != value ? bits >> 16 | 0x40u : nearest;  // a NaN stays one
    for (int j = 0; j < kLanes && i + j < k; ++j) q[i + j] = static_cast<int16_t>(rounded[j]);
  }
  if (k % 2 == 1) q[k] = 0;
}

}  // namespace
}  // namespace lrcn::simd
