// exp, sigmoid and tanh of the instruction set in force against long double, over every magnitude of float.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/core/simd/table.h"
#include "check.h"

namespace {

using lrcn::simd::kernels;

// Every 4093rd float (a prime: all mantissa patterns come by), both signs; then the neighbourhood of 0
// where the sigmoid and tanh of an LSTM live, densely.
std::vector<float> sweep() {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 4093) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    x.push_back(value);
    x.push_back(-value);
  }
  for (int i = -200000; i <= 200000; ++i) x.push_back(static_cast<float>(i) / 2000.0f);
  return x;
}

// The worst error in units of the result's last place, or of that of `smallest` where it is below that.
double worst_ulps(void (*f)(int64_t, const float*, float*), long double (*exact)(long double),
                  long double smallest = 1.17549435e-38L) {
  const std::vector<float> x = sweep();
  std::vector<float> y(x.size());
  f(static_cast<int64_t>(x.size()), x.data(), y.data());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double want = exact(x[i]);
    if (want > std::numeric_limits<float>::max()) {
      CHECK(std::isinf(y[i]) || y[i] == std::numeric_limits<float>::max());
      continue;
    }
    const long double size = std::fmax(std::fabs(want), smallest);
    const long double ulp = std::ldexp(1.0L, std::ilogb(size) - 23);
    worst = std::fmax(worst, static_cast<double>(std::fabs(y[i] - want) / ulp));
  }
  return worst;
}

long double exact_sigmoid(long double x) {
  return 1.0L / (1.0L + expl(-x));
}

// Worst seen, generic and AVX2: 1.6, 2.2 and 1.3.
TEST(exp_is_within_three_ulps) {
  CHECK_NEAR(worst_ulps(kernels().exp, &expl), 0, 3);
}

// The mean relative error over [from, to]: rounding averages out to 1e-10, what remains is the polynomial's
// own.
double bias(void (*f)(int64_t, const float*, float*), long double (*exact)(long double), float from,
            float to) {
  constexpr int kCount = 200000;
  std::vector<float> x(kCount), y(kCount);
  for (int i = 0; i < kCount; ++i) x[i] = from + (to - from) * static_cast<float>(i) / kCount;
  f(kCount, x.data(), y.data());
  long double sum = 0;
  for (int i = 0; i < kCount; ++i) sum += (y[i] - exact(x[i])) / exact(x[i]);
  return static_cast<double>(sum / kCount);
}

// At the ends of the reduced range, where the highest powers weigh most: a coefficient of exp that is off by
// 1 % hides under the rounding of any single value, but not here. Worst seen: 6e-9 (Taylor's remainder).
TEST(exp_has_no_bias) {
  CHECK_NEAR(bias(kernels().exp, &expl, 0.33f, 0.3465f), 0, 8e-9);
  CHECK_NEAR(bias(kernels().exp, &expl, -0.3465f, -0.33f), 0, 8e-9);
}

// The fit's own error is 1.9e-8 at its peaks.
TEST(tanh_has_no_bias) {
  CHECK_NEAR(bias(kernels().tanh, &tanhl, 0.3f, 0.625f), 0, 8e-9);
  CHECK_NEAR(bias(kernels().tanh, &tanhl, -0.625f, -0.3f), 0, 8e-9);
}

// Past x = -88.7 the result is 0: results under 1e-38 are off by up to 6e-39.
TEST(sigmoid_is_within_five_ulps) {
  CHECK_NEAR(worst_ulps(kernels().sigmoid, &exact_sigmoid, 1e-31L), 0, 5);
}

TEST(tanh_is_within_three_ulps) {
  CHECK_NEAR(worst_ulps(kernels().tanh, &tanhl), 0, 3);
}

TEST(functions_saturate_and_pass_nan) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const float x[] = {inf, -inf, nan, 0.0f, -0.0f, 1e30f, -1e30f};
  float y[7];
  kernels().exp(7, x, y);
  CHECK(y[0] == inf && y[1] == 0 && std::isnan(y[2]) && y[3] == 1 && y[4] == 1 && y[5] == inf && y[6] == 0);
  kernels().sigmoid(7, x, y);
  CHECK(y[0] == 1 && y[1] == 0 && std::isnan(y[2]) && y[3] == 0.5f && y[4] == 0.5f && y[5] == 1 && y[6] == 0);
  kernels().tanh(7, x, y);
  CHECK(y[0] == 1 && y[1] == -1 && std::isnan(y[2]) && y[3] == 0 && y[4] == 0 && y[5] == 1 && y[6] == -1);
  CHECK(!std::signbit(y[3]) && std::signbit(y[4]));
}

TEST(functions_write_no_more_than_n_values) {
  for (int64_t n = 0; n <= 33; ++n) {
    std::vector<float> x(n, 0.25f), y(n + 1, -7.0f);
    kernels().tanh(n, x.data(), y.data());
    for (int64_t i = 0; i < n; ++i) CHECK(y[i] == y[0] && y[i] > 0.24f);
    CHECK(y[n] == -7.0f);
  }
}

}  // namespace
