// Rows times one packed panel (linear.h has the layout), every sum in a register.
//
// A tile is R rows by S groups of 16 outputs. R * S registers' worth of sums are live at once: enough
// independent chains to hide the latency of a multiply-add (4 cycles, two a cycle: 8), few enough to leave
// registers for the weights. R = 1 takes as many groups as fit, since one row alone cannot fill the chains.
//
// Whatever the tile, one output is one chain of multiply-adds in the order of k, so the result of a row
// does not depend on the rows beside it.
#pragma once

#include <cstdint>
#include <cstring>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

constexpr int kGroup = static_cast<int>(kGroupColumns);
constexpr int kPanel = static_cast<int>(kPanelColumns);
constexpr int kGroups = kPanel / kGroup;
constexpr int kVecs = kGroup / kLanes;  // vectors per group

constexpr int kRegisters = LRCN_VECTOR_BYTES == 64 ? 32 : 16;
constexpr int kSums = kRegisters / 4 * 3;  // of them hold sums
constexpr int min(int a, int b) {
  return a < b ? a : b;
}
constexpr int groups_per_tile(int rows) {
  return rows * kVecs * 4 <= kSums ? 4 : rows * kVecs * 2 <= kSums ? 2 : 1;
}

// With more rows than one tile holds, k goes in blocks of this many values for each group of the tile, so
// that the block of the panel (24 KB in float32) stays in the first-level cache while the rows pass over it.
// 384 and its neighbours are alike; 128 and 1000 were 20 % slower on a Zen 3 core at 32 rows.
constexpr int64_t kBlock = 384;

// Rows per tile: unpacking bfloat16 and int8 takes the registers of a sixth row.
template <WeightType W>
constexpr int kMaxRows = min(W == WeightType::kFloat32 ? 6 : 5, kSums / kVecs);

// Bytes to prefetch ahead where a panel streams from memory past several rows: 15 to 25 % faster on weights
// larger than the last-level cache (M=5, [4000, 2000] in float32, Zen 3), and no slower on smaller ones. 4 to
// 8 KB are alike, 2 KB is up to 4 % slower when others use the memory too. One row waits for nothing but the
// loads, which the hardware already prefetches.
constexpr int64_t kAhead = 4096;

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

template <>
struct Word<WeightType::kInt8> {
  static constexpr int kValues = 4;
  // q * 2^24: the scales undo the factor. Shifting the byte to the top and clearing the rest is cheaper
  // than shifting it back down with its sign.
  static Vec value(VecU word, int i) {
    return __builtin_convertvector((VecI)(word << (24 - 8 * i) & 0xff000000u), Vec);
  }
};

// sums[r][group] += x[r][begin, end) . words, R rows by S groups. kStream: the words come from memory.
template <WeightType W, int R, int S, bool kStream>
void tile(const char* words, int64_t group_bytes, const float* const* x, int64_t begin, int64_t end,
          float* sums) {
  constexpr int kValues = Word<W>::kValues;
  constexpr int kN = S * kVecs;
  Vec sum[R][kN];
  const float* row[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    row[r] = x[r];
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
    if constexpr (kStream)
      for (int s = 0; s < S; ++s) __builtin_prefetch(words + s * group_bytes + kAhead);
    words += kGroup * sizeof(uint32_t);
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

template <int N>
struct Constant {
  static constexpr int value = N;
};

// f(Constant<n>) for n in [1, kMax].
template <int kMax, int N = 1, typename F>
void with_rows(int64_t n, F&& f) {
  if constexpr (N <= kMax) {
    if (n == N) return f(Constant<N>{});
    with_rows<kMax, N + 1>(n, f);
  }
}

// One part of K, x or h, for rows that fit one tile: the panel streams through once.
template <WeightType W>
void dot_few(int64_t rows, const char* words, int64_t group_bytes, const float* const* x, int64_t k,
             float* sums) {
  with_rows<kMaxRows<W>>(rows, [&](auto rows_now) {
    constexpr int R = rows_now.value, S = groups_per_tile(R);
    for (int s = 0; s < kGroups; s += S)
      tile<W, R, S, (R > 1)>(words + s * group_bytes, group_bytes, x, 0, k, sums + s * kGroup);
  });
}

// The same for more rows: k goes in blocks, and the rows pass over each block of the groups of one tile
// while it is in the first-level cache.
template <WeightType W>
void dot_many(int64_t rows, const char* words, int64_t group_bytes, const float* const* x, int64_t k,
              float* sums) {
  constexpr int kValues = Word<W>::kValues;
  constexpr int kMax = kMaxRows<W>, S = groups_per_tile(kMax);
  constexpr int64_t kStep = kBlock / S;
  const int64_t blocks = (rows + kMax - 1) / kMax;
  for (int64_t begin = 0; begin < k; begin += kStep) {
    const int64_t end = k - begin < kStep ? k : begin + kStep;
    for (int s = 0; s < kGroups; s += S) {
      const char* block = words + s * group_bytes + begin / kValues * kGroup * sizeof(uint32_t);
      // Spread evenly: 7 is 4 + 3, not 6 + 1.
      for (int64_t b = 0, r = 0; b < blocks; ++b) {
        const int64_t n = (rows - r + blocks - b - 1) / (blocks - b);
        float* out = sums + r * kPanel + s * kGroup;
        with_rows<kMax>(n, [&](auto rows_now) {
          // The first rows bring the block in.
          if (b == 0) return tile<W, rows_now.value, S, true>(block, group_bytes, x + r, begin, end, out);
          tile<W, rows_now.value, S, false>(block, group_bytes, x + r, begin, end, out);
        });
        r += n;
      }
    }
  }
}

template <WeightType W>
void part_dot(int64_t rows, const char* words, int64_t group_bytes, const float* const* x, int64_t k,
              float* sums) {
  if (k == 0 || x == nullptr) return;
  if (rows <= kMaxRows<W>) return dot_few<W>(rows, words, group_bytes, x, k, sums);
  dot_many<W>(rows, words, group_bytes, x, k, sums);
}

template <WeightType W>
void panel_dot_of(const PanelDot& a) {
  constexpr int kValues = Word<W>::kValues;
  const int64_t words_x = (a.kx + kValues - 1) / kValues, words_h = (a.kh + kValues - 1) / kValues;
  const int64_t word_bytes = kGroup * sizeof(uint32_t);
  const int64_t group_bytes = (words_x + words_h) * word_bytes;
  const char* words = static_cast<const char*>(a.panel);
  if (W == WeightType::kInt8) words += kPanel * sizeof(float);

  for (int64_t i = 0; i < a.rows * kPanel; ++i) a.sums[i] = 0.0f;
  part_dot<W>(a.rows, words, group_bytes, a.x, a.kx, a.sums);
  part_dot<W>(a.rows, words + words_x * word_bytes, group_bytes, a.h, a.kh, a.sums);
  if (W != WeightType::kInt8) return;
  const float* scales = static_cast<const float*>(a.panel);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int v = 0; v < kPanel / kLanes; ++v) {
      float* sum = a.sums + r * kPanel + v * kLanes;
      store(sum, load(sum) * load(scales + v * kLanes));
    }
}

void panel_dot(const PanelDot& a) {
  switch (a.type) {
    case WeightType::kFloat32:
      return panel_dot_of<WeightType::kFloat32>(a);
    case WeightType::kBFloat16:
      return panel_dot_of<WeightType::kBFloat16>(a);
    case WeightType::kInt8:
      return panel_dot_of<WeightType::kInt8>(a);
  }
}

}  // namespace
}  // namespace lrcn::simd
