// What linear.cpp and lstm.cpp share: packing one panel, and sizing the work handed to threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "linear.h"

namespace lrcn {

// Rows that pass over a panel before the next rows: their sums (12 KB) live on the stack.
constexpr int64_t kRowsPerPass = 48;

// The rows of the next pass when `left` are left, spread evenly: 50 are 25 + 25, not 48 + 2.
constexpr int64_t rows_of_pass(int64_t left) {
  const int64_t passes = (left + kRowsPerPass - 1) / kRowsPerPass;
  return (left + passes - 1) / passes;
}

// Panels that are worth a thread: about 64 K multiply-adds, 4 us, the cost of waking it.
inline int64_t panels_per_task(int64_t K, int64_t rows) {
  return std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, K * kPanelColumns * rows));
}

// Whether a weight is so large that it is read from memory, or from a cache that is nearly as far.
constexpr bool is_far(int64_t weight_bytes) {
  return weight_bytes > int64_t{20} << 20;
}

// One part of K: element k of the panel's column j is rows[j][k * stride]; a null row is all zeros.
struct PackPart {
  const float* const* rows;  // [64]
  int64_t stride;
  int64_t k;
};

// Writes one panel of panel_bytes(...) in linear.h's layout. `what` names the weight in an error.
void pack_panel(const char* what, const PackPart* parts, int count, WeightType type, void* panel);

}  // namespace lrcn
