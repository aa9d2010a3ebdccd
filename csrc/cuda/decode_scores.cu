// Vocabulary projection, log-softmax and the best words of each row, without a [rows, V] matrix.
//
//   logit(v) = h . w[v] + bias[v]       log p(v) = (logit(v) - max) - log sum_v exp(logit(v) - max)
//
// scores  The vocabulary is cut into parts of 64 words whatever the GPU. A block computes the logits of one
//         part for 8 rows; then each of its warps takes one row: maximum and sum of the part, and the
//         part's best words, each found at the place that is the number of words before it.
// merge   A warp takes one row: maximum and sum over the parts (in float64), then, word by word, the best
//         first word left of any part. That gives the row's best by (logit, word); the search wants them
//         by (sum, word), and sums round to equal where logits differ, so those are put in order.
//
// Words with a rule of their own count in the sum and are left out of the best: banned ones are gone,
// penalised ones report their logit and join in merge, where log p is known (csrc/core/token_rules.h).
//
// Sampling needs every word's logit after those rules, and no best ones: scores then writes them out.
#include "decode_common.cuh"
#include "launch.h"

namespace lrcn::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;
static_assert(kWarps == kDecodeRows, "a warp takes one row of the block");

struct Scores {
  const void* w;           // [V, H] padded
  const float* bias;       // [V]
  const float* h;          // [rows, H] padded
  int64_t V, size;         // size: H padded
  const uint32_t* banned;  // [2, ceil(V / 32)]
  int64_t min_new;
  bool reads_history;
  const int32_t* special;  // [rows, special_stride] or nullptr: word, ~word if banned, or kNoWord
  float* special_logit;
  int64_t prefix_length, special_stride;
  float* logits;  // [rows, V] for sampling, or nullptr
  float repetition_penalty;
  int64_t kept;
  uint64_t* best;    // [rows, parts, kept]
  float *max, *sum;  // [rows, parts]
};

struct ScoresState {
  float logit[kDecodeRows][kDecodePart];
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_scores_kernel(DecodeRows rows, Scores args, DecodeStep step) {
  if (all_done(rows)) return;
  auto& state = shared<ScoresState>();
  const int64_t first_row = int64_t{block_index_y()} * kDecodeRows;
  const int64_t part = block_index(), first_word = part * kDecodePart, parts = grid_blocks();
  const unsigned lane = lane_index(), warp = warp_index();

  bool any = false;
  const float* x[kDecodeRows];
#pragma unroll
  for (int r = 0; r < kDecodeRows; ++r) {
    const bool live = is_live(rows, first_row + r);
    any = any || live;
    x[r] = args.h + (live ? first_row + r : 0) * args.size;
  }
  if (!any) return;

  for (int group = warp; group < kDecodePart / kDecodeColumns; group += kWarps) {
    const T* w[kDecodeColumns];
#pragma unroll
    for (int j = 0; j < kDecodeColumns; ++j) {
      const int64_t word = first_word + group * kDecodeColumns + j;
      w[j] = static_cast<const T*>(args.w) + (word < args.V ? word : 0) * args.size;
    }
    float sum[kDecodeRows * kDecodeColumns] = {};
    accumulate(sum, w, x, args.size);
    const float value = collect(sum);
    const int column = group * kDecodeColumns + lane % kDecodeColumns;
    state.logit[lane / kDecodeColumns][column] =
        first_word + column < args.V ? value + args.bias[first_word + column] : minus_infinity();
  }
  sync_block();  // all logits are there

  const int64_t row = first_row + warp;
  if (!is_live(rows, row)) return;
  auto& logit = state.logit[warp];
  float mine[2] = {logit[lane], logit[lane + 32]};
  const float max = warp_max(std::fmax(kLowest, std::fmax(mine[0], mine[1])));
  const float sum = warp_sum(std::exp(mine[0] - max) + std::exp(mine[1] - max));
  if (lane == 0) {
    args.max[row * parts + part] = max;
    args.sum[row * parts + part] = sum;
  }

  const int64_t t = number_of(step);
  const uint32_t* const bans = args.banned + (t < args.min_new ? 0 : (args.V + 31) / 32);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t word = first_word + lane + 32 * i;
    const bool banned = word < args.V && (bans[word / 32] >> word % 32 & 1) != 0;
    if (banned || !(mine[i] == mine[i])) logit[lane + 32 * i] = minus_infinity();
  }
  sync_warp();  // what is banned anyway reports no logit
  const int64_t special_count = args.reads_history ? args.prefix_length + t : 0;
  for (int64_t i = lane; i < special_count; i += 32) {
    const int32_t entry = args.special[row * args.special_stride + i];
    const int64_t column = (entry < 0 ? ~entry : entry) - first_word;
    if (column < 0 || column >= kDecodePart) continue;
    const float own = logit[column];
    args.special_logit[row * args.special_stride + i] = own;
    logit[column] =
        entry < 0 || args.logits == nullptr ? minus_infinity() : penalised(own, args.repetition_penalty);
  }
  sync_warp();  // the words that compete are settled

#pragma unroll
  for (int i = 0; i < 2; ++i) mine[i] = logit[lane + 32 * i];
  if (args.logits != nullptr) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t word = first_word + lane + 32 * i;
      if (word < args.V) args.logits[row * args.V + word] = mine[i];
    }
    return;
  }
  int64_t before[2] = {0, 0};
  for (int j = 0; j < kDecodePart; ++j) {
    const float other = logit[j];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      before[i] += other > mine[i] || (other == mine[i] && j < static_cast<int>(lane) + 32 * i);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (before[i] < args.kept)
      args.best[(row * parts + part) * args.kept + before[i]] =
          order_of(mine[i], static_cast<int32_t>(first_word + lane + 32 * i));
}

