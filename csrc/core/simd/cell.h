// The pointwise half of an LSTM step, forward and backward.
#pragma once

#include <cstdint>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

// In two passes, so that the long chain to c of one vector and the long chain from c to h of another overlap:
// the processor sees no further ahead than two vectors of both together.
void lstm_cell(const LstmCell& a) {
  const int64_t H = a.hidden;
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t j = 0; j < a.count; j += kLanes) {
      const int64_t n = a.count - j, unit = a.unit + j;
      float* z = a.sums + r * kPanelColumns + j;
      const Vec i = sigmoid(load(z)), f = sigmoid(load(z + kGroupColumns));
      const Vec g = tanh_approx(load(z + 2 * kGroupColumns)), o = sigmoid(load(z + 3 * kGroupColumns));
      const Vec c = f * take(a.c_prev[r] + unit, n) + i * g;
      put(a.c[r] + unit, c, n);
      store(z, c), store(z + kGroupColumns, o);
      if (a.gates == nullptr) continue;
      float* gates = a.gates[r] + unit;
      put(gates + 0 * H, i, n), put(gates + 1 * H, f, n), put(gates + 2 * H, g, n), put(gates + 3 * H, o, n);
    }
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t j = 0; j < a.count; j += kLanes) {
      const float* c = a.sums + r * kPanelColumns + j;
      put(a.h[r] + a.unit + j, load(c + kGroupColumns) * tanh_approx(load(c)), a.count - j);
    }
}

void lstm_cell_backward(const LstmCellBackward& a) {
  const int64_t H = a.hidden;
  for (int64_t j = 0; j < H; j += kLanes) {
    const int64_t n = H - j;
    const Vec i = take(a.gates + 0 * H + j, n), f = take(a.gates + 1 * H + j, n);
    const Vec g = take(a.gates + 2 * H + j, n), o = take(a.gates + 3 * H + j, n);
    const Vec tanh_c = tanh_approx(take(a.c + j, n)), d_u = take(a.d_u + j, n);
    const Vec d_c = take(a.d_c + j, n) + take(a.d_c_next + j, n) + d_u * o * (1.0f - tanh_c * tanh_c);
    Vec d_i = d_c * g, d_f = d_c * take(a.c_prev + j, n), d_g = d_c * i, d_o = d_u * tanh_c;
    if (a.d_gates != nullptr) {
      d_i += take(a.d_gates + 0 * H + j, n), d_f += take(a.d_gates + 1 * H + j, n);
      d_g += take(a.d_gates + 2 * H + j, n), d_o += take(a.d_gates + 3 * H + j, n);
    }
    put(a.d_z + 0 * H + j, d_i * i * (1.0f - i), n);
    put(a.d_z + 1 * H + j, d_f * f * (1.0f - f), n);
    put(a.d_z + 2 * H + j, d_g * (1.0f - g * g), n);
    put(a.d_z + 3 * H + j, d_o * o * (1.0f - o), n);
    put(a.d_c_next + j, d_c * f, n);
  }
}

template <Vec (*kFunction)(Vec)>
void map(int64_t n, const float* x, float* y) {
  for (int64_t i = 0; i < n; i += kLanes) put(y + i, kFunction(take(x + i, n - i)), n - i);
}

}  // namespace
}  // namespace lrcn::simd
