// Sampling: one block draws the next word of one caption. csrc/core/sampling.h has the rules; what they need
// here are two searches over the words in the order (x falling, word rising), x the scaled logit after the
// token rules:
//
//   top_k   the k-th word in that order
//   top_p   the first word at which the mass exp(x - max) from the front on reaches top_p of the whole
//
// Nothing is sorted: x and word are one integer (order_of), no two alike, and bisection over all integers
// finds the smallest that is still kept, one pass over the row's logits for each halving, until a single
// word lies between the bounds. Then the word at which the mass of the kept words, in the order of the
// vocabulary, exceeds uniform * their total: first its part of 64 words, then the word.
//
// Sums are float64 in an order that the size of the vocabulary alone fixes. It is not the order of the CPU,
// and nor is that of the logits' sums: a uniform number within rounding of the border between two words may
// fall on the other side there.
#include "decode_common.cuh"
#include "launch.h"

namespace lrcn::cuda {
namespace {

constexpr int kMostWarps = 8;

struct Draw {
  int64_t first;  // draw of block 0
  int64_t beams, prefix_length, max_new, V, parts, top_k;
  int32_t eos;
  float logit_scale;
  double top_p;
  const double* uniforms;  // [B, n, max_new]
  const float* logits;     // [rows, V] of the rows of this launch, the first of them `first_row`
  int64_t first_row;
  const float *max, *sum;  // [rows, parts] of all
  const int32_t* special;
  const float* special_logit;
  int64_t special_stride;
  bool reads_history;
  double* mass;  // [B, n, parts]
  DecodeSlot* slots;
  DecodeNode* nodes;
  int32_t *tokens, *parents;
  DecodeProgress* progress;
};

// Sums of a block, in two sets that take turns: one barrier each.
struct DrawState {
  double mass[2][kMostWarps];
  uint32_t words[2][kMostWarps];
  uint64_t top[kMostWarps];
};

// What a part of the vocabulary holds: words, and mass.
struct Share {
  uint32_t words;
  double mass;
};

// The running sum over the lanes.
LRCN_DEVICE double running_sum(double x) {
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double below = shuffle(x, lane < distance ? lane : lane - distance);
    if (lane >= distance) x += below;
  }
  return x;
}

LRCN_DEVICE int warp_most(int x) {
  return static_cast<int>(warp_max(static_cast<uint64_t>(x)));
}

// A warp walks `count` masses in order, not all 0, beginning with the sum `before`: the first at which the
// sum exceeds `target`, or where rounding lets none do so the last that is not 0. `before` becomes the sum
// ahead of it.
template <typename F>
LRCN_DEVICE int64_t find_mass(int64_t count, double target, double& before, F&& mass_of) {
  const int lane = static_cast<int>(lane_index());
  double sum = before;
  int64_t last = 0;
  for (int64_t base = 0; base < count; base += 32) {
    const double mass = base + lane < count ? mass_of(base + lane) : 0.0, reached = sum + running_sum(mass);
    const auto ahead_of = [&](int found) {
      const double ahead = shuffle(reached, found == 0 ? 0 : found - 1);
      return found == 0 ? sum : ahead;
    };
    // Neighbours' sums round differently: a word without mass must not be hit between them.
    const int hit = 32 - warp_most(mass > 0 && reached > target ? 32 - lane : 0);
    if (hit < 32) {
      before = ahead_of(hit);
      return base + hit;
    }
    const int latest = warp_most(mass > 0 ? lane + 1 : 0) - 1;
    if (latest >= 0) last = base + latest, before = ahead_of(latest);
    sum = shuffle(reached, 31);
  }
  return last;
}

__global__ void __launch_bounds__(kMostWarps * 32) decode_draw_kernel(Draw args, DecodeStep step) {
  const int64_t t = number_of(step);
  const int64_t draw = args.first + block_index(), image = draw / args.beams;
  const int64_t row = t == 0 ? image : draw;  // before the first word an image's draws are one row
  if (t > 0 && args.tokens[draw] < 0) return;
  auto& state = shared<DrawState>();
  const unsigned lane = lane_index(), warp = warp_index(), warps = block_threads() / 32;

  const RowTotal all = row_total(args.max + row * args.parts, args.sum + row * args.parts, args.parts);
  const bool finite = is_finite(all.max) && is_finite(all.log_sum);

  const float* const logits = args.logits + (row - args.first_row) * args.V;
  const auto order_at = [&](int64_t word) {
    return order_of(std::fmin(logits[word] * args.logit_scale, -kLowest), static_cast<int32_t>(word));
  };
  const auto each_word = [&](auto&& f) {
    for (int64_t word = thread_index(); word < args.V; word += block_threads()) f(order_at(word));
  };
  int turn = 0;
  const auto block_sum = [&](Share share) {
    share = {warp_sum(share.words), warp_sum(share.mass)};
    if (lane == 0) state.words[turn][warp] = share.words, state.mass[turn][warp] = share.mass;
    sync_block();  // all warps' sums are there
    share = {0, 0.0};
    for (unsigned w = 0; w < warps; ++w)
      share.words += state.words[turn][w], share.mass += state.mass[turn][w];
    turn = 1 - turn;
    return share;
  };

  // The likeliest word.
  const uint64_t impossible = order_of(minus_infinity(), 0);
  uint64_t top = 0;
  each_word([&](uint64_t order) { top = order > top ? order : top; });
  top = warp_max(top);
  if (lane == 0) state.top[warp] = top;
  sync_block();  // all warps' likeliest are there
  for (unsigned w = 0; w < warps; ++w) top = state.top[w] > top ? state.top[w] : top;
  const float highest = value_of(top);
  const auto mass_of = [&](uint64_t order) {
    return std::exp(static_cast<double>(value_of(order)) - static_cast<double>(highest));
  };

  const bool possible = finite && top > impossible;

  // Words whose order is at least `cut` are kept; at most `kept` of them.
  uint64_t cut = impossible + 1;
  uint32_t kept = static_cast<uint32_t>(args.V);
  const auto share_from = [&](uint64_t from, bool weighs) {
    Share share{0, 0.0};
    each_word([&](uint64_t order) {
      if (order < from) return;
      ++share.words;
      if (weighs) share.mass += mass_of(order);
    });
    return block_sum(share);
  };
  // Moves the cut up to the last place from which there still are `words` words, or a mass of `mass`.
  const auto narrow = [&](uint32_t words, double mass) {
    uint64_t beyond = top + 1;
    uint32_t kept_beyond = 0;
    while (beyond - cut > 1 && kept - kept_beyond > 1) {
      const uint64_t middle = cut + (beyond - cut) / 2;
      const Share share = share_from(middle, words == 0);
      if (words > 0 ? share.words >= words : share.mass >= mass)
        cut = middle, kept = share.words;
      else
        beyond = middle, kept_beyond = share.words;
    }
  };
  if (possible && args.top_k > 0 && args.top_k < args.V) narrow(static_cast<uint32_t>(args.top_k), 0.0);
  if (possible && args.top_p < 1) {
    const Share left = share_from(cut, true);
    kept = left.words;
    narrow(0, args.top_p * left.mass);
  }

  // What is kept of the mass of this warp's words, and each part's.
  const auto kept_mass = [&](int64_t word) {
    const uint64_t order = word < args.V ? order_at(word) : 0;
    return order >= cut ? mass_of(order) : 0.0;
  };
  double* const masses = args.mass + draw * args.parts;
  double mine = 0.0;
  for (int64_t part = warp; part < args.parts; part += warps) {
    const int64_t word = part * kDecodePart + lane;
    const double mass = warp_sum(kept_mass(word) + kept_mass(word + 32));
    if (lane == 0) masses[part] = mass, mine += mass;
  }
  const double total = block_sum({0, mine}).mass;  // a barrier too: all masses are there
  if (warp != 0) return;

  int32_t word = -1;
  if (possible) {
    const double target = args.uniforms[draw * args.max_new + t] * total;
    double before = 0.0;
    const int64_t part = find_mass(args.parts, target, before, [&](int64_t p) { return masses[p]; });
    const auto mass_in_part = [&](int64_t i) { return kept_mass(part * kDecodePart + i); };
    word = static_cast<int32_t>(part * kDecodePart + find_mass(kDecodePart, target, before, mass_in_part));
  }

  // Its own logit: that of a word with a rule is among the reports.
  float logit = word < 0 ? 0.0f : logits[word];
  int listed = 0;
  const int64_t special_count = args.reads_history ? args.prefix_length + t : 0;
  for (int64_t i = lane; i < special_count; i += 32)
    if (word >= 0 && args.special[row * args.special_stride + i] == word) listed = static_cast<int>(i) + 1;
  listed = warp_most(listed);
  if (lane != 0) return;
  if (listed > 0) logit = args.special_logit[row * args.special_stride + listed - 1];

  const int64_t slot = draw % args.beams, length = args.prefix_length + t;
  DecodeSlot& now = args.slots[draw];
  const bool ends = word < 0 || word == args.eos || t + 1 == args.max_new;
  if (!finite)
    add_relaxed(&args.progress->not_finite, 1);
  else if (word < 0 && length == 0)
    add_relaxed(&args.progress->no_word, 1);
  if (word >= 0) {
    const int64_t node = t * args.beams + slot;
    const float logprob = (logit - all.max) - all.log_sum;
    args.nodes[image * args.max_new * args.beams + node] = {now.node, word, logprob};
    now.node = static_cast<int32_t>(node);
    now.sum += logprob;
  }
  args.tokens[draw] = ends ? -1 : word;
  args.parents[draw] = static_cast<int32_t>(row);
  if (ends) add_relaxed(&args.progress->finished, 1);
}

}  // namespace