struct Merge {
  const uint64_t* best;
  const float *max, *sum;
  int64_t parts, kept, width;
  const int32_t* special;
  const float* special_logit;
  int64_t prefix_length, special_stride;
  float repetition_penalty;
  bool reads_history, greedy;
  const DecodeSlot* slots;  // of the rows: [B, K]
  int64_t beams;
  DecodeCandidate* lists;
  int32_t* list_count;
  DecodeProgress* progress;
};

// A row's continuations, best first: (sum, larger first; word, lower first). One thread's.
class CandidateList {
 public:
  LRCN_DEVICE CandidateList(DecodeCandidate* entries, int64_t most) : entries_(entries), most_(most) {}
  LRCN_DEVICE int64_t count() const { return count_; }

  LRCN_DEVICE void insert(float sum, int32_t token, float logprob) {
    if (!(sum > minus_infinity())) return;
    int64_t at = count_ < most_ ? count_++ : most_;
    for (; at > 0; --at) {
      const DecodeCandidate& before = entries_[at - 1];
      if (before.sum > sum || (before.sum == sum && before.token < token)) break;
      if (at < most_) entries_[at] = before;
    }
    if (at < most_) entries_[at] = {sum, logprob, token};
  }

 private:
  DecodeCandidate* entries_;
  int64_t most_, count_ = 0;
};

