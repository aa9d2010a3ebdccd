// What linear.cpp and lstm.cpp share: packing one panel, and sizing the work handed to threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
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

// The order in which to read a range of a weight's panels: from its first and from its last, by turns. What
// the thread read last is then what it reads first when the same weight comes again, and half of a weight
// that is twice as large as the second-level cache is still there: H = 512 in float32 or 1024 in int8, 1.6
// times as fast at one row (2 MB). No result depends on it.
class PanelOrder {
 public:
  explicit PanelOrder(const void* weight) {
    // A bit for each weight; where two share one, what they lose is speed.
    const uint64_t hash = reinterpret_cast<uintptr_t>(weight) * 0x9e3779b97f4a7c15u;
    const uint64_t bit = uint64_t{1} << (hash >> 58);
    falls_ = (turns_ & bit) != 0;
    turns_ ^= bit;
  }
  int64_t panel(int64_t i, int64_t begin, int64_t end) const { return falls_ ? begin + end - 1 - i : i; }

 private:
  inline static thread_local uint64_t turns_ = 0;
  bool falls_;
};

// One part of K: element k of the panel's column j is rows[j][k * stride]; a null row is all zeros.
struct PackPart {
  const float* const* rows;  // [64]
  int64_t stride;
  int64_t k;
};

// Writes one panel of panel_bytes(...) in linear.h's layout. `what` names the weight in an error.
void pack_panel(const char* what, const PackPart* parts, int count, WeightType type, void* panel);

}  // namespace lrcn
