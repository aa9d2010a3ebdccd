// What the decoding ops of the CPU and of CUDA share: arguments on their way in, results on theirs out.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../core/decoder_search.h"
#include "checks.h"

namespace lrcn::ops {

// Outputs: sequences [B, n, L], lengths [B, n], scores [B, n], token_logprobs [B, n, L].
using Decoded = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The shape of a decoder, and its weights. The shape's type is the caller's business.
inline DecoderShape check_pack(const Tensor& embedding, const std::vector<Tensor>& w_ih,
                               const std::vector<Tensor>& w_hh, const std::vector<Tensor>& bias,
                               const Tensor& projection, const std::optional<Tensor>& projection_bias,
                               int64_t static_layer, bool image_first, bool table, DecoderWeights* weights) {
  check_float("decode_pack: embedding", embedding);
  LRCN_CHECK(embedding.dim() == 2, "decode_pack: embedding must be [V, E], got ", shape_of(embedding));
  LRCN_CHECK(w_ih.size() == w_hh.size() && bias.size() == w_hh.size(),
             "decode_pack: w_ih, w_hh and bias must hold one tensor per layer, got ", w_ih.size(), ", ",
             w_hh.size(), " and ", bias.size());
  DecoderShape shape;
  shape.vocab = embedding.size(0), shape.embed = embedding.size(1);
  shape.static_layer = static_layer, shape.image_first = image_first;
  shape.table = table;
  for (size_t l = 0; l < w_hh.size(); ++l) {
    LRCN_CHECK(w_hh[l].dim() == 2 && w_ih[l].dim() == 2, "decode_pack: w_ih[", l, "] and w_hh[", l,
               "] must be [4H, input] and [4H, H], got ", shape_of(w_ih[l]), " and ", shape_of(w_hh[l]));
    const int64_t H = w_hh[l].size(1);
    shape.hidden.push_back(H);
    int64_t input = shape.input(static_cast<int64_t>(l));
    if (static_cast<int64_t>(l) == static_layer) {
      shape.static_size = w_ih[l].size(1) - input;
      input = w_ih[l].size(1);
    }
    check("decode_pack: w_hh", w_hh[l], "[4H, H]", {4 * H, H}, "embedding", embedding);
    check("decode_pack: w_ih", w_ih[l], "[4H, input]", {4 * H, input}, "embedding", embedding);
    check("decode_pack: bias", bias[l], "[4H]", {4 * H}, "embedding", embedding);
    weights->w_ih.push_back(w_ih[l].const_data_ptr<float>());
    weights->w_hh.push_back(w_hh[l].const_data_ptr<float>());
    weights->bias.push_back(bias[l].const_data_ptr<float>());
  }
  check_decoder(shape);
  check("decode_pack: embedding", embedding, "[V, E]", {shape.vocab, shape.embed}, "embedding", embedding);
  check("decode_pack: projection", projection, "[V, H]", {shape.vocab, shape.hidden.back()}, "embedding",
        embedding);
  if (projection_bias.has_value())
    check("decode_pack: projection_bias", *projection_bias, "[V]", {shape.vocab}, "embedding", embedding);
  weights->embedding = embedding.const_data_ptr<float>();
  weights->projection = projection.const_data_ptr<float>();
  weights->projection_bias = projection_bias.has_value() ? projection_bias->const_data_ptr<float>() : nullptr;
  return shape;
}

// Features and prefix are on the device of `packed`.
inline DecodeInput input_of(const DecoderShape& shape, const Tensor& packed,
                            const std::optional<Tensor>& features, int64_t batch,
                            const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t pad) {
  DecodeInput input;
  input.batch = batch, input.feed_bos = feed_bos, input.bos = bos, input.pad = pad;
  const int64_t F = shape.features();
  if (features.has_value()) {
    LRCN_CHECK(F > 0, "generate: features must be None for a decoder without an image, got ",
               shape_of(*features));
    check_float("generate: features", *features);
    check_layout("generate: features", *features, "[B, F]", {batch, F}, "packed", packed);
    input.features = features->const_data_ptr<float>();
  }
  if (prefix.has_value()) {
    LRCN_CHECK(prefix->scalar_type() == ScalarType::Long, "generate: prefix_ids must be int64, got ",
               torch::headeronly::toString(prefix->scalar_type()));
    LRCN_CHECK(prefix->dim() == 2, "generate: prefix_ids must be [B, P], got ", shape_of(*prefix));
    check_layout("generate: prefix_ids", *prefix, "[B, P]", {batch, prefix->size(1)}, "packed", packed);
    input.prefix = prefix->const_data_ptr<int64_t>();
    input.prefix_length = prefix->size(1);
  }
  return input;
}

// Fresh outputs and core's view of them.
inline Decoded new_decoded(const Tensor& like, int64_t batch, int64_t n, int64_t longest,
                           DecodeOutput* view) {
  Decoded out{torch::stable::new_empty(like, {batch, n, longest}, ScalarType::Long),
              torch::stable::new_empty(like, {batch, n}, ScalarType::Long),
              torch::stable::new_empty(like, {batch, n}, ScalarType::Float),
              torch::stable::new_empty(like, {batch, n, longest}, ScalarType::Float)};
  view->sequences = std::get<0>(out).mutable_data_ptr<int64_t>();
  view->lengths = std::get<1>(out).mutable_data_ptr<int64_t>();
  view->scores = std::get<2>(out).mutable_data_ptr<float>();
  view->logprobs = std::get<3>(out).mutable_data_ptr<float>();
  return out;
}

inline TokenRules token_rules(int64_t eos, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                              double repetition_penalty, const std::vector<int64_t>& suppress) {
  TokenRules rules;
  rules.eos = eos, rules.max_new = max_new, rules.min_new = min_new, rules.no_repeat_ngram = no_repeat_ngram;
  rules.repetition_penalty = static_cast<float>(repetition_penalty);
  rules.suppress = suppress;
  return rules;
}

// Greedy search without uniforms.
inline SampleRules sample_rules(const Tensor& packed, const std::optional<Tensor>& uniforms, int64_t batch,
                                int64_t max_new, double length_penalty, double logit_scale, int64_t top_k,
                                double top_p) {
  SampleRules rules;
  rules.greedy = !uniforms.has_value();
  rules.length_penalty = length_penalty, rules.logit_scale = static_cast<float>(logit_scale);
  rules.top_k = top_k, rules.top_p = top_p;
  if (uniforms.has_value()) {
    LRCN_CHECK(uniforms->scalar_type() == ScalarType::Double, "decode_sample: uniforms must be float64, got ",
               torch::headeronly::toString(uniforms->scalar_type()));
    LRCN_CHECK(uniforms->dim() == 3, "decode_sample: uniforms must be [B, n, max_new], got ",
               shape_of(*uniforms));
    rules.draws = uniforms->size(1);
    check_layout("decode_sample: uniforms", *uniforms, "[B, n, max_new]", {batch, rules.draws, max_new},
                 "packed", packed);
    rules.uniforms = uniforms->const_data_ptr<double>();
  }
  rules.check();
  return rules;
}

inline BeamRules beam_rules(int64_t num_beams, int64_t num_return, double length_penalty,
                            int64_t early_stopping, bool in_slot) {
  LRCN_CHECK(early_stopping >= 0 && early_stopping <= 2,
             "decode_beam: early_stopping must be 0 (False), 1 (True) or 2 (never), got ", early_stopping);
  BeamRules rules;
  rules.beams = num_beams, rules.returned = num_return, rules.length_penalty = length_penalty;
  rules.early_stopping = static_cast<EarlyStopping>(early_stopping);
  rules.ended = in_slot ? Ended::kInSlot : Ended::kPool;
  return rules;
}

}  // namespace lrcn::ops