void decode_draw(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                 int64_t first_row, int64_t rows, DecodeStep step, Stream stream) {
  const int64_t draws = step.offset == 0 ? task.beams : 1;  // of a row
  Draw args{};
  args.first = first_row * draws, args.beams = task.beams, args.prefix_length = task.prefix_length;
  args.max_new = task.max_new, args.V = model.shape.vocab, args.parts = decode_parts(model.shape.vocab);
  args.eos = static_cast<int32_t>(task.eos), args.top_k = task.top_k, args.top_p = task.top_p;
  args.logit_scale = task.logit_scale, args.uniforms = buffers.uniforms;
  args.logits = buffers.logits, args.first_row = first_row;
  args.max = buffers.part_max, args.sum = buffers.part_sum, args.mass = buffers.mass;
  args.special = buffers.special, args.special_logit = buffers.special_logit;
  args.special_stride = task.longest(), args.reads_history = task.reads_history();
  args.slots = buffers.slots, args.nodes = buffers.nodes;
  args.tokens = buffers.tokens, args.parents = buffers.parents, args.progress = buffers.progress;
  // Two parts a warp: a caption's words do not depend on the batch, so neither may this.
  const int64_t warps = args.parts < 2 * kMostWarps ? (args.parts + 1) / 2 : kMostWarps;
  launch(decode_draw_kernel, {static_cast<unsigned>(rows * draws)}, static_cast<unsigned>(32 * warps), 1, 0,
         stream, args, step);
}

}  // namespace lrcn::cuda
