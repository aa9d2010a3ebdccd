// The packed decoder and its row steps against the equations in float64; searches in any partition.
#include "../../csrc/core/decoder.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "../../csrc/core/decoder_search.h"
#include "check.h"

namespace lrcn {
namespace {

using Vec = std::vector<double>;

struct Model {
  DecoderShape shape;
  std::vector<float> embedding, projection, projection_bias;
  std::vector<std::vector<float>> w_ih, w_hh, bias;
  std::vector<char> packed;

  explicit Model(DecoderShape s) : shape(std::move(s)) {
    std::mt19937 random(static_cast<unsigned>(shape.vocab + shape.hidden[0]));
    std::normal_distribution<float> normal;
    const auto make = [&](int64_t n, double scale) {
      std::vector<float> v(n);
      for (float& f : v) f = normal(random) * static_cast<float>(scale);
      return v;
    };
    embedding = make(shape.vocab * shape.embed, 1);
    for (int64_t l = 0; l < shape.layers(); ++l) {
      const int64_t H = shape.hidden[l],
                    in = shape.input(l) + (l == shape.static_layer ? shape.static_size : 0);
      w_ih.push_back(make(4 * H * in, 1 / std::sqrt(in)));
      w_hh.push_back(make(4 * H * H, 1 / std::sqrt(H)));
      bias.push_back(make(4 * H, 0.3));
    }
    projection = make(shape.vocab * shape.hidden.back(), 1);
    projection_bias = make(shape.vocab, 1);
    DecoderWeights weights;
    weights.embedding = embedding.data();
    for (int64_t l = 0; l < shape.layers(); ++l) {
      weights.w_ih.push_back(w_ih[l].data());
      weights.w_hh.push_back(w_hh[l].data());
      weights.bias.push_back(bias[l].data());
    }
    weights.projection = projection.data(), weights.projection_bias = projection_bias.data();
    packed.resize(decoder_packed_bytes(shape));
    decoder_pack(shape, weights, packed.data());
  }

  PackedDecoder open() const { return PackedDecoder(packed.data(), static_cast<int64_t>(packed.size())); }

  Vec word(int32_t token) const {
    const float* row = embedding.data() + token * shape.embed;
    return Vec(row, row + shape.embed);
  }

