// The running maximum and sum of a softmax, over one panel of logits.
#pragma once

#include <cstdint>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

// Lanes are folded by halves, so the order of the additions is fixed.
inline float fold_max(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i + half] > lane[i] ? lane[i + half] : lane[i];
  return lane[0];
}

inline float fold_sum(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

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
