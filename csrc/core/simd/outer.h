// Sums of outer products, a tile of c at a time: two vectors of columns by as many rows as leave registers
// for the operands. Both operands are packed in strips, K-major, so that the inner loop reads them in order.
#pragma once

#include <cstdint>
#include <cstring>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

constexpr int kOuterColumns = 2 * kLanes;
constexpr int kOuterRows = LRCN_VECTOR_BYTES == 64 ? 12 : 6;

template <int kWidth>
void outer_pack(int64_t K, const float* const* rows, int64_t first, int64_t count, float* out) {
  const int64_t whole = count / kWidth, rest = count % kWidth;
  for (int64_t k = 0; k < K; ++k, out += kWidth) {
    const float* from = rows[k] + first;
    float* to = out;
    for (int64_t s = 0; s < whole; ++s, from += kWidth, to += K * kWidth)
      std::memcpy(to, from, kWidth * sizeof(float));
    if (rest == 0) continue;
    std::memset(to, 0, kWidth * sizeof(float));
    std::memcpy(to, from, static_cast<size_t>(rest) * sizeof(float));
  }
}

// c [kOuterRows, kOuterColumns] with row stride ldc.
inline void outer_tile(int64_t K, const float* a, const float* b, float* c, int64_t ldc, bool add) {
  Vec sum[kOuterRows][2] = {};
#pragma GCC unroll 12
  for (int r = 0; r < kOuterRows; ++r) __builtin_prefetch(c + r * ldc, 1);
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k, a += kOuterRows, b += kOuterColumns) {
    const Vec left = load(b), right = load(b + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kOuterRows; ++r) sum[r][0] += a[r] * left, sum[r][1] += a[r] * right;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kOuterRows; ++r, c += ldc) {
    store(c, add ? load(c) + sum[r][0] : sum[r][0]);
    store(c + kLanes, add ? load(c + kLanes) + sum[r][1] : sum[r][1]);
  }
}

void outer_product(const OuterProduct& p) {
  const float* a = p.a;
  for (int64_t first = 0; first < p.rows; first += kOuterRows, a += p.K * kOuterRows) {
    float* c = p.c + first * p.ldc;
    const int64_t rows = p.rows - first < kOuterRows ? p.rows - first : kOuterRows;
    if (rows == kOuterRows && p.columns == kOuterColumns) {
      outer_tile(p.K, a, p.b, c, p.ldc, p.add);
      continue;
    }
    float edge[kOuterRows * kOuterColumns];
    outer_tile(p.K, a, p.b, edge, kOuterColumns, false);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < p.columns; ++j) {
        const float sum = edge[r * kOuterColumns + j];
        c[r * p.ldc + j] = p.add ? c[r * p.ldc + j] + sum : sum;
      }
  }
}

}  // namespace
}  // namespace lrcn::simd
