#include "decoder_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "rescore.h"
#include "softmax_topk.h"

namespace lrcn {
namespace {

// Rows that run together. Enough to use a weight many times while it is in a cache, few enough that
// their states (8 KB a layer at H = 1000, twice) stay in the second level or near it.
constexpr int64_t kGroupRows = 256;

// The model side of a search over images [begin, begin + count): states, rows, scores.
class Runner {
 public:
  Runner(const PackedDecoder& decoder, const DecodeInput& input, int64_t begin, int64_t count,
         int64_t max_rows, const Parallel& parallel)
      : decoder_(decoder),
        parallel_(parallel),
        states_(decoder,
                input.features == nullptr ? nullptr : input.features + begin * decoder.shape().features(),
                count, max_rows, parallel) {
    // The image, BOS and the prefix: one row per image, and nothing to score.
    images_.resize(count);
    for (int64_t i = 0; i < count; ++i) images_[i] = i;
    if (decoder.shape().image_first) states_.image_step();
    std::vector<int32_t> tokens(count, static_cast<int32_t>(input.bos));
    if (input.feed_bos) states_.step(count, tokens.data(), images_.data(), images_.data());
    for (int64_t p = 0; p < input.prefix_length; ++p) {
      for (int64_t i = 0; i < count; ++i)
        tokens[i] = static_cast<int32_t>(input.prefix[(begin + i) * input.prefix_length + p]);
      states_.step(count, tokens.data(), images_.data(), images_.data());
    }
  }

  // The rows of the next step, collected one by one.
  void clear_rows() { tokens_.clear(), parents_.clear(), images_.clear(); }
  void add_row(int32_t token, int64_t parent, int64_t image) {
    tokens_.push_back(token), parents_.push_back(parent), images_.push_back(image);
  }
  int64_t rows() const { return static_cast<int64_t>(images_.size()); }
  int64_t image(int64_t row) const { return images_[row]; }
  void step() { states_.step(rows(), tokens_.data(), parents_.data(), images_.data()); }

  // Scores every row of the last step. special(row) is its SpecialTokens.
  template <typename SpecialOf>
  void score(int64_t best, bool keep_logits, SpecialOf&& special) {
    const int64_t R = rows(), V = decoder_.shape().vocab;
    const float* exact = decoder_.exact_projection();
    best_ = std::min(exact == nullptr ? best : rescore_candidates(best), V);
    special_.resize(R), special_count_.resize(R), special_out_.resize(R), banned_.resize(R);
    int64_t listed = 0;
    for (int64_t r = 0; r < R; ++r) listed += special(r).size();
    special_logits_.resize(listed);
    listed = 0;
    for (int64_t r = 0; r < R; ++r) {
      const SpecialTokens& list = special(r);
      special_[r] = list.tokens.data(), special_count_[r] = list.size(), banned_[r] = list.banned.data();
      special_out_[r] = special_logits_.data() + listed;
      listed += list.size();
    }
    best_tokens_.resize(R * best_), best_logits_.resize(R * best_), count_.resize(R), max_.resize(R),
        log_sum_.resize(R);
    if (keep_logits) logits_.resize(R * V);

    SoftmaxTopk args{};
    args.w = decoder_.projection(), args.bias = decoder_.projection_bias();
    args.rows = R, args.x = states_.top(), args.best = best_;
    if (listed > 0) args.special = special_.data(), args.special_count = special_count_.data();
    args.tokens = best_tokens_.data(), args.logits = best_logits_.data(), args.count = count_.data();
    args.special_logits = special_out_.data(), args.max = max_.data(), args.log_sum = log_sum_.data();
    args.all_logits = keep_logits ? logits_.data() : nullptr;
    softmax_topk(args, &buffers_, parallel_);
    if (exact != nullptr) rescore(args, exact, banned_.data(), best, parallel_);

    for (int64_t r = 0; r < R; ++r)
      LRCN_CHECK(std::isfinite(max_[r]) && std::isfinite(log_sum_[r]),
                 "generate: the model's scores must be finite, ",
                 "got NaN or infinity: its weights are not finite, or too large");
  }

