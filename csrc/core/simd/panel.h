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

// Registers for sums: AVX-512 has 32 registers, the others 16.
constexpr int kSums = LRCN_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kMaxRows = kSums / kVecs < 6 ? kSums / kVecs : 6;
constexpr int groups_per_tile(int rows) {
  return rows * kVecs * 4 <= kSums ? 4 : rows * kVecs * 2 <= kSums ? 2 : 1;
}

// With more rows than one tile holds, k goes in blocks of this many words, so that a block of the panel
// (24 KB) stays in the first-level cache while the rows pass over it.
constexpr int64_t kBlockWords = 96;

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
  static Vec value(VecU word, int i) {
    return __builtin_convertvector((VecI)(word << (24 - 8 * i)) >> 24, Vec);
  }
};

// sums[r][group] += x[r][begin, end) . words, R rows by S groups.
template <WeightType W, int R, int S>
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
    VecU word[kN];
#pragma GCC unroll 16
    for (int v = 0; v < kN; ++v)
      std::memcpy(&word[v], words + (v / kVecs) * group_bytes + (v % kVecs) * sizeof(Vec), sizeof(Vec));
#pragma GCC unroll 4
    for (int i = 0; i < values; ++i) {
      Vec w[kN];
#pragma GCC unroll 16
      for (int v = 0; v < kN; ++v) w[v] = Word<W>::value(word[v], i);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kN; ++v) sum[r][v] += row[r][k + i] * w[v];
    }
    words += kGroup * sizeof(uint32_t);
  };

  int64_t k = begin;
  for (; k + kValues <= end; k += kValues) add(k, kValues);
  if (k < end) add(k, static_cast<int>(end - k));

#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kN; ++v) store(sums + r * kPanel + v * kLanes, sum[r][v]);
}

// R rows by all four groups.
template <WeightType W, int R>
void tiles(const char* words, int64_t group_bytes, const float* const* x, int64_t begin, int64_t end,
           float* sums) {
  constexpr int S = groups_per_tile(R);
  for (int s = 0; s < kGroups; s += S)
    tile<W, R, S>(words + s * group_bytes, group_bytes, x, begin, end, sums + s * kGroup);
}

template <WeightType W>
void tiles_of(int64_t rows, const char* words, int64_t group_bytes, const float* const* x, int64_t begin,
              int64_t end, float* sums) {
  switch (rows) {
    case 1:
      return tiles<W, 1>(words, group_bytes, x, begin, end, sums);
    case 2:
      return tiles<W, 2>(words, group_bytes, x, begin, end, sums);
    case 3:
      return tiles<W, 3>(words, group_bytes, x, begin, end, sums);
    default:
      break;
  }
  if constexpr (kMaxRows == 6) {
    switch (rows) {
      case 4:
        return tiles<W, 4>(words, group_bytes, x, begin, end, sums);
      case 5:
        return tiles<W, 5>(words, group_bytes, x, begin, end, sums);
      default:
        return tiles<W, 6>(words, group_bytes, x, begin, end, sums);
    }
  }
}

// One part of K, x or h.
template <WeightType W>
void part_dot(int64_t rows, const char* words, int64_t group_bytes, const float* const* x, int64_t k,
              float* sums) {
  constexpr int kValues = Word<W>::kValues;
  const int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
  const int64_t step = blocks == 1 ? k : kBlockWords * kValues;
  for (int64_t begin = 0; begin < k; begin += step) {
    const int64_t end = k - begin < step ? k : begin + step;
    const char* block = words + begin / kValues * kGroup * static_cast<int64_t>(sizeof(uint32_t));
    // Rows are spread evenly: 7 is 4 + 3, not 6 + 1.
    for (int64_t b = 0, r = 0; b < blocks; ++b) {
      const int64_t n = (rows - r + blocks - b - 1) / (blocks - b);
      tiles_of<W>(n, block, group_bytes, x + r, begin, end, sums + r * kPanel);
      r += n;
    }
  }
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
