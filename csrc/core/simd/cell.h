// The pointwise half of an LSTM step, forward and backward.
#pragma once

#include <cstdint>

#include "table.h"
#include "vec.h"

namespace lrcn::simd {
namespace {

void lstm_cell(const LstmCell& a) {
  const int64_t H = a.hidden;
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t j = 0; j < a.count; j += kLanes) {
      const int64_t n = a.count - j, unit = a.unit + j;
      Vec z[4];
      for (int gate = 0; gate < 4; ++gate) {
        z[gate] = load(a.sums + r * kPanelColumns + gate * kGroupColumns + j);
        Vec init = take(a.init_a[r] + gate * H + unit, n);
        if (a.init_b != nullptr) init += take(a.init_b[r] + gate * H + unit, n);
        z[gate] += init;
      }
      const Vec i = sigmoid(z[0]), f = sigmoid(z[1]), g = tanh_approx(z[2]), o = sigmoid(z[3]);
      const Vec c = f * take(a.c_prev[r] + unit, n) + i * g;
      put(a.c[r] + unit, c, n);
      put(a.h[r] + unit, o * tanh_approx(c), n);
      if (a.gates == nullptr) continue;
      float* gates = a.gates[r] + unit;
      put(gates + 0 * H, i, n), put(gates + 1 * H, f, n), put(gates + 2 * H, g, n), put(gates + 3 * H, o, n);
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
