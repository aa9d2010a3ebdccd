// The whole decoding loop, for a batch of images: beam search, greedy search and sampling.
//
// Images are independent: they are taken in groups that keep the row list short, and those that are
// finished have no rows, so they leave the batch at once. An image's result does not depend on the
// others, bit for bit.
#pragma once

#include <cstdint>

#include "beam.h"
#include "decoder.h"
#include "sampling.h"

namespace lrcn {

struct DecodeInput {
  int64_t batch = 0;                // B
  const float* features = nullptr;  // [B, features()], or null where the decoder takes no image
  const int64_t* prefix = nullptr;  // [B, P]
  int64_t prefix_length = 0;        // P
  bool feed_bos = true;             // false: the first word is predicted from the image step
  int64_t bos = 0;
  int64_t pad = 0;
};

// n sequences per image, best first, of at most L = P + max_new tokens. Missing hypotheses have length
// 0 and score -inf.
struct DecodeOutput {
  int64_t* sequences;  // [B, n, L], then pad
  int64_t* lengths;    // [B, n]
  float* scores;       // [B, n]
  float* logprobs;     // [B, n, L], 0 for the prefix and after the end
};

// The token rules for a decoder's vocabulary.
TokenRuleLists token_lists(const DecoderShape& shape, TokenRules tokens);

// Throws where an option is out of range; reads neither features nor prefix.
void check_decode_options(const DecoderShape& shape, const DecodeInput& input, const TokenRules& tokens);

// The same, and checks the values of features and prefix. The searches do it themselves; a caller that
// allocates the output does it first.
void check_decode(const PackedDecoder& decoder, const DecodeInput& input, const TokenRules& tokens);

void decode_beam(const PackedDecoder& decoder, const DecodeInput& input, const BeamRules& rules,
                 const TokenRules& tokens, const DecodeOutput& output, const Parallel& parallel = {});

// Draws rules.draws captions per image, or one by greedy search. Log-probabilities are the model's own.
void decode_sample(const PackedDecoder& decoder, const DecodeInput& input, const SampleRules& rules,
                   const TokenRules& tokens, const DecodeOutput& output, const Parallel& parallel = {});

}  // namespace lrcn
