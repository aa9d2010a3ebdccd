#include "cuda_plan.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../core/base.h"
#include "../cuda/lstm.h"

namespace lrcn::ops {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) value = 0;
  return value;
}

// Groups of blocks for the plan grid, 0 where it cannot run. A block has a multiprocessor for itself.
int64_t grid_groups(const LstmProblem& p) {
  if (!p.half || p.projects || p.H == 0 || p.H > cuda::kLstmGridHidden) return 0;
  if (p.backward && p.H % cuda::kLstmGridUnits != 0) return 0;
  if (attribute(cudaDevAttrComputeCapabilityMajor, p.device) < 8) return 0;
  if (attribute(cudaDevAttrCooperativeLaunch, p.device) == 0) return 0;
  const int64_t fit = attribute(cudaDevAttrMultiProcessorCount, p.device) / cuda::lstm_grid_blocks(p.H);
  const int64_t groups = std::min(fit, (p.B + 7) / 8);  // the kernels take 8 rows at a time
  return groups > 0 && (p.B + groups - 1) / groups <= cuda::kLstmGridRows ? groups : 0;
}

}  // namespace

LstmPlan choose_plan(const LstmProblem& p) {
  const char* variable = std::getenv("LRCN_FAST_LSTM_PLAN");
  const std::string wanted = variable == nullptr ? "" : variable;
  LRCN_CHECK(wanted.empty() || wanted == "step" || wanted == "grid",
             "LRCN_FAST_LSTM_PLAN must be step or grid, got \"", wanted, "\"");
  if (wanted == "step") return {};
  const int64_t groups = grid_groups(p);
  LRCN_CHECK(
      wanted.empty() || groups > 0,
      "LRCN_FAST_LSTM_PLAN must be step for this call: grid takes float16 and bfloat16, no projection, H up "
      "to ",
      cuda::kLstmGridHidden, " (a multiple of 8 in training), and as many rows as fit the GPU, got B = ", p.B,
      " and H = ", p.H);
  if (groups == 0) return {};
  return {LstmPlan::kGrid, groups};
}

}  // namespace lrcn::ops
