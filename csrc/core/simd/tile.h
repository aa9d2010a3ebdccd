// Tiles, and how rows and k are cut into them. tile_float.h and tile_int8.h hold the arithmetic.
//
// A tile is R rows by S groups of 16 outputs. R * S registers' worth of sums are live at once: enough
// independent chains to hide the latency of a multiply-add (4 cycles, two a cycle: 8), few enough to leave
// registers for the weights. R = 1 takes as many groups as fit, since one row alone cannot fill the chains.
//
// Whatever the tile, one output is one chain of multiply-adds in the order of k, so the result of a row
// does not depend on the rows beside it.
#pragma once

#include <cstdint>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

constexpr int kGroup = static_cast<int>(kGroupColumns);
constexpr int kPanel = static_cast<int>(kPanelColumns);
constexpr int kGroups = kPanel / kGroup;
constexpr int kVecs = kGroup / kLanes;  // vectors per group
constexpr int64_t kWordBytes = kGroup * sizeof(uint32_t);

constexpr int kRegisters = LRCN_VECTOR_BYTES == 64 ? 32 : 16;
constexpr int kSums = kRegisters / 4 * 3;  // of them hold sums
constexpr int min(int a, int b) {
  return a < b ? a : b;
}

// The groups of a tile of so many rows whose sums fit the registers.
constexpr int groups_that_fit(int rows) {
  return rows * kVecs * 4 <= kSums ? 4 : rows * kVecs * 2 <= kSums ? 2 : 1;
}

// Bytes to prefetch ahead where a panel streams past several rows: 15 to 25 % faster on weights larger than
// the last-level cache (M=5, [4000, 2000] in float32, Zen 3), and no slower on smaller ones. 4 to 8 KB are
// alike, 2 KB is up to 4 % slower when others use the memory too. One row waits for nothing but the loads,
// which the hardware already prefetches; so does a tile of all four groups, whose streams are enough to keep
// it busy (prefetching costs such a tile of 5 rows 8 to 14 %, Emerald Rapids) unless the weight is far (there
// it gains 8 % of a beam search in float32). A far weight comes a group ahead, in two streams, one in each
// half of the group: another 16 to 23 % (M=5, [8832, 1024], float32), and up to 3 % slower where the weight
// is near.
constexpr int64_t kAheadBytes = 4096;

// The groups that a tile reads.
struct Groups {
  const char* words;    // of the first one
  int64_t bytes;        // from one to the next
  const float* scales;  // of each output, int8 only
};

// The cache that the next block goes to, as __builtin_prefetch names them: 3 is the first level, with 64-byte
// vectors 2 to 4 % faster (32 rows, [4096, 1024], Emerald Rapids, 48 KB), 2 the second.
constexpr int kManyAhead = LRCN_VECTOR_BYTES == 64 ? 3 : 2;

// What a tile calls for ahead of time: for each of its words one of each group, by turns from two
// places, each `step` bytes further every time.
struct Ahead {
  const char* words;
  const char* other;
  int64_t step;
  int64_t group_bytes;  // from one group to the next

  template <int S, int kLevel>
  void prefetch() {
    for (int s = 0; s < S; ++s) __builtin_prefetch(words + s * group_bytes, 0, kLevel);
    const char* further = words + step;
    words = other, other = further;
  }
};

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

// A type of tile, T, has
//   kMaxRows            rows of the largest tile
//   kValues             values of k in a word
//   groups(R)           groups of a tile of R rows
//   block(S)            values of k that the groups of one tile keep in the first-level cache
//   kWidensFrom         rows from which a block is worth widening for the tiles of type Wide, by
//   widened<S>(block, k, to)    k values of S groups, written to `to`
//   run<R, S, kAhead>   sums[r][group] += x[first + r][begin, end) . words, for R rows by S groups, words at
//                       begin; kAhead: where it prefetches to, 0: it does not

