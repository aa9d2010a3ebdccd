// What the persistent LSTM kernels share: weights as operands of mma, and how rows are dealt out.
#pragma once

#include <stdexcept>
#include <string>

#include "launch.h"
#include "lstm_common.cuh"

namespace lrcn::cuda {

// The weights of 8 units and kPairs pairs of k-steps, in the registers of a warp, as operand a of
// mma.m16n8k16: two tiles with the gates on M,
//
//            rows 0-7   rows 8-15
//   tile 0      i           f         of the units
//   tile 1      g           o
//
// so that with the batch on N, lane (g, q) = (lane / 4, lane % 4) gets all gates of unit g and of two rows,
// 2q and 2q + 1: sum[gate / 2][gate % 2 * 2 + row].
//
// The operands' k order is free as long as weights and h agree. In it a lane's four b registers of two
// k-steps are one piece, the 8 units of a block or tile:
//
//   lane q of 4, k-step s of 2, register r of 2, half e of 2   <->   k = 32 pair + 8 q + 4 s + 2 r + e
template <typename T, int kPairs>
struct GateWeights {
  uint32_t pair[kPairs][2][2][4];  // [pair][k-step][tile]

  // From w_hh [4H, H], zeros outside of it: units first_unit .. + 7, k from first_k on.
  LRCN_DEVICE void load(const void* w_hh, int64_t H, int first_unit, int first_k) {
    const int unit = first_unit + lane_index() / 4, q = lane_index() % 4;
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int gate = 2 * m + i % 2, k = first_k + p * 32 + 8 * q + 4 * s + 2 * (i / 2);
            const T* const row = static_cast<const T*>(w_hh) + (gate * H + unit) * H;
            const float low = unit < H && k < H ? to_float(row[k]) : 0.0f;
            const float high = unit < H && k + 1 < H ? to_float(row[k + 1]) : 0.0f;
            pair[p][s][m][i] = pack<T>(low, high);
          }
  }

  // sum += weights of pair p times its piece of h
  LRCN_DEVICE void multiply(int p, const Vec16& h, float (&sum)[2][4]) const {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const uint32_t b[2] = {h.word[2 * s], h.word[2 * s + 1]};
      mma<T>(sum[0], pair[p][s][0], b);
      mma<T>(sum[1], pair[p][s][1], b);
    }
  }
};

// The rows as one of LstmDirections goes through them.
LRCN_DEVICE LstmRows rows_in(LstmRows rows, unsigned direction) {
  if (direction == 1) rows.reverse = !rows.reverse;
  return rows;
}

// One unit of one row in the backward kernels that run all steps, from the forward pass's last to its first.
template <typename T>
struct BackwardCell {
  int64_t row;
  int unit;
  bool mine;  // else it only keeps its thread busy
  int length;
  float carry = 0.0f;  // gradient of c from the later step
  bool active = false, keeps = false, has_next = false;
  bool next_keeps = false;  // the later step sends d_h back
  CellGradient<float> x;    // everything but what we wait for

  LRCN_DEVICE BackwardCell(const LstmRows& rows, int64_t row, int unit, bool mine)
      : row(row), unit(unit), mine(mine), length(mine ? static_cast<int>(length_of(rows, row)) : 0) {}

  LRCN_DEVICE void load(const LstmRows& rows, const LstmSequenceBackward& args, int64_t t) {
    const int64_t H = rows.H, at = row * H + unit, step_at = t * rows.B * H + at;
    active = t < length;
    const bool first = is_first(rows, t, length);
    keeps = active && keeps_state(rows, t, row);
    has_next = active && has_later(rows, t, length);
    next_keeps = has_next && keeps_state(rows, later(rows, t), row);
    x = {};
    if (!active) return;
    const T* const c = static_cast<const T*>(args.c);
    x.d_h = to_float(static_cast<const T*>(args.d_h)[step_at]);
    x.d_c = to_float(static_cast<const T*>(args.d_c)[step_at]);
    x.tanh_c = std::tanh(to_float(c[step_at]));
    const int64_t step_gate = (t * rows.B + row) * 4 * H + unit;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      x.gates[k] = to_float(static_cast<const T*>(args.gates)[step_gate + k * H]);
      if (args.d_gates != nullptr)
        x.d_gates[k] = to_float(static_cast<const T*>(args.d_gates)[step_gate + k * H]);
    }
    if (keeps)
      x.c_prev = to_float(first ? static_cast<const T*>(args.c0)[at]
                                : c[step_at + (rows.reverse ? 1 : -1) * rows.B * H]);
  }

  // recurrent: d_z[later] W_hh if next_keeps, else zero
  LRCN_DEVICE void finish(float recurrent, float (&d_z)[4]) {
    d_z[0] = d_z[1] = d_z[2] = d_z[3] = 0.0f;
    if (!active) return;
    x.d_h += recurrent;
    if (has_next) x.d_c += carry;
    x.d_z(d_z);
    carry = keeps ? x.d_c * x.gates[1] : 0.0f;
  }

  LRCN_DEVICE void write(const LstmRows& rows, const LstmSequenceBackward& args, int64_t t,
                         const float (&d_z)[4]) const {
    if (!mine) return;
    const int64_t H = rows.H, gate = row * 4 * H + unit;
#pragma unroll
    for (int k = 0; k < 4; ++k) put(static_cast<T*>(args.d_xg)[t * rows.B * 4 * H + gate + k * H], d_z[k]);
    if (!is_first(rows, t, length) && !(length == 0 && t == 0)) return;
    put(static_cast<T*>(args.d_c0)[row * H + unit], carry);
    if (args.d_first != nullptr)
#pragma unroll
      for (int k = 0; k < 4; ++k) put(static_cast<T*>(args.d_first)[gate + k * H], keeps ? d_z[k] : 0.0f);
  }
};

// f(T{}) with T the C++ type of a half-precision dtype.
template <typename F>
void with_half_type(const char* name, Dtype dtype, F&& f) {
  if (dtype == Dtype::kBFloat16) return f(bf16{});
#ifndef LRCN_SIMT_MUTANT  // a bug in the common source shows in one type
  if (dtype == Dtype::kFloat16) return f(f16{});
#endif
  throw std::invalid_argument(std::string(name) + ": dtype must be float16 or bfloat16");
}

// Deals the rows to groups of blocks of the plan grid: start(type, rows a group, blocks), the groups of each
// direction along y.
template <typename F>
void with_groups(const char* name, const LstmRows& rows, int64_t groups, int64_t directions, F&& start) {
  if (rows.T == 0 || rows.B == 0 || rows.H == 0) return;
  const int64_t group_rows = (rows.B + groups - 1) / groups;
  if (rows.H > kLstmGridHidden || group_rows > kLstmGridRows)
    throw std::invalid_argument(std::string(name) + ": H must be at most " + std::to_string(kLstmGridHidden) +
                                " and the rows of a group " + std::to_string(kLstmGridRows) + ", got " +
                                std::to_string(rows.H) + " and " + std::to_string(group_rows));
  groups = (rows.B + group_rows - 1) / group_rows;  // none is left without rows
  const Grid grid{static_cast<unsigned>(lstm_grid_blocks(rows.H)), static_cast<unsigned>(groups * directions),
                  true};
  with_half_type(name, rows.dtype, [&](auto type) { start(type, group_rows, grid); });
}

}  // namespace lrcn::cuda
