// BeamSearch on a made-up language: the distribution of the next word is a hash of the words so far.
#include "../../csrc/core/beam.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "check.h"

namespace lrcn {
namespace {

using Words = std::vector<int32_t>;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Logits after `words`. coarse: few distinct values, so that ties are everywhere.
struct Language {
  int64_t vocab;
  uint32_t seed;
  bool coarse = false;

  std::vector<float> logits(const Words& words) const {
    uint32_t hash = seed * 2654435761u + 12345u;
    for (int32_t word : words) hash = (hash ^ static_cast<uint32_t>(word + 1)) * 16777619u;
    std::vector<float> out(vocab);
    for (float& x : out) {
      hash = hash * 1664525u + 1013904223u;
      const float u = static_cast<float>(hash >> 8) / 16777216.0f;
      x = coarse ? std::floor(u * 3) : u * 6;
    }
    return out;
  }
};

void normalise(const std::vector<float>& logits, float* max, float* log_sum) {
  *max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - *max);
  *log_sum = static_cast<float>(std::log(sum));
}

struct Hypothesis {
  Words words;
  std::vector<float> logprobs;
  float score;
  bool operator==(const Hypothesis& o) const {
    return words == o.words && logprobs == o.logprobs && score == o.score;
  }
};

struct Outcome {
  std::vector<Hypothesis> found;
  int64_t steps = 0;
};

// Runs a search and plays the model: keeps the words of each row by following parents.
Outcome search(const Language& language, const TokenRules& tokens, const BeamRules& rules,
               const Words& prefix = {}) {
  const TokenRuleLists lists(tokens);
  BeamSearch beam(rules, lists, prefix.data(), static_cast<int64_t>(prefix.size()));
  std::vector<Words> rows = {prefix};
  Outcome outcome;
  while (true) {
    const int64_t R = beam.rows();
    std::vector<std::vector<int32_t>> best(R);
    std::vector<std::vector<float>> logits(R), special(R);
    std::vector<RowScores> scores;
    for (int64_t r = 0; r < R; ++r) {
      const std::vector<float> all = language.logits(rows[r]);
      const SpecialTokens& list = beam.special(r);
      for (int32_t v = 0; v < language.vocab; ++v)
        if (!std::binary_search(list.tokens.begin(), list.tokens.end(), v)) best[r].push_back(v);
      std::stable_sort(best[r].begin(), best[r].end(), [&](int32_t a, int32_t b) { return all[a] > all[b]; });
      if (static_cast<int64_t>(best[r].size()) > rules.width()) best[r].resize(rules.width());
      for (int32_t v : best[r]) logits[r].push_back(all[v]);
      for (int32_t v : list.tokens) special[r].push_back(all[v]);
      RowScores row{
          best[r].data(), logits[r].data(), static_cast<int64_t>(best[r].size()), special[r].data(), 0, 0};
      normalise(all, &row.max, &row.log_sum);
      scores.push_back(row);
    }
    beam.advance(scores.data());
    ++outcome.steps;
    if (beam.done()) break;
    std::vector<Words> next;
    for (int64_t r = 0; r < beam.rows(); ++r) {
      next.push_back(rows[beam.parent(r)]);
      next.back().push_back(beam.token(r));
    }
    rows.swap(next);
  }
  const int64_t longest = static_cast<int64_t>(prefix.size()) + tokens.max_new;
  for (int64_t rank = 0; rank < rules.returned; ++rank) {
    Hypothesis h;
    h.words.resize(longest), h.logprobs.resize(longest);
    const int64_t length = beam.result(rank, h.words.data(), h.logprobs.data(), &h.score);
    h.words.resize(length), h.logprobs.resize(length);
    outcome.found.push_back(h);
  }
  return outcome;
}

TokenRules token_rules(int64_t vocab, int64_t max_new) {
  TokenRules rules;
  rules.vocab = vocab, rules.max_new = max_new, rules.eos = 0;
  return rules;
}

// Every caption and its score, best first; ties in the order of the words.
std::vector<std::pair<float, Words>> every_caption(const Language& language, int64_t max_new,
                                                   double penalty) {
  std::vector<std::pair<float, Words>> done;
  std::vector<std::pair<float, Words>> live = {{0.0f, {}}};
  while (!live.empty()) {
    std::vector<std::pair<float, Words>> next;
    for (const auto& [sum, words] : live) {
      const std::vector<float> logits = language.logits(words);
      float max, log_sum;
      normalise(logits, &max, &log_sum);
      for (int32_t v = 0; v < language.vocab; ++v) {
        Words longer = words;
        longer.push_back(v);
        const float total = sum + ((logits[v] - max) - log_sum);
        const auto length = static_cast<int64_t>(longer.size());
        if (v == 0 || length == max_new)
          done.emplace_back(total / static_cast<float>(std::pow(static_cast<double>(length), penalty)),
                            longer);
        else
          next.emplace_back(total, longer);
      }
    }
    live.swap(next);
  }
  std::stable_sort(done.begin(), done.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  return done;
}

TEST(beam_that_keeps_everything_is_exhaustive_search) {
  for (uint32_t seed = 0; seed < 20; ++seed)
    for (const Ended ended : {Ended::kPool, Ended::kInSlot})
      for (double penalty : {0.0, 1.0, -0.5}) {
        if (ended == Ended::kInSlot && penalty != 0) continue;
        const Language language{4, seed};
        BeamRules rules;
        rules.beams = 256, rules.returned = 256, rules.ended = ended, rules.length_penalty = penalty;
        rules.early_stopping = EarlyStopping::kNever;
        const auto expected = every_caption(language, 4, penalty);
        const Outcome outcome = search(language, token_rules(4, 4), rules);
        for (size_t i = 0; i < outcome.found.size(); ++i) {
          if (i >= expected.size()) {
            CHECK(outcome.found[i].words.empty() && outcome.found[i].score == kMinusInfinity);
            continue;
          }
          CHECK(outcome.found[i].score == expected[i].first);
          CHECK(outcome.found[i].words == expected[i].second);
        }
      }
}

// Returning all K can stop only by the rule; returning fewer may stop sooner, with the same result.
TEST(beam_early_exit_changes_nothing) {
  int64_t steps_all = 0, steps_few = 0;
  for (uint32_t seed = 0; seed < 150; ++seed)
    for (const EarlyStopping early :
         {EarlyStopping::kHeuristic, EarlyStopping::kWhenFull, EarlyStopping::kNever})
      for (double penalty : {0.0, 0.7, 2.0, -1.0})
        for (const Ended ended : {Ended::kPool, Ended::kInSlot}) {
          const Language language{5, seed, seed % 2 == 1};
          BeamRules rules;
          rules.beams = 6, rules.returned = 6, rules.early_stopping = early, rules.length_penalty = penalty;
          rules.ended = ended;
          const Outcome all = search(language, token_rules(5, 12), rules);
          for (int64_t n : {1, 3}) {
            rules.returned = n;
            const Outcome few = search(language, token_rules(5, 12), rules);
            for (int64_t i = 0; i < n; ++i) CHECK(few.found[i] == all.found[i]);
            CHECK(few.steps <= all.steps);
            steps_all += all.steps, steps_few += few.steps;
          }
        }
  CHECK(steps_few < steps_all);
}

TEST(beam_hypotheses_are_distinct_and_scores_fall) {
  for (uint32_t seed = 0; seed < 50; ++seed)
    for (const Ended ended : {Ended::kPool, Ended::kInSlot}) {
      BeamRules rules;
      rules.beams = 8, rules.returned = 8, rules.ended = ended;
      const Outcome outcome = search({6, seed, true}, token_rules(6, 7), rules);
      for (size_t i = 0; i < outcome.found.size(); ++i) {
        if (i > 0) CHECK(outcome.found[i].score <= outcome.found[i - 1].score);
        for (size_t j = 0; j < i; ++j) CHECK(outcome.found[i].words != outcome.found[j].words);
        float sum = 0;
        for (float logprob : outcome.found[i].logprobs) sum += logprob;
        CHECK(sum == outcome.found[i].score);
      }
    }
}

TEST(beam_obeys_the_token_rules) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    TokenRules tokens = token_rules(8, 9);
    tokens.min_new = 4, tokens.no_repeat_ngram = 2, tokens.suppress = std::vector<int64_t>{3, 3, 5};
    tokens.repetition_penalty = 1.5f;
    BeamRules rules;
    rules.beams = 5, rules.returned = 5;
    const Words prefix = {1, 2};
    for (const Hypothesis& h : search({8, seed}, tokens, rules, prefix).found) {
      CHECK(h.words.size() >= 6 && h.words[0] == 1 && h.words[1] == 2);
      CHECK(h.logprobs[0] == 0 && h.logprobs[1] == 0);
      std::map<std::pair<int32_t, int32_t>, int> pairs;
      for (size_t t = 0; t < h.words.size(); ++t) {
        CHECK(h.words[t] != 3 && h.words[t] != 5);
        if (t > 0) CHECK(++pairs[std::make_pair(h.words[t - 1], h.words[t])] == 1);
        if (h.words[t] == 0) CHECK(t + 1 == h.words.size() && t >= 5);
      }
    }
  }
}

