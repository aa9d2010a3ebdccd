// What the LSTM kernels share: storage and arithmetic types, and which rows take part in a step.
#pragma once

#include <cmath>

#include "device.cuh"
#include "lstm.h"

namespace lrcn::cuda {

// State and arithmetic of a storage type, and the way there and back.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
LRCN_DEVICE float widen(float x) {
  return x;
}
LRCN_DEVICE double widen(double x) {
  return x;
}
LRCN_DEVICE float widen(f16 x) {
  return to_float(x);
}
LRCN_DEVICE float widen(bf16 x) {
  return to_float(x);
}
LRCN_DEVICE void put(float& to, float x) {
  to = x;
}
LRCN_DEVICE void put(double& to, double x) {
  to = x;
}
LRCN_DEVICE void put(f16& to, float x) {
  to = to_f16(x);
}
LRCN_DEVICE void put(bf16& to, float x) {
  to = to_bf16(x);
}

template <typename A>
LRCN_DEVICE A sigmoid(A x) {
  return A(1) / (A(1) + std::exp(-x));
}

LRCN_DEVICE int64_t length_of(const LstmRows& rows, int64_t b) {
  if (rows.lengths == nullptr) return rows.T;
  const int64_t length = rows.lengths[b];
  return length < 0 ? 0 : length < rows.T ? length : rows.T;
}
LRCN_DEVICE bool keeps_state(const LstmRows& rows, int64_t t, int64_t b) {
  return rows.cont == nullptr || rows.cont[t * rows.B + b] != 0;
}

// The n-th step the forward pass does, and whether it is the first of a row.
LRCN_DEVICE int64_t step_of(const LstmRows& rows, int64_t n) {
  return rows.reverse ? rows.T - 1 - n : n;
}
LRCN_DEVICE bool is_first(const LstmRows& rows, int64_t t, int64_t length) {
  return t == (rows.reverse ? length - 1 : 0);
}

// Does the step the forward pass did after t belong to the row, whose steps are 0 .. length - 1?
LRCN_DEVICE bool has_later(const LstmRows& rows, int64_t t, int64_t length) {
  return rows.reverse ? t > 0 : t + 1 < length;
}
LRCN_DEVICE int64_t later(const LstmRows& rows, int64_t t) {
  return rows.reverse ? t - 1 : t + 1;
}

// The backward pass through one cell, in the notation of lstm_cell.cu: from d_h, d_c and d_gates to d_z, and
// d_c with what comes through h added.
template <typename A>
struct CellGradient {
  A gates[4], tanh_c, c_prev;
  A d_gates[4], d_h, d_c;

  LRCN_DEVICE void d_z(A (&d_z)[4]) {
    const A i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    d_c += d_h * o * (A(1) - tanh_c * tanh_c);
    d_z[0] = (d_c * g + d_gates[0]) * i * (A(1) - i);
    d_z[1] = (d_c * c_prev + d_gates[1]) * f * (A(1) - f);
    d_z[2] = (d_c * i + d_gates[2]) * (A(1) - g * g);
    d_z[3] = (d_h * tanh_c + d_gates[3]) * o * (A(1) - o);
  }
};

}  // namespace lrcn::cuda
