// Drawing one token from a row of logits.
//
// In the order of Hugging Face's processors: the token rules (token_rules.h), then
//   temperature   x * logit_scale, at most the largest float
//   top_k         the first k tokens remain, in the order (x falling, token rising)
//   top_p         of those, in the same order, the ones before which less than top_p of the mass that
//                 is left has accumulated remain: at least one
// and then the inverse of the cumulative distribution, in the order of token ids: the first token at
// which the mass of the remaining tokens so far exceeds uniform * their total. Masses are added in
// float64, in that order, so that a draw is a function of the logits and of the uniform number alone.
#pragma once

#include <cstdint>
#include <vector>

#include "token_rules.h"

namespace lrcn {

struct SampleRules {
  bool greedy = false;  // the likeliest token after the token rules; what follows is not read
  int64_t draws = 1;    // n; 1 when greedy
  float logit_scale = 1.0f;
  int64_t top_k = 0;                 // 0: all
  double top_p = 1;                  // 1: all
  const double* uniforms = nullptr;  // [B, n, max_new], each in [0, 1)
  double length_penalty = 0;         // for the scores only

  void check() const;
};

class Sampler {
 public:
  // logits [vocab] are those of the model and are left alone. Returns -1 when every token is banned.
  int32_t draw(const SampleRules& rules, const TokenRules& tokens, const SpecialTokens& special,
               const float* logits, double uniform);

 private:
  struct Entry {
    float x;
    int32_t token;
  };
  std::vector<Entry> kept_;
  std::vector<double> mass_;
};

}  // namespace lrcn
