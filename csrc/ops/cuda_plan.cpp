#include "cuda_plan.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../core/base.h"

namespace lrcn::ops {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, which, device) != cudaSuccess) value = 0;
  return value;
}

// Groups of blocks for the plan grid, 0 where it cannot run. A block has a multiprocessor for itself.
int64_t grid_groups(const LstmProblem& p) {
  const bool half = p.dtype == cuda::Dtype::kFloat16 || p.dtype == cuda::Dtype::kBFloat16;
  if (!half || p.projects || p.H == 0 || p.H > cuda::kLstmGridHidden) return 0;
  if (p.backward && p.H % cuda::kLstmGridUnits != 0) return 0;
  if (attribute(cudaDevAttrComputeCapabilityMajor, p.device) < 8) return 0;
  if (attribute(cudaDevAttrCooperativeLaunch, p.device) == 0) return 0;
  const int64_t fit =
      attribute(cudaDevAttrMultiProcessorCount, p.device) / (p.directions * cuda::lstm_grid_blocks(p.H));
  const int64_t groups = std::min(fit, (p.B + 7) / 8);  // the kernels take 8 rows at a time
  return groups > 0 && (p.B + groups - 1) / groups <= cuda::kLstmGridRows ? groups : 0;
}

// Blocks of the smallest cluster, `least` or more, that holds the weights; 0 where none does.
int64_t cluster_blocks(const LstmProblem& p, int64_t least) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, p.device);
  if (p.projects || major < 8) return 0;
  int64_t most = 1;
  if (major >= 9 && attribute(cudaDevAttrClusterLaunch, p.device) != 0)
    most = major == 9 || major == 10 ? cuda::kLstmClusterBlocks : 8;  // 16 are not portable
  const int64_t room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, p.device);
  for (int64_t blocks = least; blocks <= most; blocks *= 2) {
    const int64_t bytes = p.backward ? cuda::lstm_cluster_backward_bytes(p.dtype, p.H, blocks)
                                     : cuda::lstm_cluster_bytes(p.dtype, p.H, blocks);
    if (bytes > 0 && bytes <= room) return blocks;
  }
  return 0;
}

}  // namespace

LstmPlan choose_plan(const LstmProblem& p) {
  const char* variable = std::getenv("LRCN_FAST_LSTM_PLAN");
  const std::string wanted = variable == nullptr ? "" : variable;
  if (wanted == "step") return {};
  if (wanted.empty() || wanted == "grid") {
    const int64_t groups = grid_groups(p);
    LRCN_CHECK(wanted.empty() || groups > 0 || p.directions == 2,  // each will ask for itself
               "LRCN_FAST_LSTM_PLAN must be step for this call: grid takes float16 and bfloat16, no "
               "projection, H up to ",
               cuda::kLstmGridHidden,
               " (a multiple of 8 in training), and as many rows as fit the GPU, got B = ", p.B,
               " and H = ", p.H);
    return groups == 0 ? LstmPlan{} : LstmPlan{LstmPlan::kGrid, 0, groups};
  }
  LRCN_CHECK(wanted == "block" || wanted == "cluster",
             "LRCN_FAST_LSTM_PLAN must be step, block, cluster or grid, got \"", wanted, "\"");
  const int64_t blocks = cluster_blocks(p, wanted == "block" ? 1 : 2);
  const bool fits = blocks == 1 || (blocks > 1 && wanted == "cluster");
  if (!fits && p.directions == 2) return {};
  LRCN_CHECK(fits, "LRCN_FAST_LSTM_PLAN must be step for this call: ", wanted,
             wanted == "block"
                 ? " takes float32, float16 and bfloat16, no projection, weights that fit one "
                   "multiprocessor, and nothing in training's backward pass"
                 : " takes float32 (not in training's backward pass), float16 and bfloat16, no "
                   "projection, weights that fit a cluster of multiprocessors, and an sm_90 GPU",
             ", got H = ", p.H);
  return {LstmPlan::kCluster, blocks, 0};
}

}  // namespace lrcn::ops
