// CPU implementations of the decoding ops: check, allocate, call core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../core/decoder_search.h"
#include "../core/memory.h"
#include "checks.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {
namespace {

// Outputs: sequences [B, n, L], lengths [B, n], scores [B, n], token_logprobs [B, n, L].
using Decoded = std::tuple<Tensor, Tensor, Tensor, Tensor>;

void check_float(const char* what, const Tensor& t) {
  LRCN_CHECK(t.scalar_type() == ScalarType::Float, what, " must be float32, got ",
             torch::headeronly::toString(t.scalar_type()));
}

Tensor decode_pack_cpu(const Tensor& embedding, const std::vector<Tensor>& w_ih,
                       const std::vector<Tensor>& w_hh, const std::vector<Tensor>& bias,
                       const Tensor& projection, const std::optional<Tensor>& projection_bias,
                       int64_t static_layer, bool image_first, ScalarType dtype, bool table) {
  check_float("decode_pack: embedding", embedding);
  LRCN_CHECK(embedding.dim() == 2, "decode_pack: embedding must be [V, E], got ", shape_of(embedding));
  LRCN_CHECK(w_ih.size() == w_hh.size() && bias.size() == w_hh.size(),
             "decode_pack: w_ih, w_hh and bias must hold one tensor per layer, got ", w_ih.size(), ", ",
             w_hh.size(), " and ", bias.size());
  DecoderShape shape;
  shape.vocab = embedding.size(0), shape.embed = embedding.size(1);
  shape.static_layer = static_layer, shape.image_first = image_first;
  shape.type = weight_type("decode_pack", dtype), shape.table = table;
  DecoderWeights weights;
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
    weights.w_ih.push_back(w_ih[l].const_data_ptr<float>());
    weights.w_hh.push_back(w_hh[l].const_data_ptr<float>());
    weights.bias.push_back(bias[l].const_data_ptr<float>());
  }
  const int64_t bytes = decoder_packed_bytes(shape);
  check("decode_pack: embedding", embedding, "[V, E]", {shape.vocab, shape.embed}, "embedding", embedding);
  check("decode_pack: projection", projection, "[V, H]", {shape.vocab, shape.hidden.back()}, "embedding",
        embedding);
  if (projection_bias.has_value())
    check("decode_pack: projection_bias", *projection_bias, "[V]", {shape.vocab}, "embedding", embedding);
  weights.embedding = embedding.const_data_ptr<float>();
  weights.projection = projection.const_data_ptr<float>();
  weights.projection_bias = projection_bias.has_value() ? projection_bias->const_data_ptr<float>() : nullptr;

  Tensor packed = torch::stable::new_empty(embedding, {bytes}, ScalarType::Byte);
  prefer_large_pages(packed.mutable_data_ptr<uint8_t>(), bytes);
  decoder_pack(shape, weights, packed.mutable_data_ptr<uint8_t>(), torch_pool());
  return packed;
}

PackedDecoder open(const Tensor& packed) {
  LRCN_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(),
             "decode: packed must come from decode_pack, got ",
             torch::headeronly::toString(packed.scalar_type()), " ", shape_of(packed));
  return PackedDecoder(packed.const_data_ptr<uint8_t>(), packed.numel());
}

DecodeInput input_of(const PackedDecoder& decoder, const std::optional<Tensor>& features, int64_t batch,
                     const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t pad) {
  DecodeInput input;
  input.batch = batch, input.feed_bos = feed_bos, input.bos = bos, input.pad = pad;
  const int64_t F = decoder.shape().features();
  if (features.has_value()) {
    LRCN_CHECK(F > 0, "generate: features must be None for a decoder without an image, got ",
               shape_of(*features));
    check_float("generate: features", *features);
    check("generate: features", *features, "[B, F]", {batch, F}, "features", *features);
    input.features = features->const_data_ptr<float>();
  }
  if (prefix.has_value()) {
    LRCN_CHECK(prefix->scalar_type() == ScalarType::Long, "generate: prefix_ids must be int64, got ",
               torch::headeronly::toString(prefix->scalar_type()));
    LRCN_CHECK(prefix->dim() == 2, "generate: prefix_ids must be [B, P], got ", shape_of(*prefix));
    check("generate: prefix_ids", *prefix, "[B, P]", {batch, prefix->size(1)}, "prefix_ids", *prefix);
    input.prefix = prefix->const_data_ptr<int64_t>();
    input.prefix_length = prefix->size(1);
  }
  return input;
}

