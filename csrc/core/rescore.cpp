#include "rescore.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace lrcn {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kLikely = 1.0 / 64;        // so at most 64 banned tokens are worth a look
constexpr int64_t kMultiplyAdds = 1 << 16;  // that are worth a thread, as in pack.h

// One row's terms of the sum as they are replaced, all relative to the old maximum.
struct Sum {
  double max, kept, replaced = 0;
  float best = kMinusInfinity;
  bool finite = true;

  void replace(float* logit, float exact) {
    kept -= std::exp(*logit - max);
    replaced += std::exp(exact - max);
    finite = finite && exact < std::numeric_limits<float>::infinity();
    best = std::max(best, exact);
    *logit = exact;
  }
};

void rescore_row(const SoftmaxTopk& found, const float* w, const char* const* banned, int64_t best,
                 int64_t r) {
  float &max = found.max[r], &log_sum = found.log_sum[r];
  if (!std::isfinite(max) || !std::isfinite(log_sum)) return;  // for the caller to report
  const int64_t V = found.w.N, H = found.w.K, count = found.count[r];
  int32_t* tokens = found.tokens + r * found.best;
  float* logits = found.logits + r * found.best;
  float* all = found.all_logits == nullptr ? nullptr : found.all_logits + r * V;
  Sum sum{max, std::exp(static_cast<double>(log_sum))};
  const auto replace = [&](int32_t token, float* logit, const float* next = nullptr) {
    sum.replace(logit, dot(found.x[r], w + token * H, H, next) + found.bias[token]);
    if (all != nullptr) all[token] = *logit;
  };

  // The rows of w are far apart: waiting for each in turn would take longer than all of the arithmetic.
  for (int64_t i = 0; i < count; ++i)
    replace(tokens[i], &logits[i], i + 1 < count ? w + tokens[i + 1] * H : nullptr);
  for (int64_t i = 0; found.special != nullptr && i < found.special_count[r]; ++i) {
    float* logit = &found.special_logits[r][i];
    if (banned[r][i] && std::exp(static_cast<double>(*logit) - max - log_sum) < kLikely) continue;
    replace(found.special[r][i], logit);
  }
  if (!sum.finite) {
    log_sum = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (sum.best == kMinusInfinity) return;  // nothing that could be chosen

  // Never below 0, where rounding would put it: log p is never above 0.
  const double log_all = std::log(std::max(0.0, sum.kept) + sum.replaced) + (sum.max - sum.best);
  max = sum.best, log_sum = static_cast<float>(std::max(0.0, log_all));

  std::vector<std::pair<float, int32_t>> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = {-logits[i], tokens[i]};
  std::sort(order.begin(), order.end());
  found.count[r] = std::min(best, count);
  for (int64_t i = 0; i < found.count[r]; ++i) logits[i] = -order[i].first, tokens[i] = order[i].second;
}

}  // namespace

float dot(const float* x, const float* w, int64_t n, const float* next) {
  typedef float Four __attribute__((vector_size(16)));
  constexpr int64_t kSums = 4, kStep = 4 * kSums;  // additions in flight, on any processor
  Four sums[kSums] = {};
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) {
    if (next != nullptr) __builtin_prefetch(next + k);
    for (int64_t i = 0; i < kSums; ++i) {
      Four a, b;
      std::memcpy(&a, x + k + 4 * i, sizeof a);
      std::memcpy(&b, w + k + 4 * i, sizeof b);
      sums[i] += a * b;
    }
  }
  const Four four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = (four[0] + four[1]) + (four[2] + four[3]);
  for (; k < n; ++k) total += x[k] * w[k];
  return total;
}

void rescore(const SoftmaxTopk& found, const float* w, const char* const* banned, int64_t best,
             const Parallel& parallel) {
  const int64_t grain = std::max<int64_t>(1, kMultiplyAdds / (found.best * found.w.K));
  parallel(found.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) rescore_row(found, w, banned, best, r);
  });
}

float rescored_log_p(float rounded, float exact, float max, float log_sum) {
  const double before = static_cast<double>(rounded) - max - log_sum;
  const double after = static_cast<double>(exact) - max - log_sum;
  // Its term of the sum is replaced like those of the candidates.
  return static_cast<float>(std::min(0.0, after - std::log1p(std::exp(after) - std::exp(before))));
}

}  // namespace lrcn
