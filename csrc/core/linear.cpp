#include "linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "pack.h"
#include "simd/table.h"

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

void linear_panel(const PackedLinear& w, int64_t panel, int64_t rows, const float* const* x,
                  const float* bias, float* out) {
  const char* packed = static_cast<const char*>(w.packed) + panel * panel_bytes(w.K, 0, w.type);
  simd::kernels().panel_dot({packed, w.type, rows, x, w.K, nullptr, 0, out});
  if (bias == nullptr) return;
  const int64_t n = std::min(kPanelColumns, w.N - panel * kPanelColumns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) out[r * kPanelColumns + j] += bias[panel * kPanelColumns + j];
}

void linear_rows(const PackedLinear& w, int64_t rows, const float* const* x, const float* bias,
                 float* const* y, const Parallel& parallel) {
  if (rows == 0) return;
  const int64_t grain = panels_per_task(w.K, rows);
  parallel(panel_count(w.N), grain, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kRowsPerPass * kPanelColumns];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t column = p * kPanelColumns;
      const size_t bytes = static_cast<size_t>(std::min(kPanelColumns, w.N - column)) * sizeof(float);
      for (int64_t r = 0, n; r < rows; r += n) {
        n = rows_of_pass(rows - r);
        linear_panel(w, p, n, x + r, bias, sums);
        for (int64_t i = 0; i < n; ++i) std::memcpy(y[r + i] + column, sums + i * kPanelColumns, bytes);
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
