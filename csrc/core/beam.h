// Beam search over one sentence, without a model.
//
// The owner runs the model, selects each row's best tokens (softmax_topk.h) and hands them to
// advance(), which says which rows to run next:
//
//   BeamSearch search(rules, lists, prefix, P);
//   while (!search.done()) {
//     for row in 0..search.rows(): run the model on search.token(row), from the state left by
//                                  row search.parent(row) of the previous step
//     search.advance(scores);
//   }
//
// The very first step has one row, whose token and parent are 0: the model's input there is the
// owner's business (BOS, an image, the end of the prefix).
//
// A hypothesis is a chain of back-pointers, and is only walked at the end. Sums are float32, left
// to right, as in Hugging Face's search; the plain PyTorch reference adds in the same order, so
// equal log-probabilities give equal scores, bit for bit.
//
// Order. Candidates compare by (score, larger first; parent, lower first; token, lower first): a
// strict total order, so no result depends on a sort's whims. Parents are numbered by rank.
//
// Rules. What happens to a hypothesis that ends, one of:
//
//   kPool    The best 2K candidates are taken. Those among the first K that end go to a pool of the
//            K best finished hypotheses by sum / length^penalty; the best K that did not end go on.
//            At max length the first K join the pool, ended or not. (Hugging Face)
//   kInSlot  The best K candidates are taken; one that ended keeps its place and its sum, and
//            competes on. (Caffe's LRCN)
//
// A hypothesis left without any allowed token stops where it is, unfinished: it joins the pool, or
// keeps its place.
//
// Stopping changes nothing but time, except where a rule says so: a sentence is done as soon as no
// live hypothesis can enter the `returned` best, because sums of log p only fall. kHeuristic and
// kWhenFull may stop earlier, exactly where Hugging Face does.
#pragma once

#include <cstdint>
#include <vector>

#include "token_rules.h"

namespace lrcn {

enum class Ended { kPool, kInSlot };

// Of kPool. kHeuristic is early_stopping=False: stop when the pool is full and the best live
// hypothesis, scored at its present length, is no better than the worst in the pool. kWhenFull is
// True: stop as soon as the pool is full, too. kNever: score it at max length where that is kinder.
enum class EarlyStopping { kHeuristic, kWhenFull, kNever };

constexpr int64_t kMaxBeams = 1024;

struct BeamRules {
  int64_t beams = 5;     // K
  int64_t returned = 1;  // n <= K
  double length_penalty = 0;
  EarlyStopping early_stopping = EarlyStopping::kHeuristic;
  Ended ended = Ended::kPool;

  // Candidates that advance() looks at in all, and therefore the most that one row can contribute.
  int64_t width() const { return ended == Ended::kPool ? 2 * beams : beams; }
  // Throws when out of range. longest: prefix + max_new.
  void check(int64_t longest) const;
};

// What selection found for one row.
struct RowScores {
  // The best width() tokens that are not special: logit falling, then token rising. [count]
  const int32_t* tokens;
  const float* logits;
  int64_t count;
  const float* special;  // logits of special(row).tokens, in that order
  // log p(token) = (logit - max) - log_sum: never above 0.
  float max, log_sum;

  float log_p(float logit) const { return (logit - max) - log_sum; }
};

class BeamSearch {
 public:
  // lists outlives the search. prefix [prefix_length]: tokens that every hypothesis starts with.
  BeamSearch(const BeamRules& rules, const TokenRuleLists& lists, const int32_t* prefix,
             int64_t prefix_length);

  bool done() const { return done_; }
  int64_t rows() const { return static_cast<int64_t>(live_.size()); }
  int32_t token(int64_t row) const { return nodes_[slots_[live_[row]].node].token; }
  int64_t parent(int64_t row) const { return slots_[live_[row]].row; }
  const SpecialTokens& special(int64_t row) const;

  // scores [rows()]. Not to be called when done().
  void advance(const RowScores* scores);

  // The hypothesis of one rank, best first, in buffers of prefix + max_new entries. Returns its
  // length, prefix included; 0 (and score -inf) where there are not that many hypotheses.
  int64_t result(int64_t rank, int32_t* tokens, float* logprobs, float* score) const;

 private:
  static constexpr int32_t kRoot = 0;   // node of the hypothesis that is the prefix alone
  static constexpr int32_t kStay = -1;  // "token" of a hypothesis that competes without growing
  struct Node {
    int32_t parent, token;
    float logprob;
  };
  struct Slot {  // a hypothesis in the beam
    int32_t node;
    float sum;
    int64_t row;  // model row of its parent
    bool ended;
  };
  struct Candidate {
    float sum;
    int32_t slot, token;
    float logprob;
  };
  struct Finished {
    int32_t node;
    float sum, score;
  };

  void collect(const RowScores* scores);
  void stop_unfinished(int32_t slot);
  void take_best(int64_t count);
  void select_into_pool();
  void select_in_slots();
  bool pool_is_final() const;
  void add_to_pool(int32_t node, float sum, int64_t length);
  int32_t grow(const Candidate& candidate);
  void note_special_tokens();
  float norm(int64_t length) const;

  BeamRules rules_;
  const TokenRuleLists& lists_;
  std::vector<int32_t> prefix_;
  int64_t generated_ = 0;  // tokens every live hypothesis has beyond the prefix
  bool done_ = false;

  std::vector<Node> nodes_;
  std::vector<Slot> slots_, next_;
  std::vector<int32_t> live_;           // model row -> slot
  std::vector<Candidate> candidates_;   // of one step
  std::vector<Finished> pool_;          // best first
  std::vector<SpecialTokens> special_;  // per row, when a rule reads the history
  std::vector<int32_t> history_;
};

}  // namespace lrcn
