#include "softmax_topk.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd/table.h"

namespace lrcn {
namespace {

using Entry = SoftmaxTopkBuffers::Entry;
using Partial = SoftmaxTopkBuffers::Partial;
using Range = SoftmaxTopkBuffers::Range;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

bool better(const Entry& a, const Entry& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// A row's list is cut to its best C when it has twice as many, so that an entry costs O(1) for any C.
int64_t capacity(int64_t best) {
  return 2 * best + kPanelColumns;
}

void cut(Entry* entries, int64_t best, int64_t* count, float* threshold) {
  std::nth_element(entries, entries + best - 1, entries + *count, better);
  *count = best;
  *threshold = entries[best - 1].logit;
}

void prepare(const SoftmaxTopk& args, int64_t best, int64_t first_token, Range* range) {
  range->used = true;
  range->block.resize(args.rows * kPanelColumns);
  range->entries.resize(args.rows * capacity(best));
  range->count.assign(args.rows, 0);
  range->threshold.assign(args.rows, kMinusInfinity);
  range->cursor.assign(args.rows, 0);
  if (args.special == nullptr) return;
  for (int64_t r = 0; r < args.rows; ++r) {
    const int32_t* special = args.special[r];
    range->cursor[r] = std::lower_bound(special, special + args.special_count[r], first_token) - special;
  }
}

// Reports the special logits of one panel and takes them out of the competition.
void set_special_aside(const SoftmaxTopk& args, int64_t r, int64_t first_token, float* logits, Range* range) {
  int64_t& i = range->cursor[r];
  for (; i < args.special_count[r] && args.special[r][i] < first_token + kPanelColumns; ++i) {
    float& logit = logits[args.special[r][i] - first_token];
    args.special_logits[r][i] = logit;
    logit = kMinusInfinity;
  }
}

// Tokens come in rising order, so one that only equals the threshold is no improvement.
void compete(const float* logits, int64_t first_token, int64_t n, int64_t best, int64_t r, Range* range) {
  Entry* entries = range->entries.data() + r * capacity(best);
  int64_t& count = range->count[r];
  const float threshold = range->threshold[r];
  for (int64_t j = 0; j < n; ++j)
    if (logits[j] > threshold) entries[count++] = {logits[j], static_cast<int32_t>(first_token + j)};
  if (count >= 2 * best) cut(entries, best, &count, &range->threshold[r]);
}

void merge_row(const SoftmaxTopk& args, int64_t best, int64_t chunks, int64_t r,
               SoftmaxTopkBuffers* buffers) {
  std::vector<Entry>& all = buffers->merged;
  all.clear();
  for (const Range& range : buffers->ranges) {
    if (!range.used) continue;
    const Entry* entries = range.entries.data() + r * capacity(best);
    all.insert(all.end(), entries, entries + range.count[r]);
  }
  const int64_t count = std::min<int64_t>(best, all.size());
  std::partial_sort(all.begin(), all.begin() + count, all.end(), better);
  for (int64_t i = 0; i < count; ++i) {
    args.tokens[r * args.best + i] = all[i].token;
    args.logits[r * args.best + i] = all[i].logit;
  }
  args.count[r] = count;

  float max = kLowest;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    max = std::max(max, buffers->partials[chunk * args.rows + r].max);
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Partial& part = buffers->partials[chunk * args.rows + r];
    sum += static_cast<double>(part.sum) * std::exp(static_cast<double>(part.max) - max);
  }
  args.max[r] = max;
  args.log_sum[r] = static_cast<float>(std::log(sum));
}

}  // namespace

void softmax_topk(const SoftmaxTopk& args, SoftmaxTopkBuffers* buffers, const Parallel& parallel) {
  const int64_t V = args.w.N, panels = panel_count(V);
  const int64_t chunks = (panels + kChunkPanels - 1) / kChunkPanels;
  const int64_t best = std::min(args.best, V);
  const auto online_softmax = simd::kernels().online_softmax;

  buffers->ranges.resize(chunks);
  for (Range& range : buffers->ranges) range.used = false;
  buffers->partials.assign(chunks * args.rows, {kLowest, 0.0f});

  const DotInput input(args.w.type, args.rows, args.x, args.w.K, parallel);
  parallel(chunks, /*grain=*/1, [&](int64_t begin, int64_t end) {
    Range& range = buffers->ranges[begin];
    prepare(args, best, begin * kChunkPanels * kPanelColumns, &range);
    for (int64_t panel = begin * kChunkPanels; panel < std::min(end * kChunkPanels, panels); ++panel) {
      const int64_t first = panel * kPanelColumns, n = std::min(kPanelColumns, V - first);
      Partial* partials = buffers->partials.data() + panel / kChunkPanels * args.rows;
      linear_panel(args.w, panel, args.rows, input.from(0), args.bias, range.block.data());
      for (int64_t r = 0; r < args.rows; ++r) {
        float* logits = range.block.data() + r * kPanelColumns;
        std::fill(logits + n, logits + kPanelColumns, kMinusInfinity);
        const float max = online_softmax(logits, &partials[r].max, &partials[r].sum);
        if (args.all_logits != nullptr) std::copy(logits, logits + n, args.all_logits + r * V + first);
        if (args.special != nullptr) set_special_aside(args, r, first, logits, &range);
        if (max > range.threshold[r]) compete(logits, first, n, best, r, &range);
      }
    }
  });

  for (int64_t r = 0; r < args.rows; ++r) merge_row(args, best, chunks, r, buffers);
}

}  // namespace lrcn