  // One step of one row; state holds h and c of every layer.
  void step(Vec x, const Vec& features, std::vector<Vec>* state) const {
    for (int64_t l = 0; l < shape.layers(); ++l) {
      const int64_t H = shape.hidden[l];
      if (l == shape.static_layer) x.insert(x.end(), features.begin(), features.end());
      Vec &h = (*state)[2 * l], &c = (*state)[2 * l + 1], z(4 * H), next(H);
      for (int64_t n = 0; n < 4 * H; ++n) {
        z[n] = bias[l][n];
        for (size_t k = 0; k < x.size(); ++k) z[n] += w_ih[l][n * x.size() + k] * x[k];
        for (int64_t k = 0; k < H; ++k) z[n] += w_hh[l][n * H + k] * h[k];
      }
      const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
      for (int64_t j = 0; j < H; ++j) {
        c[j] = sigmoid(z[H + j]) * c[j] + sigmoid(z[j]) * std::tanh(z[2 * H + j]);
        next[j] = sigmoid(z[3 * H + j]) * std::tanh(c[j]);
      }
      h = next;
      x = next;
    }
  }
};

DecoderShape shape_of(std::vector<int64_t> hidden, int64_t static_layer, bool image_first, bool table) {
  DecoderShape s;
  s.vocab = 70, s.embed = 11, s.hidden = std::move(hidden), s.static_layer = static_layer;
  s.static_size = static_layer >= 0 ? 6 : 0, s.image_first = image_first, s.table = table;
  return s;
}

std::vector<DecoderShape> shapes() {
  std::vector<DecoderShape> all;
  for (bool table : {false, true}) {
    all.push_back(shape_of({17}, 0, false, table));
    all.push_back(shape_of({9, 20}, 0, false, table));
    all.push_back(shape_of({20, 9}, 1, false, table));
    all.push_back(shape_of({5, 16, 33}, 2, false, table));
    all.push_back(shape_of({12}, -1, true, table));
    all.push_back(shape_of({12, 7}, -1, true, table));
    all.push_back(shape_of({12, 7}, -1, false, table));
  }
  return all;
}

std::vector<float> features_of(const DecoderShape& s, int64_t images) {
  std::vector<float> features(images * s.features());
  for (size_t i = 0; i < features.size(); ++i) features[i] = std::sin(static_cast<float>(i) * 1.7f);
  return features;
}

TEST(decoder_steps_follow_the_equations) {
  for (const DecoderShape& s : shapes()) {
    const Model model(s);
    const PackedDecoder decoder = model.open();
    const int64_t images = 2, F = s.features();
    const std::vector<float> features = features_of(s, images);
    std::vector<Vec> image_features;
    for (int64_t i = 0; i < images; ++i)
      image_features.emplace_back(features.begin() + i * F, features.begin() + (i + 1) * F);

    DecoderStates states(decoder, features.data(), images, 5, {});
    std::vector<std::vector<Vec>> expected(images);  // per row
    for (auto& row : expected)
      for (int64_t H : s.hidden) row.emplace_back(H, 0.0), row.emplace_back(H, 0.0);
    std::vector<int64_t> image = {0, 1};
    if (s.image_first) {
      states.image_step();
      for (int64_t i = 0; i < images; ++i) model.step(image_features[i], {}, &expected[i]);
    }
    // Rows fan out, cross over, and are dropped.
    const std::vector<std::vector<int64_t>> parents = {{0, 1}, {0, 0, 1, 1, 1}, {4, 1, 1}, {2, 0}, {1}};
    for (size_t t = 0; t < parents.size(); ++t) {
      std::vector<std::vector<Vec>> next;
      std::vector<int64_t> next_image;
      std::vector<int32_t> tokens;
      for (size_t r = 0; r < parents[t].size(); ++r) {
        tokens.push_back(static_cast<int32_t>((7 * t + 3 * r) % s.vocab));
        next.push_back(expected[parents[t][r]]);
        next_image.push_back(image[parents[t][r]]);
        model.step(model.word(tokens[r]), image_features[next_image[r]], &next[r]);
      }
      states.step(static_cast<int64_t>(tokens.size()), tokens.data(), parents[t].data(), next_image.data());
      expected.swap(next), image.swap(next_image);
      for (size_t r = 0; r < expected.size(); ++r)
        for (int64_t j = 0; j < s.hidden.back(); ++j)
          // Five steps, sums of up to 66 terms: measured 3e-7.
          CHECK_NEAR(states.top()[r][j], expected[r][2 * s.layers() - 2][j], 2e-6);
    }
  }
}

struct Decoded {
  std::vector<int64_t> sequences, lengths;
  std::vector<float> scores, logprobs;
  bool operator==(const Decoded& o) const {
    return sequences == o.sequences && lengths == o.lengths && scores == o.scores && logprobs == o.logprobs;
  }
};

void in_pieces(int64_t, int64_t n, int64_t, Parallel::Body body, void* context) {
  for (int64_t begin = n - 1; begin >= 0; --begin) body(context, begin, begin + 1);
}

template <typename Search>
Decoded decode(const Model& model, int64_t first, int64_t images, int64_t n, int64_t max_new,
               Search&& search) {
  const int64_t F = model.shape.features();
  const std::vector<float> features = features_of(model.shape, 100);
  DecodeInput input;
  input.batch = images, input.bos = 1;
  input.features = F > 0 ? features.data() + first * F : nullptr;
  Decoded d;
  d.sequences.resize(images * n * max_new), d.logprobs.resize(images * n * max_new);
  d.lengths.resize(images * n), d.scores.resize(images * n);
  search(model.open(), input,
         DecodeOutput{d.sequences.data(), d.lengths.data(), d.scores.data(), d.logprobs.data()});
  return d;
}

TEST(decoder_search_does_not_depend_on_the_batch_or_the_partition) {
  TokenRules tokens;
  tokens.max_new = 7;
  BeamRules beams;
  beams.returned = 3;
  SampleRules sample;
  sample.draws = 3, sample.top_k = 20;
  std::vector<double> uniforms(100 * 3 * 7);
  for (size_t i = 0; i < uniforms.size(); ++i)
    uniforms[i] = std::fmod(0.618033988749895 * static_cast<double>(i), 1.0);

  for (const DecoderShape& s : shapes()) {
    const Model model(s);
    for (bool sampling : {false, true}) {
      const auto run = [&](int64_t first, int64_t images, const Parallel& parallel) {
        return decode(model, first, images, 3, 7,
                      [&](const PackedDecoder& decoder, const DecodeInput& in, DecodeOutput out) {
                        if (!sampling) return decode_beam(decoder, in, beams, tokens, out, parallel);
                        SampleRules rules = sample;
                        rules.uniforms = uniforms.data() + first * 3 * 7;
                        decode_sample(decoder, in, rules, tokens, out, parallel);
                      });
      };
      const Decoded all = run(0, 60, {});
      CHECK(all == run(0, 60, Parallel(&in_pieces)));
      for (int64_t i : {0, 31, 59}) {
        const Decoded one = run(i, 1, {});
        CHECK(std::equal(one.sequences.begin(), one.sequences.end(), all.sequences.begin() + i * 21));
        CHECK(std::equal(one.scores.begin(), one.scores.end(), all.scores.begin() + i * 3));
        CHECK(std::equal(one.logprobs.begin(), one.logprobs.end(), all.logprobs.begin() + i * 21));
      }
    }
  }
}

TEST(decoder_draws_follow_the_distribution) {
  // 4000 first words against their probabilities: 5 standard deviations of a binomial.
  DecoderShape s = shape_of({8}, 0, false, true);
  s.vocab = 6;
  const Model model(s);
  TokenRules tokens;
  tokens.max_new = 1;
  SampleRules rules;
  rules.draws = 4000;
  std::mt19937 random(3);
  std::vector<double> uniforms(4000);
  for (double& u : uniforms) u = std::uniform_real_distribution<double>()(random);
  rules.uniforms = uniforms.data();
  const Decoded d = decode(model, 0, 1, 4000, 1,
                           [&](const PackedDecoder& decoder, const DecodeInput& in, DecodeOutput out) {
                             decode_sample(decoder, in, rules, tokens, out);
                           });
  std::vector<double> share(6), probability(6);
  for (int64_t i = 0; i < 4000; ++i) {
    share[d.sequences[i]] += 1.0 / 4000;
    probability[d.sequences[i]] = std::exp(d.logprobs[i]);
  }
  for (int v = 0; v < 6; ++v)
    if (share[v] > 0)
      CHECK_NEAR(share[v], probability[v], 5 * std::sqrt(probability[v] * (1 - probability[v]) / 4000));
}

TEST(decoder_refuses_foreign_bytes) {
  Model model(shape_of({8}, 0, false, true));
  const auto open = [&](int64_t bytes) { return PackedDecoder(model.packed.data(), bytes); };
  const auto size = static_cast<int64_t>(model.packed.size());
  CHECK_THROWS(open(10), "packed must come from decode_pack, got 10 bytes");
  CHECK_THROWS(open(size - 64), "packed must come from decode_pack of this version");
  model.packed[16] ^= 1;  // the name of the instruction set
  CHECK_THROWS(open(size), "packed must be for this instruction set");
  model.packed[0] ^= 1;
  CHECK_THROWS(open(size), "packed must come from decode_pack of this version");
  CHECK_THROWS(decoder_packed_bytes(shape_of({8}, 1, false, true)), "static_layer must be in -1..0, got 1");
  CHECK_THROWS(decoder_packed_bytes(shape_of({8}, 0, true, true)), "the image enters once");
}

}  // namespace
}  // namespace lrcn
