#include "token_rules.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lrcn {

TokenRuleLists::TokenRuleLists(const TokenRules& rules) : rules_(rules) {
  const int64_t V = rules.vocab;
  LRCN_CHECK(rules.eos >= 0 && rules.eos < V, "generate: eos_id must be in 0..", V - 1, ", got ", rules.eos);
  LRCN_CHECK(rules.max_new >= 1, "generate: max_new_tokens must be at least 1, got ", rules.max_new);
  LRCN_CHECK(rules.min_new >= 0 && rules.min_new <= rules.max_new,
             "generate: min_new_tokens must be in 0..max_new_tokens = ", rules.max_new, ", got ",
             rules.min_new);
  LRCN_CHECK(rules.no_repeat_ngram >= 0, "generate: no_repeat_ngram_size must be at least 0, got ",
             rules.no_repeat_ngram);
  LRCN_CHECK(rules.repetition_penalty > 0 && std::isfinite(rules.repetition_penalty),
             "generate: repetition_penalty must be a finite number above 0, got ", rules.repetition_penalty);

  std::vector<int32_t> banned;
  for (int64_t token : rules.suppress) {
    LRCN_CHECK(token >= 0 && token < V, "generate: suppress_tokens must be token ids in 0..", V - 1, ", got ",
               token);
    banned.push_back(static_cast<int32_t>(token));
  }
  std::sort(banned.begin(), banned.end());
  banned.erase(std::unique(banned.begin(), banned.end()), banned.end());
  after_min_.tokens = banned;
  after_min_.banned.assign(banned.size(), 1);

  const int32_t end = static_cast<int32_t>(rules.eos);
  const auto place = std::lower_bound(banned.begin(), banned.end(), end);
  if (place == banned.end() || *place != end) banned.insert(place, end);
  before_min_.tokens = banned;
  before_min_.banned.assign(banned.size(), 1);

  LRCN_CHECK(fixed(0).size() < V, "generate: suppress_tokens must leave a word to start with, but all ", V,
             " tokens are banned", rules.min_new > 0 ? " (min_new_tokens bans the end of sentence)" : "");
}

void TokenRuleLists::of_history(const int32_t* history, int64_t length, int64_t generated,
                                SpecialTokens* out) const {
  out->clear();
  // (token, banned), unsorted and with duplicates; a ban wins over a penalty.
  std::vector<std::pair<int32_t, char>> found;
  if (rules_.repetition_penalty != 1.0f)
    for (int64_t i = 0; i < length; ++i) found.emplace_back(history[i], 0);

  if (const int64_t n = rules_.no_repeat_ngram; n > 0 && n <= length) {
    // The last n - 1 tokens, wherever else they occur, ban what followed them there.
    const int32_t* tail = history + length - (n - 1);
    for (int64_t i = 0; i + n <= length; ++i)
      if (std::equal(tail, history + length, history + i)) found.emplace_back(history[i + n - 1], 1);
  }
  const SpecialTokens& always = fixed(generated);
  for (int32_t token : always.tokens) found.emplace_back(token, 1);

  std::sort(found.begin(), found.end());
  for (const auto& [token, banned] : found) {
    if (out->tokens.empty() || out->tokens.back() != token) {
      out->tokens.push_back(token);
      out->banned.push_back(banned);
    } else {
      out->banned.back() |= banned;
    }
  }
}

}  // namespace lrcn
