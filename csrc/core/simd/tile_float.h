// Tiles of float32 and bfloat16 weights: every weight becomes a float32, every sum is one in a register.
#pragma once

#include <cstdint>
#include <cstring>

#include "tile.h"

namespace lrcn::simd {
namespace {

template <WeightType>
struct Word;

template <>
struct Word<WeightType::kFloat32> {
  static constexpr int kValues = 1;
  static Vec value(VecU word, int) { return (Vec)word; }
};

template <>
struct Word<WeightType::kBFloat16> {
  static constexpr int kValues = 2;
  static Vec value(VecU word, int i) { return (Vec)(i == 0 ? word << 16 : word & 0xffff0000u); }
};

template <WeightType W>
struct FloatTile {
  static constexpr int kValues = Word<W>::kValues;
  // Unpacking bfloat16 takes the registers of a sixth row.
  static constexpr int kMaxRows = min(W == WeightType::kFloat32 ? 6 : 5, kSums / kVecs);
  // Nor is there room for it beside the sums of two groups of three rows: 10 % at 3 rows (Zen 3).
  static constexpr int groups(int rows) {
    return kValues > 1 && rows * kVecs * 2 == kSums ? 1 : groups_that_fit(rows);
  }
  // 24 KB in float32. 384 and its neighbours are alike; 128 and 1000 were 20 % slower on a Zen 3 core at 32
  // rows.
  static constexpr int64_t block(int groups) { return 384 / groups; }
  // 8 % at 32 and 48 rows (Emerald Rapids); at 16 the time that it takes is the time that it saves.
  static constexpr int64_t kWidensFrom = kValues > 1 && LRCN_VECTOR_BYTES == 64 ? 24 : 0;
  using Wide = FloatTile<WeightType::kFloat32>;

  template <int S>
  static Groups widened(const Groups& block, int64_t k, char* to) {
    const int64_t words = (k + kValues - 1) / kValues, bytes = words * kValues * kWordBytes;
    for (int s = 0; s < S; ++s) {
      const char* from = block.words + s * block.bytes;
      char* out = to + s * bytes;
      for (int64_t i = 0; i < words; ++i, from += kWordBytes)
        for (int value = 0; value < kValues; ++value, out += kWordBytes)
          for (int v = 0; v < kVecs; ++v) {
            VecU bits;
            std::memcpy(&bits, from + v * sizeof(Vec), sizeof bits);
            const Vec w = Word<W>::value(bits, value);
            std::memcpy(out + v * sizeof(Vec), &w, sizeof w);
          }
    }
    return {to, bytes, nullptr};
  }

  template <int R, int S, int kAhead>
  static void run(const Groups& in, const DotRows& x, int64_t first, int64_t begin, int64_t end, float* sums,
                  Ahead ahead) {
    constexpr int kN = S * kVecs;
    const char* words = in.words;
    const int64_t group_bytes = in.bytes;
    Vec sum[R][kN];
    const float* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      row[r] = x.x[first + r];
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) sum[r][v] = load(sums + r * kPanel + v * kLanes);
    }

    const auto add = [&](int64_t k, int values) __attribute__((always_inline)) {
      const auto word = [&](int v) {
        VecU bits;
        std::memcpy(&bits, words + (v / kVecs) * group_bytes + (v % kVecs) * sizeof(Vec), sizeof bits);
        return bits;
      };
      if constexpr (kValues > 1 && R * kN + 2 * kN + 1 > kRegisters) {
        // A word at a time: kN of them and their values would not fit the registers beside the sums.
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) {
          const VecU bits = word(v);
#pragma GCC unroll 4
          for (int i = 0; i < values; ++i) {
            const Vec w = Word<W>::value(bits, i);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[r][v] += row[r][k + i] * w;
          }
        }
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < values; ++i) {
          Vec w[kN];
#pragma GCC unroll 16
          for (int v = 0; v < kN; ++v) w[v] = Word<W>::value(word(v), i);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < kN; ++v) sum[r][v] += row[r][k + i] * w[v];
        }
      }
      if constexpr (kAhead > 0) ahead.prefetch<S, kAhead>();
      words += kWordBytes;
    };

    int64_t k = begin;
    if constexpr (kValues == 1)  // two steps a round: 3 to 4 % faster at 5 rows (Zen 3); four are no better
      for (; k + 2 <= end; k += 2) add(k, 1), add(k + 1, 1);
    for (; k + kValues <= end; k += kValues) add(k, kValues);
    if (k < end) add(k, static_cast<int>(end - k));

#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) store(sums + r * kPanel + v * kLanes, sum[r][v]);
  }
};

}  // namespace
}  // namespace lrcn::simd