// The groups from the s-th on, from the i-th word on.
inline Groups after(const Groups& panel, int s, int64_t i) {
  const float* scales = panel.scales == nullptr ? nullptr : panel.scales + s * kGroup;
  return {panel.words + s * panel.bytes + i * kWordBytes, panel.bytes, scales};
}

// One part of K, x or h, for rows that fit one tile: the panel, given at the part's first word, streams
// through once.
template <typename T>
void dot_few(int64_t rows, const Groups& panel, const DotRows& x, bool far, float* sums) {
  with_rows<T::kMaxRows>(rows, [&](auto rows_now) {
    constexpr int R = rows_now.value, S = T::groups(R);
    for (int s = 0; s < kGroups; s += S) {
      const Groups groups = after(panel, s, 0);
      const char* next = groups.words + S * panel.bytes;
      const Ahead ahead = far ? Ahead{next, next + x.k / T::kValues / 2 * kWordBytes, kWordBytes, panel.bytes}
                              : Ahead{groups.words + kAheadBytes, groups.words + kAheadBytes + kWordBytes,
                                      2 * kWordBytes, panel.bytes};
      float* out = sums + s * kGroup;
      if (far)
        T::template run<R, S, R == 1 ? 0 : 2>(groups, x, 0, 0, x.k, out, ahead);
      else
        T::template run<R, S, R == 1 || S == kGroups ? 0 : 2>(groups, x, 0, 0, x.k, out, ahead);
    }
  });
}

// The same for more rows: k goes in blocks, and the rows pass over each block of the groups of one tile
// while it is in the first-level cache, as it is (Many = T) or widened.
template <typename T, typename Many>
void dot_many(int64_t rows, const Groups& panel, const DotRows& x, float* sums) {
  constexpr bool kWidens = Many::kValues < T::kValues;
  constexpr int kMax = Many::kMaxRows, S = Many::groups(kMax);
  constexpr int64_t kStep = Many::block(S);
  alignas(64) char wide[kWidens ? kStep / Many::kValues * S * kWordBytes : 1];
  const int64_t blocks = (rows + kMax - 1) / kMax;
  for (int64_t begin = 0; begin < x.k; begin += kStep) {
    const int64_t end = x.k - begin < kStep ? x.k : begin + kStep;
    for (int s = 0; s < kGroups; s += S) {
      const Groups block = after(panel, s, begin / T::kValues);
      const Groups next = s + S < kGroups ? after(block, S, 0) : after(panel, 0, end / T::kValues);
      Groups ready = block;
      if constexpr (kWidens) ready = T::template widened<S>(block, end - begin, wide);
      const int64_t share = (end - begin) / T::kValues * kWordBytes / blocks;
      // Spread evenly: 7 is 4 + 3, not 6 + 1.
      for (int64_t b = 0, r = 0; b < blocks; ++b) {
        const int64_t n = (rows - r + blocks - b - 1) / (blocks - b);
        float* out = sums + r * kPanel + s * kGroup;
        with_rows<kMax>(n, [&](auto rows_now) {
          constexpr int R = rows_now.value;
          // Each calls for its share of the next block: 14 % at 16 rows, 9 % at 32 (float32, Zen 3).
          const char* mine = next.words + b * share;
          const int64_t step = kWordBytes * Many::kValues / T::kValues / blocks;
          Many::template run<R, S, kManyAhead>(ready, x, r, begin, end, out,
                                               {mine, mine + share / 2, step, panel.bytes});
        });
        r += n;
      }
    }
  }
}

template <typename T>
void part_dot(int64_t rows, const Groups& panel, const DotRows& x, bool far, float* sums) {
  if (x.k == 0 || x.x == nullptr) return;
  if (rows <= T::kMaxRows) return dot_few<T>(rows, panel, x, far, sums);
  if constexpr (T::kWidensFrom > 0)
    if (rows >= T::kWidensFrom) return dot_many<T, typename T::Wide>(rows, panel, x, sums);
  dot_many<T, T>(rows, panel, x, sums);
}

}  // namespace
}  // namespace lrcn::simd
