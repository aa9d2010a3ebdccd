// The fused LSTM step, forward and backward against the readable reference in double.
#include "../../csrc/core/lstm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "random.h"
#include "taken.h"

namespace {

using namespace lrcn;
using test::Random;
using test::rows_of;

constexpr double kEps = 1.2e-7;

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// One step by the equations, in double: z, then the gates, c and h.
struct Step {
  std::vector<double> gates, c, h;
  Step(int64_t H, const std::vector<double>& z, const float* c_prev) : gates(4 * H), c(H), h(H) {
    for (int64_t j = 0; j < H; ++j) {
      const double i = sigmoid(z[j]), f = sigmoid(z[H + j]), g = std::tanh(z[2 * H + j]);
      const double o = sigmoid(z[3 * H + j]);
      gates[j] = i, gates[H + j] = f, gates[2 * H + j] = g, gates[3 * H + j] = o;
      c[j] = f * c_prev[j] + i * g;
      h[j] = o * std::tanh(c[j]);
    }
  }
};

// Weights that every type stores exactly: q / 128 with |q| <= 127 and the largest of a row 127 / 128.
std::vector<float> exact_weights(Random& random, int64_t rows, int64_t columns) {
  std::vector<float> w = random.values(rows * columns);
  for (float& value : w) value = std::nearbyint(value * 126) / 128;
  for (int64_t r = 0; r < rows; ++r) w[r * columns] = 127.0f / 128;
  return w;
}

TEST(lstm_step_matches_double) {
  for (WeightType type : {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kInt8})
    for (int64_t H : {1, 15, 16, 17, 40})
      for (int64_t rows : {1, 2, 5, 7, 50})
        for (int64_t kx : {0, 1, 7}) {
          const int64_t kh = rows == 2 ? 0 : H;
          if (kx + kh == 0) continue;
          Random random(H * 1009 + rows * 31 + kx);
          const auto w_ih = exact_weights(random, 4 * H, std::max<int64_t>(kx, 1));
          const auto w_hh = exact_weights(random, 4 * H, std::max<int64_t>(kh, 1));
          const auto a = random.values(rows * 4 * H), b = random.values(rows * 4 * H);
          const auto x = random.values(rows * kx), h_prev = random.values(rows * kh);
          const auto c_prev = random.values(rows * H);
          std::vector<char> packed(lstm_packed_bytes(H, kx, kh, type));
          lstm_pack(w_ih.data(), kx, kx, w_hh.data(), kh, H, type, packed.data());
          std::vector<float> h(rows * H), c = c_prev, gates(rows * 4 * H);  // c in place of c_prev
          const auto ra = rows_of(a.data(), rows, 4 * H), rb = rows_of(b.data(), rows, 4 * H);
          const auto rx = rows_of(x.data(), rows, kx), rh = rows_of(h_prev.data(), rows, kh);
          const auto taken_x = test::taken(type, x, rows, kx), taken_h = test::taken(type, h_prev, rows, kh);
          const auto out_h = rows_of(h.data(), rows, H), out_c = rows_of(c.data(), rows, H);
          const auto out_gates = rows_of(gates.data(), rows, 4 * H);
          const std::vector<const float*> rc(out_c.begin(), out_c.end());
          const bool two = rows != 5;  // with and without the second term
          lstm_step({packed.data(), type, H, rows, ra.data(), two ? rb.data() : nullptr,
                     kx ? rx.data() : nullptr, kx, kh ? rh.data() : nullptr, kh, rc.data(), out_h.data(),
                     out_c.data(), out_gates.data()});

          for (int64_t r = 0; r < rows; ++r) {
            std::vector<double> z(4 * H);
            for (int64_t n = 0; n < 4 * H; ++n) {
              z[n] = static_cast<double>(ra[r][n]) + (two ? rb[r][n] : 0.0f);
              for (int64_t k = 0; k < kx; ++k)
                z[n] += static_cast<double>(taken_x[r * kx + k]) * w_ih[n * kx + k];
              for (int64_t k = 0; k < kh; ++k)
                z[n] += static_cast<double>(taken_h[r * kh + k]) * w_hh[n * kh + k];
            }
            const Step want(H, z, c_prev.data() + r * H);
            // Worst seen: 8.4 eps, at 50 inputs. With bfloat16 weights x and h may be rounded too: z is off
            // by half a step for each weight, all under 1; the slope of c over z is under 1.5.
            const bool rounds = type == WeightType::kBFloat16 && simd::kernels().round_bfloat16 != nullptr;
            const double bound = 16 * kEps + (rounds ? 1.5 / 512 * static_cast<double>(kx + kh) : 0);
            for (int64_t n = 0; n < 4 * H; ++n) CHECK_NEAR(out_gates[r][n], want.gates[n], bound);
            for (int64_t j = 0; j < H; ++j) CHECK_NEAR(out_c[r][j], want.c[j], bound);
            for (int64_t j = 0; j < H; ++j) CHECK_NEAR(out_h[r][j], want.h[j], bound);
          }
          // Each row alone, without gates: the same bits.
          for (int64_t r = 0; r < rows; ++r) {
            std::vector<float> one_h(H), one_c(H);
            const float* one_c_prev = c_prev.data() + r * H;
            float *ph = one_h.data(), *pc = one_c.data();
            lstm_step({packed.data(), type, H, 1, ra.data() + r, two ? rb.data() + r : nullptr,
                       kx ? rx.data() + r : nullptr, kx, kh ? rh.data() + r : nullptr, kh, &one_c_prev, &ph,
                       &pc, nullptr});
            CHECK(std::memcmp(ph, out_h[r], H * sizeof(float)) == 0);
            CHECK(std::memcmp(pc, out_c[r], H * sizeof(float)) == 0);
          }
        }
}

TEST(lstm_pack_takes_a_column_range) {
  const int64_t H = 5, I = 9, kx = 4;
  Random random(4);
  const auto w_ih = random.values(4 * H * I), w_hh = random.values(4 * H * H);
  std::vector<float> columns(4 * H * kx);
  for (int64_t n = 0; n < 4 * H; ++n) std::copy_n(w_ih.data() + n * I + 3, kx, columns.data() + n * kx);
  for (WeightType type : {WeightType::kFloat32, WeightType::kBFloat16, WeightType::kInt8}) {
    std::vector<char> a(lstm_packed_bytes(H, kx, H, type)), b(a.size());
    lstm_pack(w_ih.data() + 3, I, kx, w_hh.data(), H, H, type, a.data());
    lstm_pack(columns.data(), kx, kx, w_hh.data(), H, H, type, b.data());
    CHECK(a == b);
  }
}

// A whole problem in float and in double.
template <typename T>
struct Sequence {
  LstmShape shape;
  std::vector<T> xg, w_hh, w_hr, h0, c0, h, c, gates, d_h, d_c, d_gates, d_xg, d_h0, d_c0, d_p;