// Fresh outputs and core's view of them.
Decoded new_decoded(const Tensor& like, int64_t batch, int64_t n, int64_t longest, DecodeOutput* view) {
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

TokenRules token_rules(int64_t eos, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                       double repetition_penalty, const std::vector<int64_t>& suppress) {
  TokenRules rules;
  rules.eos = eos, rules.max_new = max_new, rules.min_new = min_new, rules.no_repeat_ngram = no_repeat_ngram;
  rules.repetition_penalty = static_cast<float>(repetition_penalty);
  rules.suppress = suppress;
  return rules;
}

Decoded decode_beam_cpu(const Tensor& packed, const std::optional<Tensor>& features, int64_t batch,
                        const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t eos,
                        int64_t pad, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                        double repetition_penalty, const std::vector<int64_t>& suppress, int64_t num_beams,
                        int64_t num_return, double length_penalty, int64_t early_stopping, bool in_slot) {
  const PackedDecoder decoder = open(packed);
  const DecodeInput input = input_of(decoder, features, batch, prefix, feed_bos, bos, pad);
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  LRCN_CHECK(early_stopping >= 0 && early_stopping <= 2,
             "decode_beam: early_stopping must be 0 (False), 1 (True) ", "or 2 (never), got ",
             early_stopping);
  BeamRules rules;
  rules.beams = num_beams, rules.returned = num_return, rules.length_penalty = length_penalty;
  rules.early_stopping = static_cast<EarlyStopping>(early_stopping);
  rules.ended = in_slot ? Ended::kInSlot : Ended::kPool;
  check_decode(decoder, input, tokens);
  rules.check(input.prefix_length + max_new);
  DecodeOutput view;
  Decoded out = new_decoded(packed, batch, num_return, input.prefix_length + max_new, &view);
  decode_beam(decoder, input, rules, tokens, view, torch_pool());
  return out;
}

Decoded decode_sample_cpu(const Tensor& packed, const std::optional<Tensor>& features, int64_t batch,
                          const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t eos,
                          int64_t pad, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                          double repetition_penalty, const std::vector<int64_t>& suppress,
                          const std::optional<Tensor>& uniforms, double length_penalty, double logit_scale,
                          int64_t top_k, double top_p) {
  const PackedDecoder decoder = open(packed);
  const DecodeInput input = input_of(decoder, features, batch, prefix, feed_bos, bos, pad);
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  SampleRules rules;
  rules.greedy = !uniforms.has_value();
  rules.length_penalty = length_penalty, rules.logit_scale = static_cast<float>(logit_scale);
  rules.top_k = top_k, rules.top_p = top_p;
  check_decode(decoder, input, tokens);
  if (uniforms.has_value()) {
    LRCN_CHECK(uniforms->scalar_type() == ScalarType::Double, "decode_sample: uniforms must be float64, got ",
               torch::headeronly::toString(uniforms->scalar_type()));
    LRCN_CHECK(uniforms->dim() == 3, "decode_sample: uniforms must be [B, n, max_new], got ",
               shape_of(*uniforms));
    rules.draws = uniforms->size(1);
    check("decode_sample: uniforms", *uniforms, "[B, n, max_new]", {batch, rules.draws, max_new}, "uniforms",
          *uniforms);
    rules.uniforms = uniforms->const_data_ptr<double>();
  }
  rules.check();
  DecodeOutput view;
  Decoded out = new_decoded(packed, batch, rules.draws, input.prefix_length + max_new, &view);
  decode_sample(decoder, input, rules, tokens, view, torch_pool());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("decode_pack", TORCH_BOX(&decode_pack_cpu));
  m.impl("decode_beam", TORCH_BOX(&decode_beam_cpu));
  m.impl("decode_sample", TORCH_BOX(&decode_sample_cpu));
}

}  // namespace lrcn::ops
