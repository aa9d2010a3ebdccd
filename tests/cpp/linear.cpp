// Packing and the packed linear layer, for every weight type, against double.
#include "../../csrc/core/linear.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "random.h"
#include "taken.h"

namespace {

using namespace lrcn;
using test::Random;

constexpr WeightType kTypes[] = {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kInt8};

struct Packed {
  std::vector<char> bytes;
  PackedLinear linear;
  Packed(const std::vector<float>& w, int64_t N, int64_t K, WeightType type)
      : bytes(linear_packed_bytes(N, K, type)), linear{bytes.data(), type, N, K} {
    linear_pack(w.data(), K, 1, N, K, type, bytes.data());
  }
};

// The weights as stored, read back through unit vectors: w[n, k] = (e_k @ w^T)[n].
std::vector<float> stored(const Packed& packed) {
  const int64_t N = packed.linear.N, K = packed.linear.K;
  std::vector<float> identity(K * K, 0.0f), columns(K * N), w(N * K);
  for (int64_t k = 0; k < K; ++k) identity[k * K + k] = 1.0f;
  linear_forward(packed.linear, K, identity.data(), K, nullptr, columns.data(), N);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) w[n * K + k] = columns[k * N + n];
  return w;
}

float nearest_bfloat16(float value) {
  int exponent;
  const double fraction = std::frexp(value, &exponent);  // in [0.5, 1): 8 bits to keep
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8));
}

TEST(packing_keeps_float32) {
  for (int64_t N : {1, 15, 64, 65})
    for (int64_t K : {1, 3, 17}) {
      const auto w = Random(N * 100 + K).values(N * K);
      CHECK(stored(Packed(w, N, K, WeightType::kFloat32)) == w);
    }
}

TEST(packing_rounds_bfloat16_to_nearest_even) {
  const int64_t N = 65, K = 9;
  auto w = Random(1).values(N * K);
  // Halfway between two bfloat16 values: to even, down from 1 + 1/256 and up from 1 + 3/256.
  w[0] = 1.00390625f, w[1] = 1.01171875f, w[2] = -1.00390625f;
  const auto kept = stored(Packed(w, N, K, WeightType::kBFloat16));
  for (size_t i = 0; i < w.size(); ++i) CHECK(kept[i] == nearest_bfloat16(w[i]));
  CHECK(kept[0] == 1.0f && kept[1] == 1.015625f && kept[2] == -1.0f);
}

TEST(packing_passes_nan_and_infinity_through_bfloat16) {
  float w[4] = {std::nanf(""), std::numeric_limits<float>::infinity(), 0, 0};
  const uint32_t payloads[] = {0x7fffffffu, 0x7f800001u};  // NaNs that rounding would make -0 and infinity
  std::memcpy(&w[2], payloads, sizeof payloads);
  const float one = 1.0f;
  float y[4];
  std::vector<char> packed(linear_packed_bytes(4, 1, WeightType::kBFloat16));
  linear_pack(w, 1, 1, 4, 1, WeightType::kBFloat16, packed.data());
  linear_forward({packed.data(), WeightType::kBFloat16, 4, 1}, 1, &one, 1, nullptr, y, 4);
  CHECK(std::isnan(y[0]) && std::isinf(y[1]) && std::isnan(y[2]) && std::isnan(y[3]));
}

TEST(packing_rounds_int8_to_its_scale) {
  const int64_t N = 70, K = 13;
  auto w = Random(2).values(N * K);
  for (int64_t k = 0; k < K; ++k) w[k] = 0.0f, w[K + k] = 1e-35f, w[2 * K + k] *= 1e30f;
  const auto kept = stored(Packed(w, N, K, WeightType::kInt8));
  for (int64_t n = 0; n < N; ++n) {
    float largest = 0;
    for (int64_t k = 0; k < K; ++k) largest = std::fmax(largest, std::fabs(w[n * K + k]));
    for (int64_t k = 0; k < K; ++k)
      CHECK_NEAR(kept[n * K + k], w[n * K + k], std::fmax(largest / 127 * 0.50001, 1e-28));
    for (int64_t k = 0; k < K; ++k)
      if (std::fabs(w[n * K + k]) == largest && n != 1)
        CHECK_NEAR(kept[n * K + k], w[n * K + k], 1e-6 * largest);
  }
  auto bad = w;
  bad[5] = std::nanf("");
  CHECK_THROWS(Packed(bad, N, K, WeightType::kInt8),
               "linear_pack: w must be finite to be stored as int8, got");
  bad[5] = std::numeric_limits<float>::infinity();
  CHECK_THROWS(Packed(bad, N, K, WeightType::kInt8), "must be finite");
}