  Sequence(const LstmShape& s, bool projects, uint64_t seed) : shape(s) {
    Random random(seed);
    const int64_t TB = s.steps * s.batch, H = s.hidden, P = s.proj;
    const auto draw = [&](int64_t n, double scale) {
      const auto v = random.values(n, static_cast<float>(scale));
      return std::vector<T>(v.begin(), v.end());
    };
    xg = draw(TB * 4 * H, 1.7), w_hh = draw(4 * H * P, 1.7 / std::sqrt(static_cast<double>(P)));
    if (projects) w_hr = draw(P * H, 1.7 / std::sqrt(static_cast<double>(H)));
    h0 = draw(s.batch * P, 1), c0 = draw(s.batch * H, 1.7);
    d_h = draw(TB * P, 1), d_c = draw(TB * H, 1), d_gates = draw(TB * 4 * H, 1);
    const T bad = std::nan("");  // outputs must be written whole; padding must not be read
    h.assign(TB * P, bad), c.assign(TB * H, bad), gates.assign(TB * 4 * H, bad);
    d_xg.assign(TB * 4 * H, bad), d_h0.assign(s.batch * P, bad), d_c0.assign(s.batch * H, bad);
    d_p.assign(projects ? TB * P : 0, bad);
    for (int64_t t = 0; t < s.steps; ++t)
      for (int64_t b = 0; b < s.batch; ++b)
        if (t >= s.length(b)) {
          const int64_t row = t * s.batch + b;
          std::fill_n(xg.data() + row * 4 * H, 4 * H, bad),
              std::fill_n(d_gates.data() + row * 4 * H, 4 * H, bad);
          std::fill_n(d_h.data() + row * P, P, bad), std::fill_n(d_c.data() + row * H, H, bad);
        }
  }
  LstmForward<T> forward() {
    return {shape,    xg.data(), w_hh.data(), w_hr.empty() ? nullptr : w_hr.data(), h0.data(), c0.data(),
            h.data(), c.data(),  gates.data()};
  }
  LstmBackward<T> backward() {
    return {shape,
            d_h.data(),
            d_c.data(),
            d_gates.data(),
            w_hh.data(),
            w_hr.empty() ? nullptr : w_hr.data(),
            gates.data(),
            c0.data(),
            c.data(),
            d_xg.data(),
            d_h0.data(),
            d_c0.data(),
            d_p.empty() ? nullptr : d_p.data()};
  }
};

void check_all(const std::vector<float>& a, const std::vector<double>& b, double bound) {
  double largest = 1;
  for (double value : b) largest = std::fmax(largest, std::fabs(value));
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(std::isfinite(a[i]));
    CHECK_NEAR(a[i], b[i], bound * largest);
  }
}

