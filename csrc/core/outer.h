// c = sum over k of a[k]^T b[k]: the gradient of a weight, from those of its outputs and from its inputs.
#pragma once

#include <cstdint>

#include "base.h"

namespace lrcn {

// a[k] [M] and b[k] [N] for k in [0, K), given as pointers, so that rows are left out, gathered and shifted
// in time for nothing. c [M, N] is written, zeros where K = 0, and overlaps no row. Every element is summed
// in the order of k, in blocks of k that depend on nothing but K.
void outer_sum(int64_t K, int64_t M, const float* const* a, int64_t N, const float* const* b, float* c,
               const Parallel& parallel = {});

}  // namespace lrcn
