// softmax_topk and rescore against their definitions in float64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/core/rescore.h"
#include "../../csrc/core/softmax_topk.h"
#include "check.h"

namespace lrcn {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Problem {
  int64_t V, H, rows;
  WeightType type;
  std::vector<float> w, bias, x;
  std::vector<char> packed;
  std::vector<const float*> row;

  Problem(int64_t V, int64_t H, int64_t rows, unsigned seed, WeightType type = WeightType::kFloat32)
      : V(V), H(H), rows(rows), type(type) {
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
    packed.resize(linear_packed_bytes(V, H, type));
    linear_pack(w.data(), H, 1, V, H, type, packed.data());
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
void in_pieces(int64_t, int64_t n, int64_t, Parallel::Body body, void* context) {
  for (int64_t begin = (n - 1) / 3 * 3; begin >= 0; begin -= 3) body(context, begin, std::min(n, begin + 3));
}

struct Rescored {
  Found before, after;
};

// `best` is what softmax_topk looks for; rescore, if asked for, leaves `kept` of them.
Rescored run_both(const Problem& p, int64_t best, const std::vector<std::vector<int32_t>>& special,
                  const Parallel& parallel, int64_t kept, const std::vector<std::vector<char>>& banned) {
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
  args.w = {p.packed.data(), p.type, p.V, p.H}, args.bias = p.bias.data();
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
  if (kept == 0) return {first, f};
  std::vector<const char*> flags;
  for (const auto& list : banned) flags.push_back(list.data());
  rescore(args, p.w.data(), flags.data(), kept, parallel);
  return {first, f};
}

Found run(const Problem& p, int64_t best, const std::vector<std::vector<int32_t>>& special = {},
          const Parallel& parallel = {}) {
  return run_both(p, best, special, parallel, 0, {}).after;
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

TEST(dot_is_a_dot_product) {
  const Problem p(1, 70, 2, 5);
  for (int64_t n = 0; n <= 70; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += static_cast<double>(p.w[k]) * p.x[k];
    CHECK_NEAR(dot(p.x.data(), p.w.data(), n), sum, 5e-6);  // measured 1.4e-6
  }
}

// Of each row: `before` with the logits of R replaced, in float64.
void check_rescored(const Problem& p, int64_t kept, const std::vector<std::vector<int32_t>>& special,
                    const std::vector<std::vector<char>>& banned) {
  const int64_t best = std::min(p.V, rescore_candidates(kept));
  const auto [before, after] = run_both(p, best, special, {}, kept, banned);
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<double> exact = p.logits(r);
    const float* rounded = before.all.data() + r * p.V;
    std::vector<char> in_r(p.V);
    std::vector<int32_t> order(before.tokens.begin() + r * best,
                               before.tokens.begin() + r * best + before.count[r]);
    for (int32_t token : order) in_r[token] = 1;
    for (size_t i = 0; !special.empty() && i < special[r].size(); ++i) {
      const int32_t token = special[r][i];
      const double probability =
          std::exp(static_cast<double>(rounded[token]) - before.max[r] - before.log_sum[r]);
      in_r[token] = !banned[r][i] || probability >= 1.0 / 64;
      CHECK(after.special[r][i] == after.all[r * p.V + token]);
    }
    double sum = 0;
    for (int64_t v = 0; v < p.V; ++v) {
      const float got = after.all[r * p.V + v];
      if (in_r[v])
        CHECK_NEAR(got, exact[v], 2e-5);  // H = 40 products: measured 4e-6
      else
        CHECK(got == rounded[v]);
      sum += std::exp(in_r[v] ? exact[v] : static_cast<double>(rounded[v]));
    }
    CHECK_NEAR(after.max[r] + after.log_sum[r], std::log(sum), 2e-5);
    CHECK(after.log_sum[r] >= 0);

    const float* all = after.all.data() + r * p.V;
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return all[a] != all[b] ? all[a] > all[b] : a < b; });
    CHECK(after.count[r] == std::min<int64_t>(kept, static_cast<int64_t>(order.size())));
    for (int64_t i = 0; i < after.count[r]; ++i) {
      CHECK(after.tokens[r * best + i] == order[i]);
      CHECK(after.logits[r * best + i] == all[order[i]]);
      CHECK(after.logits[r * best + i] <= after.max[r]);
    }

    for (int32_t v : {0, static_cast<int32_t>(p.V / 2), static_cast<int32_t>(p.V - 1)}) {
      // A word on its own: its term is replaced too.
      const double replaced = in_r[v] ? sum : sum - std::exp(double{rounded[v]}) + std::exp(exact[v]);
      CHECK_NEAR(rescored_log_p(all[v], static_cast<float>(exact[v]), after.max[r], after.log_sum[r]),
                 exact[v] - std::log(replaced), 3e-5);
    }
  }
}

TEST(rescore_matches_its_definition) {
  for (int64_t V : {1, 5, 64, 300})
    for (int64_t kept : {1, 10, 400}) check_rescored(Problem(V, 40, 3, V, WeightType::kInt8), kept, {}, {});
  // Logits near each other, where rounding changes the order of most.
  Problem p(300, 40, 3, 1, WeightType::kInt8);
  for (float& x : p.x) x *= 0.01f;
  p.bias.assign(p.V, 0.0f);
  check_rescored(p, 10, {}, {});
}

TEST(rescore_takes_banned_tokens_that_are_likely_and_all_that_are_not_banned) {
  Problem p(300, 40, 3, 4, WeightType::kInt8);
  for (int64_t v : {7, 8}) p.bias[v] = 40;  // nearly all of the probability
  check_rescored(p, 10, {{3, 7, 8}, {0, 8, 299}, {}}, {{1, 1, 0}, {0, 1, 1}, {}});
  std::vector<int32_t> every(p.V);
  std::iota(every.begin(), every.end(), 0);
  check_rescored(p, 10, {every, {}, every}, {std::vector<char>(p.V, 1), {}, std::vector<char>(p.V, 0)});
}

TEST(rescore_does_not_depend_on_the_partition_or_on_other_rows) {
  const Problem p(5000, 70, 7, 3, WeightType::kInt8);
  const std::vector<std::vector<int32_t>> special = {{}, {5, 4999}, {}, {0, 256, 257}, {}, {}, {64}};
  const std::vector<std::vector<char>> banned = {{}, {0, 1}, {}, {1, 0, 1}, {}, {}, {1}};
  const Found serial = run_both(p, 20, special, {}, 12, banned).after;
  CHECK(serial == run_both(p, 20, special, Parallel(&in_pieces), 12, banned).after);
  for (int64_t r = 0; r < p.rows; ++r) {
    Problem one = p;
    one.rows = 1, one.row = {p.row[r]};
    const Found alone = run_both(one, 20, {special[r]}, {}, 12, {banned[r]}).after;
    CHECK(std::equal(alone.tokens.begin(), alone.tokens.end(), serial.tokens.begin() + r * 20));
    CHECK(std::equal(alone.logits.begin(), alone.logits.end(), serial.logits.begin() + r * 20));
    CHECK(alone.max[0] == serial.max[r] && alone.log_sum[0] == serial.log_sum[r]);
  }
}

TEST(rescore_gives_ties_to_the_lower_token_and_log_probabilities_up_to_zero) {
  Problem p(900, 4, 1, 1, WeightType::kInt8);
  std::fill(p.w.begin(), p.w.end(), 0.0f);
  for (int64_t v = 0; v < p.V; ++v) p.bias[v] = static_cast<float>(v % 3);
  p.pack();
  const Found ties = run_both(p, 13, {}, {}, 5, {}).after;
  CHECK((std::vector<int32_t>(ties.tokens.begin(), ties.tokens.begin() + 5) ==
         std::vector<int32_t>{2, 5, 8, 11, 14}));
  p.bias[777] = 500;
  const Found one = run_both(p, 13, {}, {}, 5, {}).after;
  CHECK(one.tokens[0] == 777 && one.max[0] == 500 && one.log_sum[0] == 0);
}

TEST(rescore_ignores_minus_infinity_and_reports_what_is_not_finite) {
  Problem p(300, 3, 1, 2, WeightType::kInt8);
  for (int64_t v = 0; v < p.V; ++v)
    if (v != 7 && v != 100) p.bias[v] = -kInf;
  Found f = run_both(p, 13, {{3, 7}}, {}, 5, {{0, 0}}).after;
  CHECK(f.count[0] == 1 && f.tokens[0] == 100 && f.special[0][0] == -kInf);
  CHECK(std::isfinite(f.log_sum[0]));
  Problem bad = p;
  bad.w[100 * 3] = std::copysign(kInf, p.x[0]);  // only the exact logit of a candidate is infinite
  CHECK(!std::isfinite(run_both(bad, 13, {}, {}, 5, {}).after.log_sum[0]));
  p.bias[250] = kInf;
  f = run_both(p, 13, {}, {}, 5, {}).after;
  CHECK(!std::isfinite(f.max[0]) || !std::isfinite(f.log_sum[0]));
}

}  // namespace
}  // namespace lrcn
