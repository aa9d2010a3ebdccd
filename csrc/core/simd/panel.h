// Rows times one packed panel (linear.h has the layout).
#pragma once

#include <cstdint>

#include "tile_float.h"
#include "tile_int8.h"

namespace lrcn::simd {
namespace {

template <typename T>
void panel_dot_of(const PanelDot& a, const char* words) {
  const int64_t words_x = (a.x.k + T::kValues - 1) / T::kValues;
  const int64_t words_h = (a.h.k + T::kValues - 1) / T::kValues;
  const int64_t group_bytes = (words_x + words_h) * kWordBytes;

  for (int64_t i = 0; i < a.rows * kPanel; ++i) a.sums[i] = 0.0f;
  part_dot<T>(a.rows, words, group_bytes, a.x, a.sums);
  part_dot<T>(a.rows, words + words_x * kWordBytes, group_bytes, a.h, a.sums);
}

void panel_dot(const PanelDot& a) {
  const char* panel = static_cast<const char*>(a.panel);
  switch (a.type) {
    case WeightType::kFloat32:
      return panel_dot_of<FloatTile<WeightType::kFloat32>>(a, panel);
    case WeightType::kBFloat16:
      return panel_dot_of<FloatTile<WeightType::kBFloat16>>(a, panel);
    case WeightType::kInt8:
      break;
  }
  const float* scales = static_cast<const float*>(a.panel);
  panel_dot_of<Int8Tile>(a, panel + kPanel * sizeof(float));
  for (int64_t r = 0; r < a.rows; ++r)
    for (int v = 0; v < kPanel / kLanes; ++v) {
      float* sum = a.sums + r * kPanel + v * kLanes;
      store(sum, load(sum) * load(scales + v * kLanes));
    }
}

}  // namespace
}  // namespace lrcn::simd
