#include "outer.h"

#include <algorithm>
#include <vector>

#include "memory.h"
#include "simd/table.h"

namespace lrcn {
namespace {

// Values of k in a block: a strip of b is 16 KB in the first-level cache, and the rows of a pass by it.
constexpr int64_t kDepth = 256;

// Rows of c in a block: 192 KB of a, in the second-level cache. Of few k a strip takes no time, and c is
// written best row by row.
constexpr int64_t kRows = 192;
constexpr int64_t kFew = 64;

}  // namespace

void outer_sum(int64_t K, int64_t M, const float* const* a, int64_t N, const float* const* b, float* c,
               const Parallel& parallel) {
  if (K == 0) return void(std::fill_n(c, M * N, 0.0f));
  const simd::KernelTable& kernels = simd::kernels();
  const int64_t width = kernels.outer_columns, strips = (N + width - 1) / width;
  const Scratch packed = allocate_scratch(K * strips * width * static_cast<int64_t>(sizeof(float)));
  float* packed_b = reinterpret_cast<float*>(packed.get());
  parallel((K + kDepth - 1) / kDepth, /*grain=*/1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kDepth; k < std::min(K, end * kDepth); k += kDepth)
      kernels.outer_pack_columns(std::min(kDepth, K - k), b + k, 0, N, packed_b + k * strips * width);
  });

  const int64_t step = K <= kFew ? kernels.outer_rows : kRows;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, step * N * K));
  parallel((M + step - 1) / step, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> packed_a(step * std::min(K, kDepth));
    for (int64_t m = begin * step; m < std::min(M, end * step); m += step) {
      const int64_t rows = std::min(step, M - m);
      for (int64_t k = 0; k < K; k += kDepth) {
        const int64_t depth = std::min(kDepth, K - k);
        kernels.outer_pack_rows(depth, a + k, m, rows, packed_a.data());
        const float* strip = packed_b + k * strips * width;
        for (int64_t n = 0; n < N; n += width, strip += depth * width)
          kernels.outer_product(
              {depth, packed_a.data(), rows, strip, std::min(width, N - n), c + m * N + n, N, k > 0});
      }
    }
  });
}

}  // namespace lrcn