TEST(beam_repetition_penalty_is_on_log_probabilities) {
  TokenRules tokens = token_rules(3, 2);
  tokens.suppress = {0};
  BeamRules rules;
  rules.beams = 4, rules.returned = 4;
  const Outcome plain = search({3, 1}, tokens, rules);
  tokens.repetition_penalty = 2;
  const Outcome penalised = search({3, 1}, tokens, rules);
  for (const Hypothesis& h : penalised.found)
    for (const Hypothesis& p : plain.found)
      if (h.words == p.words) CHECK(h.logprobs[1] == p.logprobs[1] * (h.words[0] == h.words[1] ? 2 : 1));
}

TEST(beam_without_an_allowed_word_stops_unfinished) {
  for (const Ended ended : {Ended::kPool, Ended::kInSlot}) {
    TokenRules tokens = token_rules(3, 6);
    tokens.no_repeat_ngram = 1, tokens.suppress = {0};
    BeamRules rules;
    rules.beams = 4, rules.returned = 4, rules.ended = ended;
    const Outcome outcome = search({3, 7}, tokens, rules);
    CHECK(outcome.found[0].words.size() == 2 && outcome.found[1].words.size() == 2);
    CHECK(outcome.found[2].words.empty() && outcome.found[3].score == kMinusInfinity);
    // A prefix that bans everything is a caption by itself.
    const Outcome stuck = search({3, 7}, tokens, rules, {1, 2});
    CHECK((stuck.found[0].words == Words{1, 2}));
    CHECK(stuck.found[0].score == 0 && stuck.found[1].words.empty());
  }
}

