#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lrcn {

void SampleRules::check() const {
  LRCN_CHECK(draws >= 1, "generate: num_return_sequences must be at least 1, got ", draws);
  LRCN_CHECK(std::isfinite(length_penalty), "generate: length_penalty must be a finite number, got ",
             length_penalty);
  if (greedy) return;
  LRCN_CHECK(logit_scale > 0 && std::isfinite(logit_scale),
             "generate: temperature must be a finite number above 0, ",
             "and so must its inverse, got a factor of ", logit_scale);
  LRCN_CHECK(top_k >= 0, "generate: top_k must be at least 0, got ", top_k);
  LRCN_CHECK(top_p > 0 && top_p <= 1, "generate: top_p must be above 0 and at most 1, got ", top_p);
}

int32_t Sampler::draw(const SampleRules& rules, const TokenRules& tokens, const SpecialTokens& special,
                      const float* logits, double uniform) {
  constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
  kept_.clear();
  int64_t next = 0;  // special token to come
  for (int64_t v = 0; v < tokens.vocab; ++v) {
    float x = logits[v];
    if (next < special.size() && special.tokens[next] == v) {
      x = special.banned[next] ? kMinusInfinity : tokens.penalised(x);
      ++next;
    }
    x = std::min(x * rules.logit_scale, std::numeric_limits<float>::max());  // infinity has no mass
    if (x > kMinusInfinity) kept_.push_back({x, static_cast<int32_t>(v)});
  }
  if (kept_.empty()) return -1;

  const auto likelier = [](const Entry& a, const Entry& b) {
    return a.x != b.x ? a.x > b.x : a.token < b.token;
  };
  const auto by_token = [](const Entry& a, const Entry& b) { return a.token < b.token; };
  if (rules.top_k > 0 && rules.top_k < static_cast<int64_t>(kept_.size())) {
    std::nth_element(kept_.begin(), kept_.begin() + rules.top_k, kept_.end(), likelier);
    kept_.resize(rules.top_k);
  }
  float max = kMinusInfinity;
  for (const Entry& e : kept_) max = std::max(max, e.x);
  const auto mass = [max](const Entry& e) { return std::exp(static_cast<double>(e.x) - max); };
  if (rules.top_p < 1) {
    std::sort(kept_.begin(), kept_.end(), likelier);
    double total = 0, before = 0;
    for (const Entry& e : kept_) total += mass(e);
    size_t count = 0;
    while (count < kept_.size() && before < rules.top_p * total) before += mass(kept_[count++]);
    kept_.resize(count);
  }
  std::sort(kept_.begin(), kept_.end(), by_token);

  mass_.resize(kept_.size());
  double total = 0;
  for (size_t i = 0; i < kept_.size(); ++i) mass_[i] = total += mass(kept_[i]);
  auto drawn = std::upper_bound(mass_.begin(), mass_.end(), uniform * total);
  // The product may round up to the whole: then the last token of any mass.
  if (drawn == mass_.end()) drawn = std::lower_bound(mass_.begin(), mass_.end(), total);
  return kept_[drawn - mass_.begin()].token;
}

}  // namespace lrcn
