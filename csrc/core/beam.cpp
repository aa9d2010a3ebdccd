#include "beam.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lrcn {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

}  // namespace

void BeamRules::check(int64_t longest) const {
  LRCN_CHECK(beams >= 1 && beams <= kMaxBeams, "generate: num_beams must be in 1..", kMaxBeams, ", got ",
             beams);
  LRCN_CHECK(returned >= 1 && returned <= beams,
             "generate: num_return_sequences must be in 1..num_beams = ", beams, ", got ", returned);
  // Beyond this, scores would be inf or NaN and could not be compared.
  const float most = static_cast<float>(std::pow(static_cast<double>(longest), length_penalty));
  LRCN_CHECK(std::isnormal(most),
             "generate: length_penalty must keep length**length_penalty a float32 number up to ", "length ",
             longest, ", got ", length_penalty);
}

BeamSearch::BeamSearch(const BeamRules& rules, const TokenRuleLists& lists, const int32_t* prefix,
                       int64_t prefix_length)
    : rules_(rules), lists_(lists), prefix_(prefix, prefix + prefix_length) {
  rules_.check(prefix_length + lists.rules().max_new);
  nodes_.push_back({kRoot, 0, 0.0f});
  slots_.push_back({kRoot, 0.0f, 0, false});
  live_.push_back(0);
  note_special_tokens();
}

float BeamSearch::norm(int64_t length) const {
  return static_cast<float>(std::pow(static_cast<double>(length), rules_.length_penalty));
}

const SpecialTokens& BeamSearch::special(int64_t row) const {
  return lists_.rules().reads_history() ? special_[row] : lists_.fixed(generated_);
}

void BeamSearch::note_special_tokens() {
  if (!lists_.rules().reads_history()) return;
  const int64_t P = static_cast<int64_t>(prefix_.size());
  history_.resize(P + generated_);
  std::copy(prefix_.begin(), prefix_.end(), history_.begin());
  if (special_.size() < live_.size()) special_.resize(live_.size());
  for (size_t row = 0; row < live_.size(); ++row) {
    int32_t node = slots_[live_[row]].node;
    for (int64_t t = P + generated_ - 1; t >= P; --t) {
      history_[t] = nodes_[node].token;
      node = nodes_[node].parent;
    }
    lists_.of_history(history_.data(), P + generated_, generated_, &special_[row]);
  }
}

void BeamSearch::advance(const RowScores* scores) {
  collect(scores);
  ++generated_;
  next_.clear();
  rules_.ended == Ended::kPool ? select_into_pool() : select_in_slots();
  slots_.swap(next_);

  live_.clear();
  for (size_t slot = 0; slot < slots_.size(); ++slot)
    if (!slots_[slot].ended) live_.push_back(static_cast<int32_t>(slot));
  if (live_.empty()) done_ = true;
  if (!done_) note_special_tokens();
}

// Every continuation of every hypothesis, each with its sum.
void BeamSearch::collect(const RowScores* scores) {
  candidates_.clear();
  int64_t row = 0;
  for (int32_t s = 0; s < static_cast<int32_t>(slots_.size()); ++s) {
    const Slot& slot = slots_[s];
    if (slot.ended) {
      candidates_.push_back({slot.sum, s, kStay, 0.0f});
      continue;
    }
    const SpecialTokens& special = this->special(row);
    const RowScores& from = scores[row];
    const size_t before = candidates_.size();
    const auto add = [&](int32_t token, float logprob) {
      const float sum = slot.sum + logprob;
      if (sum > kMinusInfinity) candidates_.push_back({sum, s, token, logprob});
    };
    for (int64_t i = 0; i < from.count; ++i) add(from.tokens[i], from.log_p(from.logits[i]));
    for (int64_t i = 0; i < special.size(); ++i)
      if (!special.banned[i]) add(special.tokens[i], lists_.rules().penalised(from.log_p(from.special[i])));
    if (candidates_.size() == before) stop_unfinished(s);
    ++row;
  }
}

void BeamSearch::stop_unfinished(int32_t s) {
  const Slot& slot = slots_[s];
  const int64_t length = static_cast<int64_t>(prefix_.size()) + generated_;
  LRCN_CHECK(length > 0,
             "generate: the rules and the model must leave a word to start with, but every one of the ",
             lists_.rules().vocab, " tokens is banned or has probability 0");
  if (rules_.ended == Ended::kPool) return add_to_pool(slot.node, slot.sum, length);
  candidates_.push_back({slot.sum, s, kStay, 0.0f});
}