  RowScores scores(int64_t row) const {
    return {best_tokens_.data() + row * best_,
            best_logits_.data() + row * best_,
            count_[row],
            special_out_[row],
            max_[row],
            log_sum_[row]};
  }
  const float* logits(int64_t row) const { return logits_.data() + row * decoder_.shape().vocab; }

  // log p of a word drawn from logits(row).
  float log_p(int64_t row, int32_t token) const {
    const float logit = logits(row)[token];
    const float* exact = decoder_.exact_projection();
    if (exact == nullptr) return scores(row).log_p(logit);
    const int64_t H = decoder_.projection().K;
    const float rescored = dot(states_.top()[row], exact + token * H, H) + decoder_.projection_bias()[token];
    return rescored_log_p(logit, rescored, max_[row], log_sum_[row]);
  }

 private:
  const PackedDecoder& decoder_;
  Parallel parallel_;
  DecoderStates states_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> parents_, images_;
  int64_t best_ = 0;
  std::vector<const int32_t*> special_;
  std::vector<int64_t> special_count_;
  std::vector<const char*> banned_;
  std::vector<float*> special_out_;
  std::vector<float> special_logits_, best_logits_, max_, log_sum_, logits_;
  std::vector<int32_t> best_tokens_;
  std::vector<int64_t> count_;
  SoftmaxTopkBuffers buffers_;
};

// One sequence of the output; tokens and logprobs are [length].
void write(const DecodeOutput& output, const DecodeInput& input, int64_t index, int64_t longest,
           int64_t length, const int32_t* tokens, const float* logprobs, float score) {
  int64_t* sequence = output.sequences + index * longest;
  std::copy(tokens, tokens + length, sequence);
  std::fill(sequence + length, sequence + longest, input.pad);
  std::copy(logprobs, logprobs + length, output.logprobs + index * longest);
  std::fill(output.logprobs + index * longest + length, output.logprobs + (index + 1) * longest, 0.0f);
  output.lengths[index] = length;
  output.scores[index] = score;
}

std::vector<int32_t> prefix_of(const DecodeInput& input, int64_t image) {
  const int64_t* prefix = input.prefix + image * input.prefix_length;
  return input.prefix_length == 0 ? std::vector<int32_t>{}
                                  : std::vector<int32_t>(prefix, prefix + input.prefix_length);
}

void beam_group(const PackedDecoder& decoder, const DecodeInput& input, const BeamRules& rules,
                const TokenRuleLists& lists, int64_t begin, int64_t count, const DecodeOutput& output,
                const Parallel& parallel) {
  std::vector<BeamSearch> searches;
  searches.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<int32_t> prefix = prefix_of(input, begin + i);
    searches.emplace_back(rules, lists, prefix.data(), input.prefix_length);
  }

  Runner runner(decoder, input, begin, count, count * rules.beams, parallel);
  std::vector<int64_t> first_row(count), last_first_row(count);
  for (int64_t i = 0; i < count; ++i) first_row[i] = i;
  std::vector<RowScores> scores;
  while (true) {
    runner.score(rules.width(), /*keep_logits=*/false, [&](int64_t row) -> const SpecialTokens& {
      const int64_t i = runner.image(row);
      return searches[i].special(row - first_row[i]);
    });
    for (int64_t row = 0; row < runner.rows();) {
      BeamSearch& search = searches[runner.image(row)];
      scores.clear();
      for (const int64_t end = row + search.rows(); row < end; ++row) scores.push_back(runner.scores(row));
      search.advance(scores.data());
    }
    first_row.swap(last_first_row);
    runner.clear_rows();
    for (int64_t i = 0; i < count; ++i) {
      if (searches[i].done()) continue;
      first_row[i] = runner.rows();
      for (int64_t row = 0; row < searches[i].rows(); ++row)
        runner.add_row(searches[i].token(row), last_first_row[i] + searches[i].parent(row), i);
    }
    if (runner.rows() == 0) break;
    runner.step();
  }

