// softmax_topk against the definition in float64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/core/softmax_topk.h"
#include "check.h"

namespace lrcn {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Problem {
  int64_t V, H, rows;
  std::vector<float> w, bias, x;
  std::vector<char> packed;
  std::vector<const float*> row;

  Problem(int64_t V, int64_t H, int64_t rows, unsigned seed) : V(V), H(H), rows(rows) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& v, int64_t n) {
      v.resize(n);
      for (float& f : v) f = normal(random);
    };
    fill(w, V * H), fill(bias, V), fill(x, rows * H);
    pack();
  }

  void pack() {
    packed.resize(linear_packed_bytes(V, H, WeightType::kFloat32));
    linear_pack(w.data(), H, 1, V, H, WeightType::kFloat32, packed.data());
    row.clear();
    for (int64_t r = 0; r < rows; ++r) row.push_back(x.data() + r * H);
  }

  std::vector<double> logits(int64_t r) const {
    std::vector<double> out(bias.begin(), bias.end());
    for (int64_t v = 0; v < V; ++v)
      for (int64_t k = 0; k < H; ++k) out[v] += static_cast<double>(w[v * H + k]) * x[r * H + k];
    return out;
  }
};

struct Found {
  std::vector<int32_t> tokens;
  std::vector<float> logits, max, log_sum, all;
  std::vector<int64_t> count;
  std::vector<std::vector<float>> special;

  // Bit for bit: NaN equals itself.
  bool operator==(const Found& o) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    return tokens == o.tokens && count == o.count && special == o.special && same(logits, o.logits) &&
           same(max, o.max) && same(log_sum, o.log_sum) && same(all, o.all);
  }
};

// Pieces of three, the last one first: any partition must give the same bits.
void in_pieces(int64_t n, int64_t, Parallel::Body body, void* context) {
  for (int64_t begin = (n - 1) / 3 * 3; begin >= 0; begin -= 3) body(context, begin, std::min(n, begin + 3));
}

Found run(const Problem& p, int64_t best, const std::vector<std::vector<int32_t>>& special = {},
          const Parallel& parallel = {}) {
  Found f;
  f.tokens.assign(p.rows * best, -1), f.logits.assign(p.rows * best, 0), f.count.resize(p.rows);
  f.max.resize(p.rows), f.log_sum.resize(p.rows), f.all.resize(p.rows * p.V);
  std::vector<const int32_t*> tokens;
  std::vector<int64_t> counts;
  std::vector<float*> out;
  for (const auto& list : special) f.special.emplace_back(list.size());
  for (size_t r = 0; r < special.size(); ++r) {
    tokens.push_back(special[r].data());
    counts.push_back(static_cast<int64_t>(special[r].size()));
    out.push_back(f.special[r].data());
  }
  SoftmaxTopk args{};
  args.w = {p.packed.data(), WeightType::kFloat32, p.V, p.H}, args.bias = p.bias.data();
  args.rows = p.rows, args.x = p.row.data(), args.best = best;
  if (!special.empty()) args.special = tokens.data(), args.special_count = counts.data();
  args.special_logits = out.data();
  args.tokens = f.tokens.data(), args.logits = f.logits.data(), args.count = f.count.data();
  args.max = f.max.data(), args.log_sum = f.log_sum.data(), args.all_logits = f.all.data();
  SoftmaxTopkBuffers buffers;
  softmax_topk(args, &buffers, parallel);
  // Again, shared out differently: nothing may be left over in the buffers.
  const Found first = f;
  softmax_topk(args, &buffers, Parallel(&in_pieces));
  CHECK(first == f);
  softmax_topk(args, &buffers, parallel);
  CHECK(first == f);
  return f;
}

