#include "linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "pack.h"

namespace lrcn {

void linear_pack(const float* w, int64_t stride_n, int64_t stride_k, int64_t N, int64_t K, WeightType type,
                 void* packed, const Parallel& parallel) {
  parallel(panel_count(N), /*grain=*/4, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float* rows[kPanelColumns];
      for (int64_t j = 0; j < kPanelColumns; ++j) {
        const int64_t n = p * kPanelColumns + j;
        rows[j] = n < N ? w + n * stride_n : nullptr;
      }
      const PackPart parts[] = {{rows, stride_k, K}};
      pack_panel("linear_pack: w", parts, 1, type, static_cast<char*>(packed) + p * panel_bytes(K, 0, type));
    }
  });
}

DotInput::DotInput(WeightType type, int64_t rows, const float* const* x, int64_t k, const Parallel& parallel)
    : x_(x), k_(k) {
  const simd::KernelTable& kernels = simd::kernels();
  const bool rounds = type == WeightType::kBFloat16 && kernels.round_bfloat16 != nullptr;
  if (x == nullptr || (type != WeightType::kInt8 && !rounds)) return;
  blocks_ = rounds ? 0 : (k + simd::kInt8Block - 1) / simd::kInt8Block;
  q_bytes_ = (k + 15) / 16 * 16 * static_cast<int64_t>(rounds ? sizeof(int16_t) : sizeof(int8_t));
  q_.resize(rows * q_bytes_), scales_.resize(rows * blocks_);
  parallel(rows, /*grain=*/std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, k)),
           [&](int64_t begin, int64_t end) {
             for (int64_t r = begin; r < end; ++r) {
               char* q = q_.data() + r * q_bytes_;
               if (rounds)
                 kernels.round_bfloat16(k, x[r], reinterpret_cast<int16_t*>(q));
               else
                 kernels.quantise(k, x[r], reinterpret_cast<int8_t*>(q), scales_.data() + r * blocks_);
             }
           });
}

simd::DotRows DotInput::from(int64_t row) const {
  if (x_ == nullptr) return {nullptr, k_, nullptr, 0, nullptr, 0};
  return {x_ + row, k_, q_.data() + row * q_bytes_, q_bytes_, scales_.data() + row * blocks_, blocks_};
}

void linear_panel(const PackedLinear& w, int64_t panel, int64_t rows, const simd::DotRows& x,
                  const float* bias, float* out) {
  const char* packed = static_cast<const char*>(w.packed) + panel * panel_bytes(w.K, 0, w.type);
  float start[kPanelColumns] = {};
  if (bias != nullptr) {
    const int64_t n = std::min(kPanelColumns, w.N - panel * kPanelColumns);
    std::copy_n(bias + panel * kPanelColumns, n, start);
  }
  for (int64_t r = 0; r < rows; ++r) std::copy_n(start, kPanelColumns, out + r * kPanelColumns);
  simd::kernels().panel_dot(
      {packed, w.type, rows, x, {}, out, is_far(linear_packed_bytes(w.N, w.K, w.type))});
}

void linear_rows(const PackedLinear& w, int64_t rows, const float* const* x, const float* bias,
                 float* const* y, const Parallel& parallel) {
  if (rows == 0) return;
  const int64_t grain = panels_per_task(w.K, rows);
  const DotInput input(w.type, rows, x, w.K, parallel);
  parallel(panel_count(w.N), grain, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kRowsPerPass * kPanelColumns];
    const PanelOrder order(w.packed);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = order.panel(i, begin, end);
      const int64_t column = p * kPanelColumns;
      const size_t bytes = static_cast<size_t>(std::min(kPanelColumns, w.N - column)) * sizeof(float);
      for (int64_t r = 0, n; r < rows; r += n) {
        n = rows_of_pass(rows - r);
        linear_panel(w, p, n, input.from(r), bias, sums);
        for (int64_t j = 0; j < n; ++j) std::memcpy(y[r + j] + column, sums + j * kPanelColumns, bytes);
      }
    }
  });
}

void linear_forward(const PackedLinear& w, int64_t M, const float* x, int64_t ldx, const float* bias,
                    float* y, int64_t ldy, const Parallel& parallel) {
  std::vector<const float*> in(M);
  std::vector<float*> out(M);
  for (int64_t m = 0; m < M; ++m) in[m] = x + m * ldx, out[m] = y + m * ldy;
  linear_rows(w, M, in.data(), bias, out.data(), parallel);
}

}  // namespace lrcn