// Leaves the best `count` candidates, best first.
void BeamSearch::take_best(int64_t count) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    if (a.sum != b.sum) return a.sum > b.sum;
    return a.slot != b.slot ? a.slot < b.slot : a.token < b.token;
  };
  if (static_cast<int64_t>(candidates_.size()) > count) {
    std::nth_element(candidates_.begin(), candidates_.begin() + count, candidates_.end(), better);
    candidates_.resize(count);
  }
  std::sort(candidates_.begin(), candidates_.end(), better);
}

int32_t BeamSearch::grow(const Candidate& candidate) {
  nodes_.push_back({slots_[candidate.slot].node, candidate.token, candidate.logprob});
  return static_cast<int32_t>(nodes_.size()) - 1;
}

void BeamSearch::select_into_pool() {
  const int64_t K = rules_.beams, length = static_cast<int64_t>(prefix_.size()) + generated_;
  const bool last = generated_ == lists_.rules().max_new;
  take_best(rules_.width());
  int64_t rank = 0;
  for (const Candidate& candidate : candidates_) {
    if (candidate.token == lists_.rules().eos || last) {
      if (rank < K) add_to_pool(grow(candidate), candidate.sum, length);
    } else if (static_cast<int64_t>(next_.size()) < K) {
      const int64_t row = std::lower_bound(live_.begin(), live_.end(), candidate.slot) - live_.begin();
      next_.push_back({grow(candidate), candidate.sum, row, false});
    }
    ++rank;
  }
  done_ = next_.empty() || pool_is_final();
}

// Kept sorted; a newcomer goes after its equals, and the pool keeps its first K.
void BeamSearch::add_to_pool(int32_t node, float sum, int64_t length) {
  const Finished finished{node, sum, sum / norm(length)};
  const auto place = std::upper_bound(pool_.begin(), pool_.end(), finished,
                                      [](const Finished& a, const Finished& b) { return a.score > b.score; });
  pool_.insert(place, finished);
  if (static_cast<int64_t>(pool_.size()) > rules_.beams) pool_.pop_back();
}

bool BeamSearch::pool_is_final() const {
  const int64_t P = static_cast<int64_t>(prefix_.size());
  const int64_t length = P + generated_, longest = P + lists_.rules().max_new;
  const int64_t pooled = static_cast<int64_t>(pool_.size());
  const float best = next_.front().sum;
  // sum <= 0 only falls, so no descendant scores above this; longer is kinder with a positive
  // penalty only. Rounding keeps the order: float division is monotonic.
  const float bound = best / norm(rules_.length_penalty > 0 ? longest : length);
  if (pooled >= rules_.returned && bound <= pool_[rules_.returned - 1].score) return true;

  if (pooled < rules_.beams) return false;
  if (rules_.early_stopping == EarlyStopping::kWhenFull) return true;
  const float heuristic = rules_.early_stopping == EarlyStopping::kNever ? bound : best / norm(length);
  return !(heuristic > pool_.back().score);
}

void BeamSearch::select_in_slots() {
  const bool last = generated_ == lists_.rules().max_new;
  take_best(rules_.width());
  int64_t leading_ended = 0;  // ended hypotheses ranked above every live one
  for (const Candidate& candidate : candidates_) {
    Slot slot = slots_[candidate.slot];
    if (candidate.token == kStay) {
      slot.ended = true;
    } else {
      const int64_t row = std::lower_bound(live_.begin(), live_.end(), candidate.slot) - live_.begin();
      slot = {grow(candidate), candidate.sum, row, last || candidate.token == lists_.rules().eos};
    }
    if (slot.ended && leading_ended == static_cast<int64_t>(next_.size())) ++leading_ended;
    next_.push_back(slot);
  }
  // Those ahead of every live hypothesis stay ahead: its children score no higher, and come from a
  // later parent.
  done_ = leading_ended >= rules_.returned;
}

int64_t BeamSearch::result(int64_t rank, int32_t* tokens, float* logprobs, float* score) const {
  const bool pool = rules_.ended == Ended::kPool;
  if (rank >= static_cast<int64_t>(pool ? pool_.size() : slots_.size())) {
    *score = kMinusInfinity;
    return 0;
  }
  *score = pool ? pool_[rank].score : slots_[rank].sum;
  const int32_t node = pool ? pool_[rank].node : slots_[rank].node;
  int64_t length = static_cast<int64_t>(prefix_.size());
  for (int32_t n = node; n != kRoot; n = nodes_[n].parent) ++length;
  int64_t t = length;
  for (int32_t n = node; n != kRoot; n = nodes_[n].parent) {
    --t;
    tokens[t] = nodes_[n].token;
    logprobs[t] = nodes_[n].logprob;
  }
  std::copy(prefix_.begin(), prefix_.end(), tokens);
  std::fill(logprobs, logprobs + prefix_.size(), 0.0f);
  return length;
}

}  // namespace lrcn
