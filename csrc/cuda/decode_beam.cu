// The search: csrc/core/beam.h, with its rules and orders, one warp per image.
//
// A hypothesis is a chain of nodes. Step t may make `width` of them, numbers t * width and on. Slots, the
// hypotheses of the beam, lie in two halves that take turns: step t reads half t % 2 and writes the other.
// Candidates come from one sorted list per slot (decode_scores.cu), so that the best of all are taken one
// by one from the lists' heads, in the order (sum, larger first; slot, lower first; word, lower first).
// What one thread can do in a few steps, lane 0 does alone; the others know the counts.
#include "decode_common.cuh"
#include "launch.h"

namespace lrcn::cuda {
namespace {

constexpr int32_t kStay = -1;  // "token" of a hypothesis that competes without growing

struct Start {
  int64_t images, room, beams, roots, vocab, features, stride;  // stride: features padded
  int64_t prefix_length, bos;
  const float* from_features;
  const int64_t* prefix;
  DecodeProgress* progress;
  int32_t* fed;
  float* to_features;
  DecodeImage* state;
  DecodeSlot* slots;
  int32_t* tokens;
};

// A block of 32 threads prepares one image: checks and copies what the caller gave, and plants the roots.
// From `images` on there is nothing to search: they are done.
__global__ void __launch_bounds__(32) decode_start_kernel(Start args) {
  const int64_t image = block_index();
  const unsigned lane = lane_index();
  if (image >= args.images) {
    for (int64_t i = lane; i < args.beams; i += 32) args.tokens[image * args.beams + i] = -1;
    if (lane != 0) return;
    args.state[image] = {1, 0, 0, 0};
    add_relaxed(&args.progress->finished, static_cast<uint32_t>(args.roots));  // one each search
    return;
  }
  for (int64_t i = lane; i < args.features; i += 32) {
    const float x = args.from_features[image * args.features + i];
    if (!is_finite(x)) add_relaxed(&args.progress->bad_feature, 1);
    args.to_features[image * args.stride + i] = x;
  }
  for (int64_t i = lane; i < args.prefix_length; i += 32) {
    const int64_t word = args.prefix[image * args.prefix_length + i];
    const bool valid = word >= 0 && word < args.vocab;
    if (!valid) add_relaxed(&args.progress->bad_prefix, 1);
    args.fed[(1 + i) * args.room + image] = valid ? static_cast<int32_t>(word) : 0;
  }
  for (int64_t i = lane; i < args.roots; i += 32) args.slots[image * args.beams + i] = {-1, 0, 0, 0, 0.0f};
  if (lane != 0) return;
  args.fed[image] = static_cast<int32_t>(args.bos);
  args.state[image] = {0, 0, static_cast<int32_t>(args.roots), 0};
}

struct Beam {
  int64_t images, beams, returned, prefix_length, max_new, width;
  int32_t eos;
  bool in_slot, longer_is_kinder;
  DecodeStop stop;
  const float* norms;
  DecodeImage* state;
  DecodeSlot* slots;
  DecodeNode* nodes;
  DecodePooled* pool;
  int32_t *tokens, *parents;
  const DecodeCandidate* lists;
  const int32_t* list_count;
  DecodeProgress* progress;
};

// The best finished hypotheses of one image, best first; a newcomer goes after its equals. One thread's.
LRCN_DEVICE void add_to_pool(DecodePooled* pool, int64_t pooled, int64_t most, int32_t node, float score) {
  int64_t at = pooled;
  for (; at > 0 && pool[at - 1].score < score; --at)
    if (at < most) pool[at] = pool[at - 1];
  if (at < most) pool[at] = {node, score};
}

// Whether no live hypothesis, the best with the sum `best`, can change the result. One thread's.
LRCN_DEVICE bool pool_is_final(const Beam& args, const DecodePooled* pool, int64_t pooled, float best,
                               int64_t length) {
  const float now = best / args.norms[length];
  // sum <= 0 only falls, so no descendant scores above this.
  const float bound = args.longer_is_kinder ? best / args.norms[args.prefix_length + args.max_new] : now;
  if (pooled >= args.returned && bound <= pool[args.returned - 1].score) return true;
  if (pooled < args.beams) return false;
  if (args.stop == DecodeStop::kWhenFull) return true;
  return !((args.stop == DecodeStop::kNever ? bound : now) > pool[args.beams - 1].score);
}

__global__ void __launch_bounds__(32) decode_beam_kernel(Beam args, DecodeStep step) {
  const int64_t image = block_index(), K = args.beams;
  DecodeImage& state = args.state[image];
  if (state.done != 0) return;
  const int64_t t = number_of(step);
  const int lane = static_cast<int>(lane_index());
  const int64_t slots = state.slots, first_row = t == 0 ? image : image * K;
  const DecodeSlot* const now = args.slots + (t % 2 * args.images + image) * K;
  DecodeSlot* const next = args.slots + ((t + 1) % 2 * args.images + image) * K;
  DecodeNode* const nodes = args.nodes + image * args.max_new * args.width;
  DecodePooled* const pool = args.pool + image * K;
  const int64_t length = args.prefix_length + t + 1;
  const bool last = t + 1 == args.max_new;
  int64_t pooled = state.pooled;

  // Hypotheses that have no word left stop where they are.
  bool stuck = false;
  for (int64_t s = lane; s < slots; s += 32)
    stuck = stuck || (now[s].ended == 0 && args.list_count[first_row + s] == 0);
  if (warp_max(stuck ? 1.0f : 0.0f) > 0) {
    if (length == 1) {
      if (lane == 0) add_relaxed(&args.progress->no_word, 1);
    } else if (!args.in_slot) {
      for (int64_t s = 0; s < slots; ++s)
        if (args.list_count[first_row + s] == 0) {
          if (lane == 0) add_to_pool(pool, pooled, K, now[s].node, now[s].sum / args.norms[length - 1]);
          pooled = pooled < K ? pooled + 1 : K;
        }
    }
  }

  // The best head among this lane's slots.
  uint32_t* const cursor = reinterpret_cast<uint32_t*>(shared_dynamic());  // [K], each one lane's
  const auto stays = [&](int64_t s) {
    return args.in_slot && (now[s].ended != 0 || args.list_count[first_row + s] == 0);
  };
  uint64_t best = 0;
  const auto find_best = [&]() {
    best = 0;
    for (int64_t s = lane; s < slots; s += 32) {
      if (cursor[s] >= (stays(s) ? 1u : static_cast<uint32_t>(args.list_count[first_row + s]))) continue;
      const float sum = stays(s) ? now[s].sum : args.lists[(first_row + s) * args.width + cursor[s]].sum;
      const uint64_t order = order_of(sum, static_cast<int32_t>(s));
      best = order > best ? order : best;
    }
  };
  for (int64_t s = lane; s < slots; s += 32) cursor[s] = 0;
  find_best();

  int64_t grown = t * args.width, kept = 0, leading_ended = 0;
  float best_live = 0;
  for (int64_t rank = 0; rank < args.width; ++rank) {
    const uint64_t top = warp_max(best);
    if (top == 0) break;
    const int32_t s = index_of(top);
    DecodeCandidate candidate{now[s].sum, 0.0f, kStay};
    if (lane == s % 32) {
      if (!stays(s)) candidate = args.lists[(first_row + s) * args.width + cursor[s]];
      ++cursor[s];
      find_best();
    }
    const int32_t token = shuffle(candidate.token, s % 32);
    const float sum = shuffle(candidate.sum, s % 32), logprob = shuffle(candidate.logprob, s % 32);
    const bool stayed = token == kStay, ends = stayed || last || token == args.eos;
    const int32_t node = stayed ? now[s].node : static_cast<int32_t>(grown);

    if (!args.in_slot && (ends ? rank >= K : kept == K)) continue;
    if (lane == 0 && !stayed) nodes[node] = {now[s].node, token, logprob};
    if (!stayed) ++grown;
    if (!args.in_slot && ends) {
      if (lane == 0) add_to_pool(pool, pooled, K, node, sum / args.norms[length]);
      pooled = pooled < K ? pooled + 1 : K;
      continue;
    }
    if (lane == 0) next[kept] = {node, token, static_cast<int32_t>(first_row + s), ends, sum};
    if (kept == 0) best_live = sum;
    if (ends && leading_ended == kept) ++leading_ended;
    ++kept;
  }

  bool done = args.in_slot ? leading_ended == kept || leading_ended >= args.returned : kept == 0;
  if (!args.in_slot && !done) {
    // Those ahead of every live hypothesis stay ahead: its children score no higher.
    const int final = lane == 0 && pool_is_final(args, pool, pooled, best_live, length) ? 1 : 0;
    done = shuffle(final, 0) != 0;
  }

  sync_warp();  // lane 0 has written the slots, and all have read the state
  for (int64_t s = lane; s < K; s += 32) {
    const bool live = !done && s < kept && next[s].ended == 0;
    args.tokens[image * K + s] = live ? next[s].token : -1;
    args.parents[image * K + s] = live ? next[s].parent : 0;
  }
  if (lane != 0) return;
  state = {done ? 1 : 0, static_cast<int32_t>((t + 1) % 2), static_cast<int32_t>(kept),
           static_cast<int32_t>(pooled)};
  if (done) add_relaxed(&args.progress->finished, 1);
}

struct History {
  int64_t images, beams, prefix_length, stride, no_repeat_ngram;
  bool penalises;
  const int32_t* fed;  // [1 + P, B]
  const DecodeSlot* slots;
  const DecodeNode* nodes;
  int64_t nodes_stride;
  int32_t *history, *special;
};

// A warp lists one row's words, oldest first, and then those that have a rule of their own, each once.
__global__ void __launch_bounds__(32) decode_history_kernel(DecodeRows rows, History args, DecodeStep step) {
  const int64_t row = block_index(), image = row / rows.per_image;
  if (all_done(rows) || !is_live(rows, row)) return;
  const int64_t P = args.prefix_length, count = P + number_of(step), n = args.no_repeat_ngram;
  int32_t* const words = args.history + row * args.stride;
  for (int64_t i = lane_index(); i < P; i += 32) words[i] = args.fed[(1 + i) * args.images + image];
  if (lane_index() == 0) {
    const DecodeNode* const nodes = args.nodes + image * args.nodes_stride;
    int32_t node = args.slots[image * args.beams + row % rows.per_image].node;
    for (int64_t i = count - 1; i >= P; --i) {
      words[i] = nodes[node].token;
      node = nodes[node].parent;
    }
  }
  sync_warp();  // all words are there

  for (int64_t i = lane_index(); i < count; i += 32) {
    const int32_t word = words[i];
    bool listed = false, banned = false;
    for (int64_t j = 0; j < count; ++j) {
      if (words[j] != word) continue;
      listed = listed || j < i;
      // Does the word complete, once more, what stands here?
      bool same = n > 0 && j + 1 >= n;
      for (int64_t m = 1; same && m < n; ++m) same = words[j - m] == words[count - m];
      banned = banned || same;
    }
    args.special[row * args.stride + i] = listed ? kNoWord : banned ? ~word : args.penalises ? word : kNoWord;
  }
}

// One thread: the steps that come have the next numbers.
__global__ void __launch_bounds__(32) decode_advance_kernel(DecodeProgress* progress) {
  if (thread_index() == 0) progress->base += kDecodeSegment;
}

struct End {
  int64_t room, beams, returned, prefix_length, longest, pad, width, nodes_stride;
  bool in_slot, sample;
  const float* norms;
  const int32_t* fed;
  const DecodeImage* state;
  const DecodeSlot* slots;
  const DecodeNode* nodes;
  const DecodePooled* pool;
  DecodeResult result;
};

// A warp writes one hypothesis: that of block `image * returned + rank`, or of that slot when sampling.
__global__ void __launch_bounds__(32) decode_end_kernel(End args) {
  const int64_t image = block_index() / args.returned, at = block_index() % args.returned;
  const int64_t P = args.prefix_length;
  const DecodeImage state = args.state[image];
  const DecodeSlot* const slots = args.slots + (state.side * args.room + image) * args.beams;
  const DecodePooled* const pool = args.pool + image * args.beams;
  const DecodeNode* const nodes = args.nodes + image * args.nodes_stride;
  const bool found = at < (args.in_slot ? state.slots : state.pooled);
  const int32_t end = !found ? -1 : args.in_slot ? slots[at].node : pool[at].node;
  const auto length_to = [&](int32_t node) { return P + (node < 0 ? 0 : node / args.width + 1); };
  const auto score_of = [&](const DecodeSlot& slot) { return slot.sum / args.norms[length_to(slot.node)]; };
  const int64_t length = found ? length_to(end) : 0;
  const float score = !found ? minus_infinity() : args.in_slot ? score_of(slots[at]) : pool[at].score;

  int64_t rank = at;
  if (args.sample) {  // behind the better ones, and the equals before it
    uint32_t ahead = 0;
    for (int64_t s = lane_index(); s < args.beams; s += 32) {
      const float other = score_of(slots[s]);
      ahead += other > score || (other == score && s < at);
    }
    rank = warp_sum(ahead);
  }
  const int64_t place = image * args.returned + rank;
  int64_t* const sequence = args.result.sequences + place * args.longest;
  float* const logprobs = args.result.logprobs + place * args.longest;
  for (int64_t i = lane_index(); i < args.longest; i += 32) {
    if (i >= P && i < length) continue;  // written below
    sequence[i] = i < length ? args.fed[(1 + i) * args.room + image] : args.pad;
    logprobs[i] = 0.0f;
  }
  if (lane_index() != 0) return;
  int64_t i = length;
  for (int32_t node = end; node >= 0; node = nodes[node].parent) {
    --i;
    sequence[i] = nodes[node].token;
    logprobs[i] = nodes[node].logprob;
  }
  args.result.lengths[place] = length;
  args.result.scores[place] = score;
}

}  // namespace

void decode_start(const DecodeShape& shape, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeInputs& inputs, Stream stream) {
  Start args{};
  args.images = inputs.images, args.room = task.images, args.beams = task.beams;
  args.roots = task.sample ? task.beams : 1;
  args.vocab = shape.vocab, args.features = shape.features(), args.stride = decode_padded(shape.features());
  args.prefix_length = task.prefix_length, args.bos = task.bos;
  args.from_features = inputs.features, args.prefix = inputs.prefix, args.progress = buffers.progress;
  args.fed = buffers.fed, args.to_features = buffers.features, args.state = buffers.images;
  args.slots = buffers.slots, args.tokens = buffers.tokens;
  launch(decode_start_kernel, {static_cast<unsigned>(task.images)}, 32, 1, 0, stream, args);
}

void decode_beam(const DecodeTask& task, const DecodeBuffers& buffers, DecodeStep step, Stream stream) {
  Beam args{};
  args.images = task.images, args.beams = task.beams, args.returned = task.returned;
  args.prefix_length = task.prefix_length, args.max_new = task.max_new, args.width = task.width();
  args.eos = static_cast<int32_t>(task.eos), args.in_slot = task.in_slot;
  args.longer_is_kinder = task.longer_is_kinder, args.stop = task.stop, args.norms = buffers.norms;
  args.state = buffers.images, args.slots = buffers.slots, args.nodes = buffers.nodes;
  args.pool = buffers.pool, args.tokens = buffers.tokens, args.parents = buffers.parents;
  args.lists = buffers.lists, args.list_count = buffers.list_count, args.progress = buffers.progress;
  launch(decode_beam_kernel, {static_cast<unsigned>(task.images)}, 32, 1,
         static_cast<size_t>(task.beams) * sizeof(uint32_t), stream, args, step);
}

void decode_history(const DecodeTask& task, const DecodeBuffers& buffers, const DecodeRows& rows,
                    DecodeStep step, Stream stream) {
  History args{};
  args.images = task.images, args.beams = task.beams, args.prefix_length = task.prefix_length;
  args.stride = task.longest(), args.no_repeat_ngram = task.no_repeat_ngram;
  args.penalises = task.repetition_penalty != 1.0f, args.fed = buffers.fed;
  args.slots = buffers.slots + (task.sample ? 0 : step.offset % 2) * task.images * task.beams;
  args.nodes = buffers.nodes, args.nodes_stride = task.max_new * task.width();
  args.history = buffers.history, args.special = buffers.special;
  launch(decode_history_kernel, {static_cast<unsigned>(rows.count)}, 32, 1, 0, stream, rows, args, step);
}

void decode_advance(const DecodeBuffers& buffers, Stream stream) {
  launch(decode_advance_kernel, {1}, 32, 1, 0, stream, buffers.progress);
}

void decode_end(const DecodeTask& task, const DecodeBuffers& buffers, int64_t images,
                const DecodeResult& result, Stream stream) {
  if (images == 0) return;
  End args{};
  args.room = task.images, args.beams = task.beams, args.returned = task.returned;
  args.prefix_length = task.prefix_length, args.longest = task.longest(), args.pad = task.pad;
  args.width = task.width(), args.nodes_stride = task.max_new * task.width();
  args.in_slot = task.in_slot, args.sample = task.sample, args.norms = buffers.norms;
  args.fed = buffers.fed, args.state = buffers.images, args.slots = buffers.slots;
  args.nodes = buffers.nodes, args.pool = buffers.pool, args.result = result;
  launch(decode_end_kernel, {static_cast<unsigned>(images * task.returned)}, 32, 1, 0, stream, args);
}

}  // namespace lrcn::cuda