  const int64_t n = rules.returned, longest = input.prefix_length + lists.rules().max_new;
  std::vector<int32_t> tokens(longest);
  std::vector<float> logprobs(longest);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t rank = 0; rank < n; ++rank) {
      float score;
      const int64_t length = searches[i].result(rank, tokens.data(), logprobs.data(), &score);
      write(output, input, (begin + i) * n + rank, longest, length, tokens.data(), logprobs.data(), score);
    }
}

// A caption that grows word by word.
struct Draw {
  std::vector<int32_t> tokens;  // prefix included
  std::vector<float> logprobs;
  float sum = 0;
  SpecialTokens special;  // of the next word, when a rule reads the history
};

// The best token by processed logit, or -1 when every token is banned.
int32_t greedy_token(const RowScores& row, const TokenRules& rules, const SpecialTokens& special) {
  int32_t token = row.count > 0 ? row.tokens[0] : -1;
  float best = row.count > 0 ? row.logits[0] : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < special.size(); ++i) {
    if (special.banned[i]) continue;
    const float x = rules.penalised(row.special[i]);
    if (x > best || (x == best && token >= 0 && special.tokens[i] < token))
      best = x, token = special.tokens[i];
  }
  return token;
}

void sample_group(const PackedDecoder& decoder, const DecodeInput& input, const SampleRules& rules,
                  const TokenRuleLists& lists, int64_t begin, int64_t count, const DecodeOutput& output,
                  const Parallel& parallel) {
  const TokenRules& token_rules = lists.rules();
  const int64_t n = rules.draws, P = input.prefix_length, longest = P + token_rules.max_new;
  std::vector<Draw> draws(count * n);
  for (size_t d = 0; d < draws.size(); ++d) {
    draws[d].tokens = prefix_of(input, begin + static_cast<int64_t>(d) / n);
    draws[d].logprobs.assign(P, 0.0f);
  }

  Runner runner(decoder, input, begin, count, count * n, parallel);
  std::vector<int64_t> live(draws.size()), row_of(draws.size());  // draws still growing, and their rows
  for (size_t d = 0; d < draws.size(); ++d) live[d] = static_cast<int64_t>(d), row_of[d] = live[d] / n;
  std::vector<int64_t> draw_of_row(count);  // any draw of the row: all have the same history
  for (int64_t i = 0; i < count; ++i) draw_of_row[i] = i * n;
  std::vector<int32_t> chosen(draws.size());

  for (int64_t generated = 0; !live.empty(); ++generated) {
    const auto special = [&](int64_t draw) -> const SpecialTokens& {
      return token_rules.reads_history() ? draws[draw].special : lists.fixed(generated);
    };
    if (token_rules.reads_history())
      for (int64_t d : live)
        lists.of_history(draws[d].tokens.data(), P + generated, generated, &draws[d].special);
    runner.score(/*best=*/1, /*keep_logits=*/!rules.greedy,
                 [&](int64_t row) -> const SpecialTokens& { return special(draw_of_row[row]); });

    parallel(static_cast<int64_t>(live.size()), /*grain=*/4, [&](int64_t first, int64_t end) {
      Sampler sampler;
      for (int64_t l = first; l < end; ++l) {
        const int64_t d = live[l], row = row_of[d];
        chosen[d] = rules.greedy
                        ? greedy_token(runner.scores(row), token_rules, special(d))
                        : sampler.draw(rules, token_rules, special(d), runner.logits(row),
                                       rules.uniforms[(begin * n + d) * token_rules.max_new + generated]);
      }
    });

    std::vector<int64_t> next;
    std::vector<int64_t> next_row(draws.size());
    for (int64_t d : live) {
      LRCN_CHECK(chosen[d] >= 0 || P + generated > 0,
                 "generate: the rules and the model must leave a word to start ",
                 "with, but every one of the ", token_rules.vocab, " tokens is banned or has probability 0");
      if (chosen[d] < 0) continue;  // stops unfinished
      const RowScores row = runner.scores(row_of[d]);
      // Greedy: the logit comes from the special tokens' list or from the best token.
      float logprob = 0;
      const SpecialTokens& list = special(d);
      const auto listed = std::lower_bound(list.tokens.begin(), list.tokens.end(), chosen[d]);
      if (!rules.greedy)
        logprob = runner.log_p(row_of[d], chosen[d]);
      else if (listed != list.tokens.end() && *listed == chosen[d])
        logprob = row.log_p(row.special[listed - list.tokens.begin()]);
      else
        logprob = row.log_p(row.logits[0]);
      draws[d].tokens.push_back(chosen[d]);
      draws[d].logprobs.push_back(logprob);
      draws[d].sum += logprob;
      if (chosen[d] != token_rules.eos && generated + 1 < token_rules.max_new) next.push_back(d);
    }

    runner.clear_rows();
    draw_of_row.clear();
    for (int64_t d : next) {
      next_row[d] = runner.rows();
      runner.add_row(chosen[d], row_of[d], d / n);
      draw_of_row.push_back(d);
    }
    live.swap(next);
    row_of.swap(next_row);
    if (!live.empty()) runner.step();
  }

  for (int64_t i = 0; i < count; ++i) {
    const auto score = [&](int64_t d) {
      const double length = static_cast<double>(draws[d].tokens.size());
      return draws[d].sum / static_cast<float>(std::pow(length, rules.length_penalty));
    };
    std::vector<int64_t> order(n);
    for (int64_t j = 0; j < n; ++j) order[j] = i * n + j;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score(a) > score(b); });
    for (int64_t j = 0; j < n; ++j) {
      const Draw& draw = draws[order[j]];
      write(output, input, (begin + i) * n + j, longest, static_cast<int64_t>(draw.tokens.size()),
            draw.tokens.data(), draw.logprobs.data(), score(order[j]));
    }
  }
}

}  // namespace

