// What can be said of a decoder's shape and of a search's options without reading weights or features.
#include "decoder_search.h"

namespace lrcn {

void check_decoder(const DecoderShape& s) {
  LRCN_CHECK(s.layers() >= 1 && s.layers() <= kMaxDecoderLayers, "decode_pack: w_ih must hold 1..",
             kMaxDecoderLayers, " layers, got ", s.layers());
  LRCN_CHECK(s.vocab >= 1 && s.vocab < INT32_MAX && s.embed >= 1,
             "decode_pack: embedding must be [V, E] with V and E at least 1, got [", s.vocab, ", ", s.embed,
             "]");
  for (int64_t l = 0; l < s.layers(); ++l)
    LRCN_CHECK(s.hidden[l] >= 1, "decode_pack: w_hh[", l, "] must have at least one hidden unit");
  LRCN_CHECK(s.static_layer >= -1 && s.static_layer < s.layers(), "decode_pack: static_layer must be in -1..",
             s.layers() - 1, ", got ", s.static_layer);
  LRCN_CHECK(s.static_layer < 0 || s.static_size >= 1, "decode_pack: w_ih[", s.static_layer,
             "] must be [4H, input + F] with F at least 1, got F = ", s.static_size);
  LRCN_CHECK(s.static_layer < 0 || !s.image_first,
             "decode_pack: image_first must be False with a static_layer: the image enters once");
}

TokenRuleLists token_lists(const DecoderShape& shape, TokenRules tokens) {
  tokens.vocab = shape.vocab;
  return TokenRuleLists(tokens);
}

void check_decode_options(const DecoderShape& s, const DecodeInput& input, const TokenRules& tokens) {
  token_lists(s, tokens);
  const int64_t F = s.features();
  LRCN_CHECK(input.batch >= 0, "generate: batch_size must be at least 0, got ", input.batch);
  LRCN_CHECK((input.features != nullptr) == (F > 0) || input.batch == 0, "generate: features must be ",
             F > 0 ? "given to a decoder with an image" : "None for a decoder without an image");
  LRCN_CHECK(input.bos >= 0 && input.bos < s.vocab, "generate: bos_id must be in 0..", s.vocab - 1, ", got ",
             input.bos);
  LRCN_CHECK(input.feed_bos || s.image_first,
             "generate: feed_bos must be True without image_first: the first word ",
             "needs something to be predicted from");
}

}  // namespace lrcn