TEST(lstm_sequences_match_the_reference) {
  const int64_t lengths[] = {6, 0, 3, 5, 1, 6, 2};
  for (int64_t H : {1, 17, 64})
    for (int64_t proj : {0, 9})
      for (int masks = 0; masks < 8; ++masks) {
        const int64_t T = 6, B = 7;
        std::vector<uint8_t> cont(T * B);
        for (int64_t i = 0; i < T * B; ++i) cont[i] = i % 4 != 1;
        LstmShape shape{T, B, H, proj > 0 ? proj : H};
        shape.lengths = (masks & 1) != 0 ? lengths : nullptr;
        shape.cont = (masks & 2) != 0 ? cont.data() : nullptr;
        shape.reverse = (masks & 4) != 0;
        const uint64_t seed = H * 100 + proj * 10 + masks;
        Sequence<float> fast(shape, proj > 0, seed);
        Sequence<double> slow(shape, proj > 0, seed);
        const WeightType type = WeightType::kFloat32;
        std::vector<char> packed(lstm_sequence_packed_bytes(H, shape.proj, proj > 0, type));
        lstm_sequence_pack(fast.w_hh.data(), fast.w_hr.empty() ? nullptr : fast.w_hr.data(), H, shape.proj,
                           type, packed.data());
        lstm_forward(fast.forward(), packed.data(), type);
        lstm_forward_reference(slow.forward());
        // Worst seen: 3.3 forward, 4.9 backward.
        check_all(fast.h, slow.h, 8 * kEps);
        check_all(fast.c, slow.c, 8 * kEps);
        check_all(fast.gates, slow.gates, 8 * kEps);
        lstm_backward(fast.backward());
        lstm_backward_reference(slow.backward());
        check_all(fast.d_xg, slow.d_xg, 12 * kEps);
        check_all(fast.d_h0, slow.d_h0, 12 * kEps);
        check_all(fast.d_c0, slow.d_c0, 12 * kEps);
        check_all(fast.d_p, slow.d_p, 12 * kEps);
      }
}

}  // namespace
