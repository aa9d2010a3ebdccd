// The input projection of a layer, ahead of its recurrence.
#pragma once

#include <vector>

#include "lstm.h"
#include "memory.h"

namespace lrcn {

// x @ w_ih^T + bias of the rows of LstmInput that exist, in the order of the recurrence. A step's dot
// products go on in the very sums that the projection leaves: nothing is copied in between.
class LstmProjection {
 public:
  LstmProjection(const LstmInput& input, const LstmShape& shape) : input_(input), shape_(shape) {}

  // The blocks of the n-th step. To be asked for n = 0, 1, ...
  const LstmBlock* step(int64_t n, const Parallel& parallel);

 private:
  // Rows that multiply a panel together: those of whole steps, or of one pass of a larger step.
  struct Pass {
    int64_t first, rows;
    float* sums;  // [panels, rows, 64]
  };

  void project(const Parallel& parallel);

  const LstmInput& input_;
  const LstmShape& shape_;
  Scratch sums_;
  int64_t capacity_ = 0;  // rows that sums_ has room for
  std::vector<LstmBlock> blocks_;
  std::vector<size_t> first_block_;  // of each step from begin_ on
  int64_t begin_ = 0, end_ = 0;      // the steps that are projected
};

}  // namespace lrcn
