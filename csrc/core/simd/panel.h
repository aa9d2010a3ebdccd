// Rows times one packed panel (linear.h has the layout).
#pragma once

#include <cstdint>

#include "tile_float.h"
#ifdef LRCN_DOT_BFLOAT16
#include "tile_bfloat16.h"
#endif
#include "tile_int8.h"

namespace lrcn::simd {
namespace {

template <typename T>
void panel_dot_of(const PanelDot& a, const char* words, const float* scales) {
  const int64_t words_x = (a.x.k + T::kValues - 1) / T::kValues;
  const int64_t words_h = (a.h.k + T::kValues - 1) / T::kValues;
  const Groups panel{words, (words_x + words_h) * kWordBytes, scales};
  part_dot<T>(a.rows, panel, a.x, a.far, a.sums);
  part_dot<T>(a.rows, after(panel, 0, words_x), a.h, a.far, a.sums);
}

void panel_dot(const PanelDot& a) {
  const char* panel = static_cast<const char*>(a.panel);
  switch (a.type) {
    case WeightType::kFloat32:
      return panel_dot_of<FloatTile<WeightType::kFloat32>>(a, panel, nullptr);
    case WeightType::kBFloat16:
#ifdef LRCN_DOT_BFLOAT16
      return panel_dot_of<BFloat16Tile>(a, panel, nullptr);
#else
      return panel_dot_of<FloatTile<WeightType::kBFloat16>>(a, panel, nullptr);
#endif
    case WeightType::kInt8:
      return panel_dot_of<Int8Tile>(a, panel + kPanel * sizeof(float), static_cast<const float*>(a.panel));
  }
}

}  // namespace
}  // namespace lrcn::simd
