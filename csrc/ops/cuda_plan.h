// How an LSTM recurrence is spread over the GPU.
#pragma once

#include <cstdint>

namespace lrcn::ops {

struct LstmPlan {
  // step   one matrix product and one pointwise kernel per step; takes everything
  // grid   one persistent kernel for all steps: half precision, no projection, H and B limited
  enum Kind { kStep, kGrid } kind = kStep;
  int64_t groups = 0;  // of blocks, for grid
};

struct LstmProblem {
  int64_t T, B, H;
  bool half, projects, backward;
  int device;
};

// The fastest plan that takes the problem, or the one LRCN_FAST_LSTM_PLAN names: that is for tests and
// measurements, and an error where it cannot be followed. Reads nothing that is not cached by the driver.
LstmPlan choose_plan(const LstmProblem& problem);

}  // namespace lrcn::ops
