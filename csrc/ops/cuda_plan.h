// How an LSTM recurrence is spread over the GPU.
#pragma once

#include <cstdint>

#include "../cuda/lstm.h"

namespace lrcn::ops {

struct LstmPlan {
  // step     one matrix product and one pointwise kernel per step; takes everything
  // cluster  one kernel for all steps, a cluster of blocks for each 8 rows; a cluster of one is the plan
  // "block" grid     one kernel for all steps, all blocks together
  enum Kind { kStep, kCluster, kGrid } kind = kStep;
  int64_t blocks = 0;  // of a cluster
  int64_t groups = 0;  // of blocks, for grid
};

struct LstmProblem {
  int64_t T, B, H;
  cuda::Dtype dtype;
  bool projects, backward;
  int directions;  // 2: both of lstm_bidirectional in one launch
  int device;
};

// Two directions run side by side, in one launch, where a plan that runs all steps in one has room for both:
// grid takes the multiprocessors of two, so half as many groups each; clusters always, as they need not be
// resident together. Otherwise step is what two directions get, and stands for one after the other, each by
// the plan chosen for it alone.
//
// grid where it can run and step elsewhere, or the plan LRCN_FAST_LSTM_PLAN names: block and cluster wait for
// a measurement that says where they are faster. Naming one is for tests and measurements, and an error where
// it cannot be followed. Reads nothing that is not cached by the driver.
LstmPlan choose_plan(const LstmProblem& problem);

}  // namespace lrcn::ops
