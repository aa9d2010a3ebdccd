// What products with packed weights make of their other factor.
#pragma once

#include <vector>

#include "../../csrc/core/linear.h"

namespace lrcn::test {

// x [rows, K] as products with weights of a type take it: with int8 the integers that it becomes.
inline std::vector<float> taken(WeightType type, std::vector<float> x, int64_t rows, int64_t K) {
  const int64_t blocks = (K + simd::kInt8Block - 1) / simd::kInt8Block;
  std::vector<int8_t> q(K + 15);
  std::vector<simd::Int8Scale> scales(blocks);
  for (int64_t r = 0; r < rows && type == WeightType::kInt8; ++r) {
    simd::kernels().quantise(K, x.data() + r * K, q.data(), scales.data());
    for (int64_t k = 0; k < K; ++k) x[r * K + k] = scales[k / simd::kInt8Block].scale * q[k];
  }
  return x;
}

}  // namespace lrcn::test