TEST(beam_orders_ties_by_parent_then_token) {
  BeamRules rules;
  rules.beams = 3, rules.returned = 3;
  TokenRules tokens = token_rules(5, 2);
  // Three equal words after anything; word 0 ends, but is banned here.
  tokens.suppress = {0};
  struct Flat : Language {
    Flat() : Language{5, 0} {}
  } language;
  language.coarse = true;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    language.seed = seed;
    const Outcome a = search(language, tokens, rules);
    // The first word is the lowest of the most likely ones.
    const std::vector<float> first = language.logits({});
    int32_t lowest = 1;
    for (int32_t v = 2; v < 5; ++v)
      if (first[v] > first[lowest]) lowest = v;
    float best = kMinusInfinity;
    for (int32_t v = 1; v < 5; ++v) best = std::max(best, first[v]);
    CHECK(first[lowest] == best);
    for (size_t i = 1; i < a.found.size(); ++i)
      if (a.found[i].score == a.found[i - 1].score && a.found[i].words[0] == a.found[i - 1].words[0])
        CHECK(a.found[i - 1].words[1] < a.found[i].words[1]);
  }
}

TEST(beam_of_1024) {
  BeamRules rules;
  rules.beams = 1024, rules.returned = 1024;
  const Outcome outcome = search({40, 3}, token_rules(40, 4), rules);
  for (const Hypothesis& h : outcome.found) CHECK(!h.words.empty());
}

TEST(beam_refuses_what_it_cannot_do) {
  const auto with = [](auto change) {
    TokenRules tokens = token_rules(5, 8);
    BeamRules rules;
    change(tokens, rules);
    return search({5, 1}, tokens, rules);
  };
  CHECK_THROWS(with([](auto&, auto& r) { r.beams = 1025; }), "num_beams must be in 1..1024, got 1025");
  CHECK_THROWS(with([](auto&, auto& r) { r.returned = 6; }),
               "num_return_sequences must be in 1..num_beams = 5, got 6");
  CHECK_THROWS(with([](auto&, auto& r) { r.length_penalty = 1e9; }), "length_penalty must keep");
  CHECK_THROWS(with([](auto& t, auto&) { t.suppress = std::vector<int64_t>{0, 1, 2, 3, 4}; }),
               "must leave a word to start with");
  CHECK_THROWS(with([](auto& t, auto&) { t.suppress = std::vector<int64_t>{1, 2, 3, 4}, t.min_new = 1; }),
               "min_new_tokens bans");
  CHECK_THROWS(with([](auto& t, auto&) { t.suppress = std::vector<int64_t>{5}; }),
               "suppress_tokens must be token ids in 0..4, got 5");
  CHECK_THROWS(with([](auto& t, auto&) { t.eos = 5; }), "eos_id must be in 0..4, got 5");
}

}  // namespace
}  // namespace lrcn
