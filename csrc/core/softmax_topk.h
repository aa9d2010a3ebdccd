// Vocabulary projection, log-softmax and the best C tokens of each row, in one pass.
//
//   logit(v) = x . w[v] + bias[v]          log p(v) = (logit(v) - max) - log_sum
//   max = max_v logit(v)                   log_sum = log sum_v exp(logit(v) - max)
//
// The weight is walked panel by panel (linear.h). While a panel's 64 logits per row are in the first
// level cache, they update the row's running (max, sum) and compete for its best C, and are then
// forgotten: no [R, V] matrix exists.
//
// The vocabulary is cut into chunks of kChunkPanels panels whatever the number of threads. Each chunk
// has its own (max, sum), merged in order at the end, and "best" is a strict total order (logit, larger
// first; token, lower first), so a row's result depends on that row only.
#pragma once

#include <cstdint>
#include <vector>

#include "base.h"
#include "linear.h"

namespace lrcn {

constexpr int64_t kChunkPanels = 4;  // 256 tokens: 35 chunks for 8801, enough to share among threads

struct SoftmaxTopk {
  PackedLinear w;     // [V, H]
  const float* bias;  // [V]
  int64_t rows;
  const float* const* x;  // [H] each
  int64_t best;           // C, at least 1; may exceed V

  // Per row: tokens that are left out of the best and whose logits are reported apart. Rising, no
  // duplicates. They count in max and log_sum. Null: no row has any.
  const int32_t* const* special;  // [special_count[r]] each
  const int64_t* special_count;

  // Outputs.
  int32_t* tokens;               // [rows, C], logit falling, then token rising
  float* logits;                 // [rows, C]
  int64_t* count;                // [rows]: how many were found; less than C where the rest is special or -inf
  float* const* special_logits;  // beside special
  float* max;                    // [rows]
  float* log_sum;                // [rows]; NaN where a logit is NaN or +inf
  float* all_logits;             // [rows, V] for sampling, which needs them all; or null
};

// Buffers that one call leaves to the next.
class SoftmaxTopkBuffers {
 public:
  // Serial callers use one Range; with threads each range of chunks has its own.
  struct Entry {
    float logit;
    int32_t token;
  };
  struct Range {
    bool used = false;
    std::vector<float> block;      // [rows, 64] logits of one panel
    std::vector<Entry> entries;    // [rows, capacity]
    std::vector<int64_t> count;    // [rows]
    std::vector<float> threshold;  // [rows]: the C-th best so far, or -inf
    std::vector<int64_t> cursor;   // [rows]: next special token
  };
  struct Partial {
    float max, sum;
  };
  std::vector<Range> ranges;      // by first chunk
  std::vector<Partial> partials;  // [chunks, rows]
  std::vector<Entry> merged;
};

void softmax_topk(const SoftmaxTopk& args, SoftmaxTopkBuffers* buffers, const Parallel& parallel = {});

}  // namespace lrcn
