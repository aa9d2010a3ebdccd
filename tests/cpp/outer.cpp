// Sums of outer products against double.
#include "../../csrc/core/outer.h"

#include <limits>

#include "check.h"
#include "random.h"

namespace {

using namespace lrcn;
using test::Random;

std::vector<const float*> rows_of(const std::vector<float>& values, int64_t K, int64_t n) {
  std::vector<const float*> rows(K);
  for (int64_t k = 0; k < K; ++k) rows[k] = values.data() + k * n;
  return rows;
}

std::vector<float> outer_sum_of(int64_t K, int64_t M, int64_t N, const std::vector<float>& a,
                                const std::vector<float>& b, const Parallel& parallel = {}) {
  std::vector<float> c(M * N, std::numeric_limits<float>::quiet_NaN());
  outer_sum(K, M, rows_of(a, K, M).data(), N, rows_of(b, K, N).data(), c.data(), parallel);
  return c;
}

// Calls the body for the last element first, one by one.
Parallel backwards() {
  return Parallel(+[](int64_t, int64_t n, int64_t, Parallel::Body body, void* context) {
    for (int64_t i = n - 1; i >= 0; --i) body(context, i, i + 1);
  });
}

// No k, few k, one block of them and more; tiles cut at their rows, columns and both; several blocks of rows.
constexpr int64_t kSizes[][3] = {{0, 3, 5},  {1, 1, 1},    {20, 100, 33},  {64, 97, 16},
                                 {65, 6, 8}, {300, 97, 1}, {257, 200, 70}, {513, 13, 64}};

TEST(outer_sum_matches_double) {
  for (const auto& [K, M, N] : kSizes) {
    const auto a = Random(K + M).values(K * M), b = Random(K + N + 1).values(K * N);
    const auto c = outer_sum_of(K, M, N, a, b);
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < N; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < K; ++k) {
          const double term = static_cast<double>(a[k * M + m]) * b[k * N + n];
          sum += term, size += std::fabs(term);
        }
        // Rounding grows with the terms; worst seen 1.4 eps (AVX2).
        CHECK_NEAR(c[m * N + n], sum, 4 * std::numeric_limits<float>::epsilon() * size);
      }
  }
}

TEST(outer_sum_does_not_depend_on_the_tasks) {
  for (const auto& [K, M, N] : kSizes) {
    const auto a = Random(K + M).values(K * M), b = Random(K + N + 1).values(K * N);
    CHECK(outer_sum_of(K, M, N, a, b) == outer_sum_of(K, M, N, a, b, backwards()));
  }
}

}  // namespace
