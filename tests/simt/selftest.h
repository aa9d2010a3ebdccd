// Small kernels for the primitives of device.cuh; see selftest.cu for what `in`, `out` and `n` are.
#pragma once

#include "../../csrc/cuda/lstm.h"

namespace lrcn::cuda {

void selftest(int which, const float* in, float* out, void* scratch, int n, Stream stream);

}  // namespace lrcn::cuda
