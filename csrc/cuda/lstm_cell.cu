// The pointwise half of an LSTM step and of its backward pass; the matrix products are the caller's.
//
// With s = sigmoid, and d_* the gradient of the loss for *:
//
//   i, f, o = s(z_i), s(z_f), s(z_o)   g = tanh(z_g)   c = f c_prev + i g   h = o tanh(c)
//
//   d_o = d_h tanh(c)                  d_c += d_h o (1 - tanh(c)^2)         d_c_prev = d_c f
//   d_i = d_c g    d_f = d_c c_prev    d_g = d_c i
//   d_z_i = d_i i (1 - i), the same for f and o        d_z_g = d_g (1 - g^2)
//
// One thread per (b, j), neighbouring threads on neighbouring j, so that each of the four gate accesses is
// one coalesced segment of a row:
//
//   row b:  | i i i i ... | f f f f ... | g g g g ... | o o o o ... |
//             j             H + j         2H + j        3H + j
#include <cmath>

#include "launch.h"
#include "lstm_common.cuh"

namespace lrcn::cuda {
namespace {

constexpr unsigned kThreads = 128;

// Where this thread is. A block stays inside one row; rows follow each other along x, because y ends at
// 65535.
struct Place {
  int64_t row;
  int64_t unit;
};
LRCN_DEVICE Place place(int64_t units) {
  const unsigned blocks = static_cast<unsigned>((units + kThreads - 1) / kThreads);
  return {block_index() / blocks, int64_t{block_index() % blocks} * kThreads + thread_index()};
}
Grid grid_of(int64_t rows, int64_t units) {
  return {static_cast<unsigned>(rows * ((units + kThreads - 1) / kThreads))};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) lstm_cell_kernel(LstmRows rows, LstmCell cell, int64_t t) {
  using A = typename Wide<T>::type;
  const int64_t H = rows.H;
  const auto [b, j] = place(H);
  if (j >= H) return;
  const int64_t at = b * H + j, step_at = t * rows.B * H + at;
  const int64_t gate = b * 4 * H + j, step_gate = t * rows.B * 4 * H + gate;
  T* const h = static_cast<T*>(cell.h) + at;
  T* const c = static_cast<T*>(cell.c) + step_at;
  T* const gates = static_cast<T*>(cell.gates) + step_gate;

  const int64_t length = length_of(rows, b);
  if (t >= length) {
    put(*h, A(0));
    put(*c, A(0));
    if (cell.gates != nullptr)
      for (int k = 0; k < 4; ++k) put(gates[k * H], A(0));
    return;
  }
  const bool first = is_first(rows, t, length);
  A z[4], c_prev = A(0);
  const T* const xg = static_cast<const T*>(cell.xg) + step_gate;
#pragma unroll
  for (int k = 0; k < 4; ++k) z[k] = widen(xg[k * H]);
  if (keeps_state(rows, t, b)) {
    const A* const recurrent = static_cast<const A*>(first ? cell.z_first : cell.recurrent) + gate;
#pragma unroll
    for (int k = 0; k < 4; ++k) z[k] += recurrent[k * H];
    c_prev = first ? widen(static_cast<const T*>(cell.c0)[at]) : static_cast<const A*>(cell.c_state)[at];
  }

  const A i = sigmoid(z[0]), f = sigmoid(z[1]), g = std::tanh(z[2]), o = sigmoid(z[3]);
  const A c_new = f * c_prev + i * g;
  static_cast<A*>(cell.c_state)[at] = c_new;
  put(*c, c_new);
  put(*h, o * std::tanh(c_new));
  if (cell.gates != nullptr) {
    put(gates[0], i);
    put(gates[H], f);
    put(gates[2 * H], g);
    put(gates[3 * H], o);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lstm_cell_backward_kernel(LstmRows rows, LstmCellBackward cell, int64_t t) {
  using A = typename Wide<T>::type;
  const int64_t H = rows.H;
  const auto [b, j] = place(H);
  if (j >= H) return;
  const int64_t at = b * H + j, step_at = t * rows.B * H + at;
  const int64_t gate = b * 4 * H + j, step_gate = t * rows.B * 4 * H + gate;
  T* const d_xg = static_cast<T*>(cell.d_xg) + step_gate;
  T* const d_first = static_cast<T*>(cell.d_first) + gate;
  T* const d_c0 = static_cast<T*>(cell.d_c0) + at;

  const int64_t length = length_of(rows, b);
  if (t >= length) {
    for (int k = 0; k < 4; ++k) put(d_xg[k * H], A(0));
    if (length == 0 && t == 0) {  // its only chance: it never gets to a first step
      put(*d_c0, A(0));
      if (cell.d_first != nullptr)
        for (int k = 0; k < 4; ++k) put(d_first[k * H], A(0));
    }
    return;
  }
  const bool first = is_first(rows, t, length);
  const bool keeps = keeps_state(rows, t, b);

  CellGradient<A> x{};
  x.d_c = widen(static_cast<const T*>(cell.d_c)[step_at]);
  if (cell.d_h == nullptr) {
    x.d_h = static_cast<const A*>(cell.recurrent)[at];
  } else {
    x.d_h = widen(static_cast<const T*>(cell.d_h)[step_at]);
  }
  if (has_later(rows, t, length)) {
    x.d_c += static_cast<const A*>(cell.carry)[at];
    if (cell.d_h != nullptr && keeps_state(rows, later(rows, t), b))
      x.d_h += static_cast<const A*>(cell.recurrent)[at];
  }
  const T* const gates = static_cast<const T*>(cell.gates) + step_gate;
  const T* const d_gates = static_cast<const T*>(cell.d_gates) + step_gate;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    x.gates[k] = widen(gates[k * H]);
    if (cell.d_gates != nullptr) x.d_gates[k] = widen(d_gates[k * H]);
  }
  const T* const c = static_cast<const T*>(cell.c);
  x.tanh_c = std::tanh(widen(c[step_at]));
  if (keeps)
    x.c_prev =
        widen(first ? static_cast<const T*>(cell.c0)[at] : c[step_at + (rows.reverse ? 1 : -1) * rows.B * H]);

  A d_z[4];
  x.d_z(d_z);
  const A d_c_prev = keeps ? x.d_c * x.gates[1] : A(0);
#pragma unroll
  for (int k = 0; k < 4; ++k) put(d_xg[k * H], d_z[k]);
  static_cast<A*>(cell.carry)[at] = d_c_prev;
  if (first) {
    put(*d_c0, d_c_prev);
    if (cell.d_first != nullptr)
#pragma unroll
      for (int k = 0; k < 4; ++k) put(d_first[k * H], keeps ? d_z[k] : A(0));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    lstm_projection_backward_kernel(LstmRows rows, const T* __restrict__ d_h,
                                    const typename Wide<T>::type* __restrict__ recurrent, T* __restrict__ d_p,
                                    int64_t P, int64_t t) {
  using A = typename Wide<T>::type;
  const auto [b, j] = place(P);
  if (j >= P) return;
  const int64_t at = b * P + j, step_at = t * rows.B * P + at, length = length_of(rows, b);
  A sum = A(0);
  if (t < length) {
    sum = widen(d_h[step_at]);
    if (has_later(rows, t, length) && keeps_state(rows, later(rows, t), b)) sum += recurrent[at];
  }
  put(d_p[step_at], sum);
}

// f(T{}) with T the C++ type of a dtype.
template <typename F>
void with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kBFloat16:
      return f(bf16{});
#ifndef LRCN_SIMT_MUTANT  // a bug in the common source shows in two types
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kFloat16:
      return f(f16{});
#endif
  }
}

}  // namespace

void lstm_cell(const LstmRows& rows, const LstmCell& cell, int64_t t, Stream stream) {
  const Grid grid = grid_of(rows.B, rows.H);
  if (grid.x == 0) return;  // a grid of zero blocks is a launch error
  with_type(rows.dtype, [&](auto type) {
    launch(lstm_cell_kernel<decltype(type)>, grid, kThreads, 1, 0, stream, rows, cell, t);
  });
}

void lstm_cell_backward(const LstmRows& rows, const LstmCellBackward& cell, int64_t t, Stream stream) {
  const Grid grid = grid_of(rows.B, rows.H);
  if (grid.x == 0) return;
  with_type(rows.dtype, [&](auto type) {
    launch(lstm_cell_backward_kernel<decltype(type)>, grid, kThreads, 1, 0, stream, rows, cell, t);
  });
}

void lstm_projection_backward(const LstmRows& rows, const void* d_h, const void* recurrent, void* d_p,
                              int64_t P, int64_t t, Stream stream) {
  const Grid grid = grid_of(rows.B, P);
  if (grid.x == 0) return;
  with_type(rows.dtype, [&](auto type) {
    using T = decltype(type);
    launch(lstm_projection_backward_kernel<T>, grid, kThreads, 1, 0, stream, rows, static_cast<const T*>(d_h),
           static_cast<const typename Wide<T>::type*>(recurrent), static_cast<T*>(d_p), P, t);
  });
}

}  // namespace lrcn::cuda