TEST(packing_a_transposed_weight) {
  const int64_t K = 21;
  for (int64_t N : {1, 3, 67, 100, 128}) {  // panels of one group, of some, and whole ones
    const auto w = Random(3).values(N * K);
    std::vector<float> transposed(K * N);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) transposed[k * N + n] = w[n * K + k];
    for (WeightType type : kTypes) {
      const Packed direct(w, N, K, type);
      std::vector<char> packed(direct.bytes.size());
      linear_pack(transposed.data(), 1, N, N, K, type, packed.data());
      CHECK(packed == direct.bytes);
    }
  }
}

TEST(quantise_rounds_blocks_to_bytes) {
  for (int64_t K : {1, 2, 3, 4, 5, 8, 127, 128, 129, 300}) {
    auto x = Random(K).values(K);
    for (int64_t k = 128; k < K; ++k) x[k] *= 1e-9f;
    const int64_t blocks = (K + simd::kInt8Block - 1) / simd::kInt8Block;
    std::vector<int8_t> q((K + 15) / 16 * 16, 99);
    std::vector<simd::Int8Scale> scales(blocks);
    simd::kernels().quantise(K, x.data(), q.data(), scales.data());
    for (int64_t b = 0; b < blocks; ++b) {
      float largest = 0;
      int sum = 0;
      for (int64_t k = b * simd::kInt8Block; k < std::min(K, (b + 1) * simd::kInt8Block); ++k) {
        largest = std::fmax(largest, std::fabs(x[k])), sum += q[k];
        CHECK_NEAR(q[k] * scales[b].scale, x[k], scales[b].scale * 0.50001);
      }
      CHECK(scales[b].scale <= largest / 64 * 1.000001 && scales[b].scale >= largest / 127 * 0.999999);
      CHECK(scales[b].offset == -128 * sum);
    }
    for (int64_t k = K; k % 4 != 0; ++k) CHECK(q[k] == 0);
  }
}

// What one output may be off: k * eps * sum |x w|, worst k seen 1.9; and with bfloat16 weights on a CPU that
// multiplies pairs of bfloat16, half a unit of x's eighth bit.
class Bound {
 public:
  explicit Bound(WeightType type) {
    if (type == WeightType::kBFloat16 && simd::kernels().round_bfloat16 != nullptr) relative_ += 1.0 / 256;
  }
  void add(double product) { bound_ += relative_ * std::fabs(product); }
  double value() const { return bound_; }

 private:
  double relative_ = 4 * 1.2e-7, bound_ = 0;
};

TEST(linear_matches_double) {
  for (WeightType type : kTypes)
    for (int64_t M : {1, 2, 3, 4, 5, 6, 7, 11, 48, 49})
      for (int64_t N : {1, 63, 64, 65, 130})
        for (int64_t K : {1, 2, 3, 4, 5, 7, 64, 385, 801}) {
          if (M > 7 && (N == 63 || N == 1) && K > 300) continue;
          Random random(M * 1000003 + N * 1009 + K);
          const Packed packed(random.values(N * K), N, K, type);
          const auto x = random.values(M * K), bias = random.values(N);
          const auto w = K <= 64 ? stored(packed) : std::vector<float>();
          const auto multiplied = test::taken(type, x, M, K);
          std::vector<float> y(M * N, NAN);
          linear_forward(packed.linear, M, x.data(), K, bias.data(), y.data(), N);
          for (int64_t m = 0; m < M && !w.empty(); ++m)
            for (int64_t n = 0; n < N; ++n) {
              double sum = bias[n];
              Bound bound(type);
              bound.add(bias[n]);
              for (int64_t k = 0; k < K; ++k) {
                const double product = static_cast<double>(multiplied[m * K + k]) * w[n * K + k];
                sum += product, bound.add(product);
              }
              CHECK_NEAR(y[m * N + n], sum, bound.value());
            }
          // The same bits for each row alone, with K longer than a block too.
          for (int64_t m = 0; m < M; ++m) {
            std::vector<float> alone(N);
            linear_forward(packed.linear, 1, x.data() + m * K, K, bias.data(), alone.data(), N);
            CHECK(std::memcmp(alone.data(), y.data() + m * N, N * sizeof(float)) == 0);
          }
        }
}

TEST(linear_matches_double_over_long_rows) {
  const int64_t N = 80, K = 1501;
  for (WeightType type : kTypes)
    for (int64_t M : {1, 5, 8}) {
      Random random(11);
      const Packed packed(random.values(N * K), N, K, type);
      const auto w = stored(packed), x = random.values(M * K), multiplied = test::taken(type, x, M, K);
      std::vector<float> y(M * N);
      linear_forward(packed.linear, M, x.data(), K, nullptr, y.data(), N);
      for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n) {
          double sum = 0;
          Bound bound(type);
          for (int64_t k = 0; k < K; ++k) {
            const double product = static_cast<double>(multiplied[m * K + k]) * w[n * K + k];
            sum += product, bound.add(product);
          }
          CHECK_NEAR(y[m * N + n], sum, bound.value());
        }
    }
}