void check_against_definition(const Problem& p, int64_t best,
                              const std::vector<std::vector<int32_t>>& special) {
  const Found f = run(p, best, special);
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> logits = p.logits(r);
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (double x : logits) sum += std::exp(x - max);
    // float32 sums of H = 9 products: measured 2e-6.
    CHECK_NEAR(f.max[r], max, 1e-5);
    CHECK_NEAR(f.log_sum[r], std::log(sum), 1e-5);

    std::vector<int32_t> order;
    for (int32_t v = 0; v < p.V; ++v)
      if (special.empty() || !std::binary_search(special[r].begin(), special[r].end(), v)) order.push_back(v);
    const float* all = f.all.data() + r * p.V;
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return all[a] != all[b] ? all[a] > all[b] : a < b; });
    const int64_t count = std::min<int64_t>(best, static_cast<int64_t>(order.size()));
    CHECK(f.count[r] == count);
    for (int64_t i = 0; i < count; ++i) {
      CHECK(f.tokens[r * best + i] == order[i]);
      CHECK(f.logits[r * best + i] == all[order[i]]);
    }
    for (int64_t v = 0; v < p.V; ++v) CHECK_NEAR(all[v], logits[v], 1e-5);
    if (special.empty()) continue;
    for (size_t i = 0; i < special[r].size(); ++i) CHECK(f.special[r][i] == all[special[r][i]]);
  }
}

TEST(topk_matches_its_definition) {
  for (int64_t V : {1, 2, 63, 64, 65, 255, 257, 700})
    for (int64_t rows : {1, 3, 8})
      for (int64_t best : {1, 10, 70, 800}) check_against_definition(Problem(V, 9, rows, V + rows), best, {});
}

TEST(topk_sets_special_tokens_aside) {
  for (int64_t V : {3, 64, 300, 700}) {
    const Problem p(V, 9, 3, V);
    std::vector<int32_t> ends = {0, static_cast<int32_t>(V - 1)}, every(V);
    std::iota(every.begin(), every.end(), 0);
    check_against_definition(p, 7, {{}, ends, every});
    check_against_definition(p, 7, {{1}, {}, {2}});
  }
}

TEST(topk_does_not_depend_on_the_partition_or_on_other_rows) {
  const Problem p(5000, 40, 7, 3);
  const std::vector<std::vector<int32_t>> special = {{}, {5, 4999}, {}, {0, 256, 257}, {}, {}, {64}};
  const Found serial = run(p, 12, special);
  CHECK(serial == run(p, 12, special, Parallel(&in_pieces)));
  for (int64_t r = 0; r < p.rows; ++r) {
    Problem one = p;
    one.rows = 1, one.row = {p.row[r]};
    const Found alone = run(one, 12, {special[r]});
    CHECK(std::equal(alone.tokens.begin(), alone.tokens.end(), serial.tokens.begin() + r * 12));
    CHECK(std::equal(alone.logits.begin(), alone.logits.end(), serial.logits.begin() + r * 12));
    CHECK(alone.max[0] == serial.max[r] && alone.log_sum[0] == serial.log_sum[r]);
  }
}

TEST(topk_gives_ties_to_the_lower_token) {
  Problem p(900, 4, 2, 1);
  std::fill(p.w.begin(), p.w.end(), 0.0f);
  for (int64_t v = 0; v < p.V; ++v) p.bias[v] = static_cast<float>(v % 3);
  p.pack();
  const Found f = run(p, 5, {}, Parallel(&in_pieces));
  CHECK((std::vector<int32_t>(f.tokens.begin(), f.tokens.begin() + 5) ==
         std::vector<int32_t>{2, 5, 8, 11, 14}));
}

TEST(topk_log_probabilities_are_never_above_zero) {
  // One logit far above the rest: log_sum is 0, not a rounding below it.
  Problem p(1000, 3, 1, 2);
  p.bias[777] = 500;
  const Found f = run(p, 2);
  CHECK(f.tokens[0] == 777);
  CHECK(f.log_sum[0] >= 0 && (f.logits[0] - f.max[0]) - f.log_sum[0] == 0);
}

TEST(topk_ignores_minus_infinity_and_reports_nan) {
  Problem p(300, 3, 1, 2);
  for (int64_t v = 0; v < p.V; ++v)
    if (v != 7 && v != 100) p.bias[v] = -kInf;
  Found f = run(p, 5);
  CHECK(f.count[0] == 2);
  CHECK(std::isfinite(f.log_sum[0]));
  for (float bad : {kInf, std::numeric_limits<float>::quiet_NaN()}) {
    p.bias[250] = bad;
    f = run(p, 5);
    CHECK(!std::isfinite(f.max[0]) || !std::isfinite(f.log_sum[0]));
  }
  std::fill(p.bias.begin(), p.bias.end(), -kInf);
  f = run(p, 5);
  CHECK(f.count[0] == 0 && !std::isfinite(f.log_sum[0]));
}

}  // namespace
}  // namespace lrcn