void check_decode(const PackedDecoder& decoder, const DecodeInput& input, const TokenRules& tokens) {
  const DecoderShape& s = decoder.shape();
  check_decode_options(s, input, tokens);
  const int64_t F = s.features();
  for (int64_t b = 0; b < input.batch; ++b) {
    for (int64_t f = 0; f < F; ++f)
      LRCN_CHECK(std::isfinite(input.features[b * F + f]), "generate: features must be finite, got ",
                 input.features[b * F + f], " in row ", b);
    for (int64_t p = 0; p < input.prefix_length; ++p) {
      const int64_t token = input.prefix[b * input.prefix_length + p];
      LRCN_CHECK(token >= 0 && token < s.vocab, "generate: prefix_ids must be in 0..", s.vocab - 1, ", got ",
                 token);
    }
  }
}

void decode_beam(const PackedDecoder& decoder, const DecodeInput& input, const BeamRules& rules,
                 const TokenRules& tokens, const DecodeOutput& output, const Parallel& parallel) {
  check_decode(decoder, input, tokens);
  rules.check(input.prefix_length + tokens.max_new);
  const TokenRuleLists lists = token_lists(decoder.shape(), tokens);
  const int64_t group = std::max<int64_t>(1, kGroupRows / rules.beams);
  for (int64_t b = 0; b < input.batch; b += group)
    beam_group(decoder, input, rules, lists, b, std::min(group, input.batch - b), output, parallel);
}

void decode_sample(const PackedDecoder& decoder, const DecodeInput& input, const SampleRules& rules,
                   const TokenRules& tokens, const DecodeOutput& output, const Parallel& parallel) {
  check_decode(decoder, input, tokens);
  rules.check();
  const TokenRuleLists lists = token_lists(decoder.shape(), tokens);
  const int64_t group = std::max<int64_t>(1, kGroupRows / rules.draws);
  for (int64_t b = 0; b < input.batch; b += group)
    sample_group(decoder, input, rules, lists, b, std::min(group, input.batch - b), output, parallel);
}

}  // namespace lrcn
