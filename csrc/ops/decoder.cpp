// CPU implementations of the decoding ops: check, allocate, call core.
#include <torch/csrc/stable/library.h>

#include "../core/memory.h"
#include "decoder.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {
namespace {

Tensor decode_pack_cpu(const Tensor& embedding, const std::vector<Tensor>& w_ih,
                       const std::vector<Tensor>& w_hh, const std::vector<Tensor>& bias,
                       const Tensor& projection, const std::optional<Tensor>& projection_bias,
                       int64_t static_layer, bool image_first, ScalarType dtype, bool table) {
  DecoderWeights weights;
  DecoderShape shape = check_pack(embedding, w_ih, w_hh, bias, projection, projection_bias, static_layer,
                                  image_first, table, &weights);
  shape.type = weight_type("decode_pack", dtype);
  const int64_t bytes = decoder_packed_bytes(shape);
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

Decoded decode_beam_cpu(const Tensor& packed, const std::optional<Tensor>& features, int64_t batch,
                        const std::optional<Tensor>& prefix, bool feed_bos, int64_t bos, int64_t eos,
                        int64_t pad, int64_t max_new, int64_t min_new, int64_t no_repeat_ngram,
                        double repetition_penalty, const std::vector<int64_t>& suppress, int64_t num_beams,
                        int64_t num_return, double length_penalty, int64_t early_stopping, bool in_slot) {
  const PackedDecoder decoder = open(packed);
  const DecodeInput input = input_of(decoder.shape(), packed, features, batch, prefix, feed_bos, bos, pad);
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  const BeamRules rules = beam_rules(num_beams, num_return, length_penalty, early_stopping, in_slot);
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
  const DecodeInput input = input_of(decoder.shape(), packed, features, batch, prefix, feed_bos, bos, pad);
  const TokenRules tokens = token_rules(eos, max_new, min_new, no_repeat_ngram, repetition_penalty, suppress);
  check_decode(decoder, input, tokens);
  const SampleRules rules =
      sample_rules(packed, uniforms, batch, max_new, length_penalty, logit_scale, top_k, top_p);
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
