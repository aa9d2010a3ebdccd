// Which tokens a caption may continue with, and at what price: the rules that
// beam search, greedy search and sampling share.
//
// In the order of Hugging Face's processors, on the scores x of one row (log-probabilities in
// beam search, logits otherwise):
//
//   repetition_penalty p   x < 0 ? x * p : x / p      for tokens already in the caption
//   no_repeat_ngram n      -inf                       for tokens that would complete a seen n-gram
//   min_new                -inf                       for EOS in the first min_new tokens
//   suppress               -inf                       always
//
// A caption's history is its prefix and what was generated. BOS is not part of it.
//
// Few tokens are touched, so they are listed rather than masked: selection (softmax_topk.h) leaves
// the listed "special" tokens out of its best candidates and returns their scores beside them.
#pragma once

#include <cstdint>
#include <vector>

#include "base.h"

namespace lrcn {

struct TokenRules {
  int64_t vocab = 0;  // V
  int64_t eos = 0;
  int64_t max_new = 20;
  int64_t min_new = 0;
  int64_t no_repeat_ngram = 0;      // 0: off
  float repetition_penalty = 1.0f;  // 1: off
  std::vector<int64_t> suppress;    // any order, duplicates allowed

  bool reads_history() const { return no_repeat_ngram > 0 || repetition_penalty != 1.0f; }
  float penalised(float x) const { return x < 0 ? x * repetition_penalty : x / repetition_penalty; }
};

// Tokens with a rule of their own in one row. Sorted by token, no duplicates.
struct SpecialTokens {
  std::vector<int32_t> tokens;
  std::vector<char> banned;  // beside tokens; not banned means penalised

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  void clear() { tokens.clear(), banned.clear(); }
};

// The special tokens of rows whose history does not matter: computed once.
class TokenRuleLists {
 public:
  // Throws when the rules ban every token from the start, or are out of range.
  explicit TokenRuleLists(const TokenRules& rules);

  const TokenRules& rules() const { return rules_; }

  // The list of a row that has generated `generated` tokens, when no rule reads the history.
  const SpecialTokens& fixed(int64_t generated) const {
    return generated < rules_.min_new ? before_min_ : after_min_;
  }

  // The list of one row. history [length]: prefix and generated tokens, oldest first.
  void of_history(const int32_t* history, int64_t length, int64_t generated, SpecialTokens* out) const;

 private:
  TokenRules rules_;
  SpecialTokens before_min_, after_min_;
};

}  // namespace lrcn