TEST(int8_sums_do_not_overflow) {
  const int64_t M = 7, N = 64, K = 1500;  // every product is the largest there is, of either sign
  for (float sign : {1.0f, -1.0f})
    for (float value : {2.0f, -2.0f}) {
      const Packed packed(std::vector<float>(N * K, value), N, K, WeightType::kInt8);
      const std::vector<float> x(M * K, sign * 3.0f);
      std::vector<float> y(M * N);
      linear_forward(packed.linear, M, x.data(), K, nullptr, y.data(), N);
      for (float found : y) CHECK_NEAR(found, sign * value * 3.0 * K, 1e-6 * 6 * K);
    }
}

TEST(int8_keeps_rows_apart_that_are_not_finite_or_tiny) {
  const int64_t M = 4, N = 64, K = 9;
  Random random(12);
  const Packed packed(random.values(N * K), N, K, WeightType::kInt8);
  auto x = random.values(M * K);
  x[3] = std::nanf(""), x[K + 8] = -std::numeric_limits<float>::infinity();
  for (int64_t k = 0; k < K; ++k) x[2 * K + k] *= 1e-38f;
  std::vector<float> y(M * N), alone(N);
  linear_forward(packed.linear, M, x.data(), K, nullptr, y.data(), N);
  linear_forward(packed.linear, 1, x.data() + 3 * K, K, nullptr, alone.data(), N);
  for (int64_t n = 0; n < N; ++n) {
    CHECK(std::isnan(y[n]) && std::isnan(y[N + n]));
    CHECK(y[2 * N + n] == 0.0f && y[3 * N + n] == alone[n]);
  }
}

// Three uneven chunks, in reverse order.
const Parallel kChunks(+[](int64_t, int64_t n, int64_t, Parallel::Body body, void* context) {
  const int64_t a = n / 3, b = n / 2;
  if (b < n) body(context, b, n);
  if (a < b) body(context, a, b);
  if (a > 0) body(context, 0, a);
});

TEST(linear_is_the_same_in_any_split_of_the_work) {
  const int64_t M = 9, N = 333, K = 100;
  for (WeightType type : kTypes) {
    Random random(7);
    const auto w = random.values(N * K), x = random.values(M * K);
    std::vector<char> serial(linear_packed_bytes(N, K, type)), split(serial.size());
    linear_pack(w.data(), K, 1, N, K, type, serial.data());
    linear_pack(w.data(), K, 1, N, K, type, split.data(), kChunks);
    CHECK(serial == split);
    std::vector<float> y(M * N), z(M * N);
    linear_forward({serial.data(), type, N, K}, M, x.data(), K, nullptr, y.data(), N);
    linear_forward({serial.data(), type, N, K}, M, x.data(), K, nullptr, z.data(), N, kChunks);
    CHECK(y == z);
  }
}

TEST(linear_panel_is_a_block_of_the_whole) {
  const int64_t M = 6, N = 150, K = 37;
  for (WeightType type : kTypes) {
    Random random(8);
    const Packed packed(random.values(N * K), N, K, type);
    const auto x = random.values(M * K), bias = random.values(N);
    std::vector<float> y(M * N), out(M * 64);
    linear_forward(packed.linear, M, x.data(), K, bias.data(), y.data(), N);
    const auto rows = test::rows_of(x.data(), M, K);
    const DotInput input(type, M, rows.data(), K);
    for (int64_t p = 0; p < panel_count(N); ++p) {
      linear_panel(packed.linear, p, M, input.from(0), bias.data(), out.data());
      for (int64_t m = 0; m < M; ++m)
        for (int64_t j = 0; j < 64; ++j)
          CHECK(out[m * 64 + j] == (p * 64 + j < N ? y[m * N + p * 64 + j] : 0.0f));
    }
  }
}

TEST(linear_of_nothing) {
  const std::vector<float> w(64, 1.0f);
  const Packed packed(w, 64, 1, WeightType::kFloat32);
  linear_forward(packed.linear, 0, nullptr, 1, nullptr, nullptr, 64);
  // K = 0: the bias alone.
  const Packed empty({}, 3, 0, WeightType::kInt8);
  const float bias[3] = {1, 2, 3};
  float y[3];
  linear_forward(empty.linear, 1, nullptr, 0, bias, y, 3);
  CHECK(y[0] == 1 && y[1] == 2 && y[2] == 3);
}

}  // namespace
