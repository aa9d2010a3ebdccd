// The running maximum and sum of a softmax, over one panel of logits.
#pragma once

#include <cstdint>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

float online_softmax(const float* logits, float* max, float* sum) {
  constexpr int kVectors = static_cast<int>(kPanelColumns) / kLanes;
  Vec top = load(logits);
  for (int v = 1; v < kVectors; ++v) {
    const Vec x = load(logits + v * kLanes);
    top = x > top ? x : top;
  }
  const float panel_max = fold_max(top);
  if (panel_max > *max) {
    // exp of a difference of floats: one lane of the vector function, so that all sums share one exp.
    *sum *= exp_approx(Vec{} + (*max - panel_max))[0];
    *max = panel_max;
  }
  Vec total{};
  for (int v = 0; v < kVectors; ++v) total += exp_approx(load(logits + v * kLanes) - *max);
  *sum += fold_sum(total);
  return panel_max;
}

}  // namespace
}  // namespace lrcn::simd
