// Logits of the words that a search chooses among, from the projection before it was rounded.
//
//   R            the candidates of a row, its special tokens that may still be chosen, and banned ones
//                of probability 1/64 or more
//   logit'(v)    = x . w[v] + bias[v] for v in R, with w in float32; logit(v) for the others
//   log_sum'     = log sum_v exp(logit'(v) - max'),  max' = max_{v in R} logit'(v)
//
// The sum over all words is not made again: R's terms in it are replaced. They are most of it, so log p
// of a candidate is close to what float32 weights give for the same x.
//
// Rounding also moves words past each other. So softmax_topk is asked for more candidates than a search
// needs, rescore_candidates(best), and the best of them by logit' remain. Their order is strict (logit',
// larger first; token, lower first), and a row's result depends on that row only.
#pragma once

#include <cstdint>

#include "base.h"
#include "softmax_topk.h"

namespace lrcn {

constexpr int64_t rescore_candidates(int64_t best) {
  return best + 8;
}

// x . w of [n], summed in an order that depends on n only. `next` [n] is fetched meanwhile; null: nothing is.
float dot(const float* x, const float* w, int64_t n, const float* next = nullptr);

// found: what softmax_topk was called with, after it; its outputs are replaced. Of each row at most `best`
// candidates remain. w [V, H] row-major; banned [special_count[r]] each, beside found.special.
void rescore(const SoftmaxTopk& found, const float* w, const char* const* banned, int64_t best,
             const Parallel& parallel = {});

// log p of any word whose logit softmax_topk found to be `rounded` and which rescore left alone or not;
// `exact` is logit'. max and log_sum are the row's.
float rescored_log_p(float rounded, float exact, float max, float log_sum);

}  // namespace lrcn
