// y = x @ w^T + b for few rows and a weight that is used many times.
//
// Shapes: M rows, N outputs, K inputs. w is [N, K] row-major, as torch.nn.Linear stores it.
//
// The packed weight is a sequence of panels of 64 outputs. A panel is four groups of 16 outputs, and a
// group is K-major with 32-bit words, each holding the next 1 (float32), 2 (bfloat16) or 4 (int8) values
// of k for one output:
//
//     panel:  [ 64 scales, int8 only ][ group 0 ][ group 1 ][ group 2 ][ group 3 ]
//     group:  word k=0 of outputs 0..15 | next word of outputs 0..15 | ...
//
// so that every type is read as full registers in order, with no shuffle. Outputs past N and values past K
// are zero. K may come in two parts, x then h, each padded to whole words: the LSTM packs [W_ih | W_hh].
//
// Every output is one accumulation in the order of k, whatever M, the thread count or the blocking, so a
// row's result depends on nothing but that row.
#pragma once

#include <cstddef>
#include <cstdint>

#include <vector>

#include "base.h"
#include "simd/table.h"
#include "weight_type.h"

namespace lrcn {

constexpr int64_t panel_count(int64_t n) {
  return (n + kPanelColumns - 1) / kPanelColumns;
}

// Values of k in one 32-bit word.
constexpr int64_t values_per_word(WeightType type) {
  return type == WeightType::kFloat32 ? 1 : type == WeightType::kBFloat16 ? 2 : 4;
}

// Bytes of one panel whose inputs are kx values of x, then kh values of h (0: absent).
constexpr int64_t panel_bytes(int64_t kx, int64_t kh, WeightType type) {
  const int64_t per_word = values_per_word(type);
  const int64_t words = (kx + per_word - 1) / per_word + (kh + per_word - 1) / per_word;
  const int64_t scales = type == WeightType::kInt8 ? kPanelColumns * 4 : 0;
  return scales + words * kPanelColumns * 4;
}

constexpr int64_t linear_packed_bytes(int64_t N, int64_t K, WeightType type) {
  return panel_count(N) * panel_bytes(K, 0, type);
}

// w [N, K], element (n, k) at w[n * stride_n + k * stride_k], so that a transposed weight packs in place.
// packed [linear_packed_bytes] is written. int8 refuses a weight that is not finite.
void linear_pack(const float* w, int64_t stride_n, int64_t stride_k, int64_t N, int64_t K, WeightType type,
                 void* packed, const Parallel& parallel = {});

// A packed weight [N, K].
struct PackedLinear {
  const void* packed;  // from linear_pack
  WeightType type;
  int64_t N;
  int64_t K;
};

// Rows of activations, ready to multiply packed weights of a type: as they are for float32, as 8-bit
// integers for int8 (simd/tile_int8.h), rounded for bfloat16 on a CPU that multiplies pairs of those
// (simd/tile_bfloat16.h). Made once for all panels; x must outlive it.
class DotInput {
 public:
  // x[r] [k] for r in [0, rows); null: zeros.
  DotInput(WeightType type, int64_t rows, const float* const* x, int64_t k, const Parallel& parallel = {});

  // Rows [row, rows).
  simd::DotRows from(int64_t row) const;

 private:
  const float* const* x_;
  int64_t k_, q_bytes_ = 0, blocks_ = 0;
  std::vector<char> q_;
  std::vector<simd::Int8Scale> scales_;
};

// y[r] = x[r] @ w^T + bias for rows given as pointers: x[r] [K], y[r] [N]; bias [N] or null.
// No y[r] may overlap an x.
void linear_rows(const PackedLinear& w, int64_t rows, const float* const* x, const float* bias,
                 float* const* y, const Parallel& parallel = {});

// The same for matrices with row strides: x [M, K], y [M, N].
void linear_forward(const PackedLinear& w, int64_t M, const float* x, int64_t ldx, const float* bias,
                    float* y, int64_t ldy, const Parallel& parallel = {});

// One panel: out[r * 64 + j] = x[r] . w[64 * panel + j] + bias[64 * panel + j]. Columns at or past N are
// 0 when all x are finite and unspecified otherwise. out [rows, 64]. The block that a fused
// projection + selection works on; serial.
void linear_panel(const PackedLinear& w, int64_t panel, int64_t rows, const simd::DotRows& x,
                  const float* bias, float* out);

}  // namespace lrcn
