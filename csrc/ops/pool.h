// Lends torch's intra-op pool to core: one pool, one torch.set_num_threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../core/base.h"

namespace lrcn::ops {

inline Parallel torch_pool() {
  return Parallel(+[](int64_t, int64_t n, int64_t grain, Parallel::Body body, void* context) {
    // A range of one task, or one thread: no pool, no fork.
    if (n <= grain || torch::stable::get_num_threads() == 1) return body(context, 0, n);
    torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
  });
}

}  // namespace lrcn::ops