__global__ void __launch_bounds__(32) decode_merge_kernel(DecodeRows rows, Merge args, DecodeStep step) {
  const int64_t row = block_index();
  if (all_done(rows) || !is_live(rows, row)) return;
  const unsigned lane = lane_index();
  uint32_t* const cursor = reinterpret_cast<uint32_t*>(shared_dynamic());  // [parts], each one lane's

  const RowTotal all = row_total(args.max + row * args.parts, args.sum + row * args.parts, args.parts);
  if (!is_finite(all.max) || !is_finite(all.log_sum)) {
    if (lane == 0) {
      add_relaxed(&args.progress->not_finite, 1);
      args.list_count[row] = 0;
    }
    return;
  }
  const auto log_p = [&](float logit) { return (logit - all.max) - all.log_sum; };
  const auto after_penalty = [&](float x) { return penalised(x, args.repetition_penalty); };

  // The best first word of this lane's parts.
  uint64_t best = 0;
  int64_t best_part = 0;
  const auto find_best = [&]() {
    best = 0;
    for (int64_t p = lane; p < args.parts; p += 32) {
      if (cursor[p] >= args.kept) continue;
      const uint64_t order = args.best[(row * args.parts + p) * args.kept + cursor[p]];
      if (order > best) best = order, best_part = p;
    }
  };
  for (int64_t p = lane; p < args.parts; p += 32) cursor[p] = 0;
  find_best();

  const float before = args.slots[row / rows.per_image * args.beams + row % rows.per_image].sum;
  CandidateList list(args.lists + row * args.width, args.width);
  float greedy_logit = minus_infinity();
  int32_t greedy_word = kNoWord;
  for (int64_t i = 0; i < args.width; ++i) {
    const uint64_t top = warp_max(best);
    const float logit = value_of(top);
    if (top == 0 || !(logit > minus_infinity())) break;
    if (top == best) {
      ++cursor[best_part];
      find_best();
    }
    greedy_logit = logit, greedy_word = index_of(top);
    if (lane == 0 && !args.greedy) list.insert(before + log_p(logit), index_of(top), log_p(logit));
  }
  if (lane != 0) return;

  float greedy_score = greedy_logit;
  const int64_t special_count = args.reads_history ? args.prefix_length + number_of(step) : 0;
  for (int64_t i = 0; i < special_count; ++i) {
    const int32_t word = args.special[row * args.special_stride + i];
    if (word < 0 || word == kNoWord) continue;
    const float logit = args.special_logit[row * args.special_stride + i];
    if (!args.greedy) {
      const float logprob = after_penalty(log_p(logit));
      list.insert(before + logprob, word, logprob);
    } else if (const float x = after_penalty(logit);
               x > greedy_score || (x == greedy_score && word < greedy_word && x > minus_infinity())) {
      greedy_score = x, greedy_logit = logit, greedy_word = word;
    }
  }
  if (args.greedy && greedy_word != kNoWord)
    list.insert(before + log_p(greedy_logit), greedy_word, log_p(greedy_logit));
  args.list_count[row] = static_cast<int32_t>(list.count());
}

}  // namespace

void decode_scores(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                   const DecodeRows& rows, int64_t first_row, const float* h, DecodeStep step,
                   Stream stream) {
  const int64_t V = model.shape.vocab, parts = decode_parts(V);
  Scores args{};
  args.w = model.projection, args.bias = model.projection_bias;
  args.V = V, args.size = decode_padded(model.shape.hidden[model.shape.layers - 1]);
  args.h = h + first_row * args.size;
  args.banned = buffers.banned, args.min_new = task.min_new;
  args.reads_history = task.reads_history(), args.prefix_length = task.prefix_length;
  args.special_stride = task.longest();
  args.special = buffers.special + first_row * args.special_stride;
  args.special_logit = buffers.special_logit + first_row * args.special_stride;
  args.logits = task.sample ? buffers.logits : nullptr, args.repetition_penalty = task.repetition_penalty;
  args.kept = decode_kept(task), args.best = buffers.part_best;
  args.max = buffers.part_max + first_row * parts, args.sum = buffers.part_sum + first_row * parts;
  const Grid grid{static_cast<unsigned>(parts),
                  static_cast<unsigned>((rows.count + kDecodeRows - 1) / kDecodeRows)};
  with_weight_type(model.shape.type, [&](auto weight) {
    launch(decode_scores_kernel<decltype(weight)>, grid, kThreads, 1, 0, stream, rows, args, step);
  });
}

void decode_merge(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeRows& rows, DecodeStep step, Stream stream) {
  Merge args{};
  args.best = buffers.part_best, args.max = buffers.part_max, args.sum = buffers.part_sum;
  args.parts = decode_parts(model.shape.vocab), args.kept = decode_kept(task), args.width = task.width();
  args.special = buffers.special, args.special_logit = buffers.special_logit;
  args.reads_history = task.reads_history(), args.prefix_length = task.prefix_length;
  args.special_stride = task.longest();
  args.repetition_penalty = task.repetition_penalty, args.greedy = task.greedy;
  args.slots = buffers.slots + step.offset % 2 * task.images * task.beams, args.beams = task.beams;
  args.lists = buffers.lists, args.list_count = buffers.list_count, args.progress = buffers.progress;
  launch(decode_merge_kernel, {static_cast<unsigned>(rows.count)}, 32, 1,
         static_cast<size_t>(args.parts) * sizeof(uint32_t), stream, rows, args, step);
}

}  // namespace lrcn::cuda
