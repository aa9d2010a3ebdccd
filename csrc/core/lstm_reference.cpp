// The LSTM recurrence and its gradient, written for reading. lstm.h has the equations and the shapes.
#include <cmath>
#include <vector>

#include "lstm.h"

namespace lrcn {

template <typename T>
void lstm_forward_reference(const LstmForward<T>& a) {
  const LstmShape& s = a.shape;
  const int64_t B = s.batch, H = s.hidden, P = s.proj;
  const auto sigmoid = [](T x) { return 1 / (1 + std::exp(-x)); };
  const std::vector<T> zeros(H > P ? H : P, T(0));
  std::vector<T> u(H);  // o * tanh(c), before the projection

  for (int64_t n = 0; n < s.steps; ++n)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t t = s.time(n);
      const bool exists = t < s.length(b);
      if (!exists && s.offsets != nullptr) continue;
      const int64_t row = s.row(t, b), row_before = s.first(t, b) || !exists ? 0 : s.row(s.before(t), b);
      T *h = a.h + row * P, *c = a.c + row * H;
      T* gates = a.gates == nullptr ? nullptr : a.gates + row * 4 * H;
      if (!exists) {
        for (int64_t p = 0; p < P; ++p) h[p] = 0;
        for (int64_t j = 0; j < H; ++j) c[j] = 0;
        for (int64_t j = 0; gates != nullptr && j < 4 * H; ++j) gates[j] = 0;
        continue;
      }
      const T* h_prev = s.first(t, b) ? a.h0 + b * P : a.h + row_before * P;
      const T* c_prev = s.first(t, b) ? a.c0 + b * H : a.c + row_before * H;
      if (s.resets(t, b)) h_prev = c_prev = zeros.data();

      for (int64_t j = 0; j < H; ++j) {
        T z[4];
        for (int64_t gate = 0; gate < 4; ++gate) {
          z[gate] = a.xg[row * 4 * H + gate * H + j];
          for (int64_t p = 0; p < P; ++p) z[gate] += h_prev[p] * a.w_hh[(gate * H + j) * P + p];
        }
        const T i = sigmoid(z[0]), f = sigmoid(z[1]), g = std::tanh(z[2]), o = sigmoid(z[3]);
        c[j] = f * c_prev[j] + i * g;
        u[j] = o * std::tanh(c[j]);
        if (gates == nullptr) continue;
        gates[0 * H + j] = i, gates[1 * H + j] = f, gates[2 * H + j] = g, gates[3 * H + j] = o;
      }
      for (int64_t p = 0; p < P; ++p) {
        T sum = a.w_hr == nullptr ? u[p] : T(0);
        for (int64_t j = 0; a.w_hr != nullptr && j < H; ++j) sum += u[j] * a.w_hr[p * H + j];
        h[p] = sum;
      }
    }
}

template <typename T>
void lstm_backward_reference(const LstmBackward<T>& a) {
  const LstmShape& s = a.shape;
  const int64_t B = s.batch, H = s.hidden, P = s.proj;
  const std::vector<T> zeros(H, T(0));
  std::vector<T> d_u(H), d_p(P);
  // d_h0 and d_c0 double as the gradients that flow from a row's later step into its earlier one.
  for (int64_t j = 0; j < B * P; ++j) a.d_h0[j] = 0;
  for (int64_t j = 0; j < B * H; ++j) a.d_c0[j] = 0;

  for (int64_t n = s.steps - 1; n >= 0; --n)
    for (int64_t b = 0; b < B; ++b) {
      const int64_t t = s.time(n);
      const bool exists = t < s.length(b);
      if (!exists && (a.dense != nullptr || s.offsets != nullptr)) continue;
      const int64_t row = s.row(t, b), dense_row = a.dense_row(t, b);
      T *d_z = a.d_xg + dense_row * 4 * H, *d_h = a.d_h0 + b * P, *d_c = a.d_c0 + b * H;
      if (!exists) {
        for (int64_t j = 0; j < 4 * H; ++j) d_z[j] = 0;
        for (int64_t p = 0; a.d_p != nullptr && p < P; ++p) a.d_p[dense_row * P + p] = 0;
        continue;
      }
      const bool resets = s.resets(t, b);
      const T* c = a.c + row * H;
      const T* c_prev = s.first(t, b) ? a.c0 + b * H : a.c + s.row(s.before(t), b) * H;
      if (resets) c_prev = zeros.data();
      const T* gates = a.gates + row * 4 * H;
      const T* d_gates = a.d_gates == nullptr ? nullptr : a.d_gates + row * 4 * H;

      for (int64_t p = 0; p < P; ++p) d_p[p] = (a.d_h == nullptr ? T(0) : a.d_h[row * P + p]) + d_h[p];
      for (int64_t p = 0; a.d_p != nullptr && p < P; ++p) a.d_p[dense_row * P + p] = d_p[p];
      for (int64_t j = 0; j < H; ++j) {
        d_u[j] = a.w_hr == nullptr ? d_p[j] : T(0);
        for (int64_t p = 0; a.w_hr != nullptr && p < P; ++p) d_u[j] += d_p[p] * a.w_hr[p * H + j];
      }
      for (int64_t j = 0; j < H; ++j) {
        const T i = gates[0 * H + j], f = gates[1 * H + j], g = gates[2 * H + j], o = gates[3 * H + j];
        const T tanh_c = std::tanh(c[j]);
        const T d_c_t =
            (a.d_c == nullptr ? T(0) : a.d_c[row * H + j]) + d_c[j] + d_u[j] * o * (1 - tanh_c * tanh_c);
        T d_i = d_c_t * g, d_f = d_c_t * c_prev[j], d_g = d_c_t * i, d_o = d_u[j] * tanh_c;
        if (d_gates != nullptr) {
          d_i += d_gates[0 * H + j], d_f += d_gates[1 * H + j];
          d_g += d_gates[2 * H + j], d_o += d_gates[3 * H + j];
        }
        d_z[0 * H + j] = d_i * i * (1 - i);
        d_z[1 * H + j] = d_f * f * (1 - f);
        d_z[2 * H + j] = d_g * (1 - g * g);
        d_z[3 * H + j] = d_o * o * (1 - o);
        d_c[j] = resets ? T(0) : d_c_t * f;
      }
      for (int64_t p = 0; p < P; ++p) {
        T sum = 0;
        for (int64_t j = 0; !resets && j < 4 * H; ++j) sum += d_z[j] * a.w_hh[j * P + p];
        d_h[p] = sum;
      }
    }
}

template void lstm_forward_reference<float>(const LstmForward<float>&);
template void lstm_forward_reference<double>(const LstmForward<double>&);
template void lstm_backward_reference<float>(const LstmBackward<float>&);
template void lstm_backward_reference<double>(const LstmBackward<double>&);

}  // namespace lrcn
