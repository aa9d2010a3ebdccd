// How a packed weight is stored. The arithmetic is float32, but for products with int8
// (simd/tile_int8.h), and with bfloat16 where the CPU multiplies pairs of them (simd/tile_bfloat16.h).
//
// Shared with the per-instruction-set objects, so: no functions here (simd/table.h says why).
#pragma once

#include <cstdint>

namespace lrcn {

enum class WeightType : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,  // rounded to nearest even
  kInt8 = 2,      // w = scale[n] * q, one scale per output n, |q| <= 127
};

constexpr int64_t kPanelColumns = 64;  // outputs per panel
constexpr int64_t kGroupColumns = 16;  // outputs per group: one AVX-512 register, two of AVX2

}  // namespace lrcn
