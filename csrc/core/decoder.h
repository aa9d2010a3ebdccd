// A caption decoder: embedding -> L LSTM layers -> vocabulary projection, packed for inference, and
// its step over a list of rows.
//
// Shapes: V vocabulary, E embedding, H_l hidden size of layer l (they may differ), F image features.
// The image enters in one of three ways:
//
//   static_layer = l   the input of layer l is cat(x, features), at every step (LRCN's 1u, 2u, 2f)
//   image_first        features [E] are layer 0's input at a step before BOS (Show and Tell)
//   neither            there is no image
//
// A static input's term of the gates, features @ W_f^T + b, is constant: it is computed once per image
// and shared by all its rows. Layer 0's term of a word, embedding[v] @ W_ih^T + b, is constant too: it
// may be folded into a table [V, 4H_0], whose rows replace a GEMM. The table is float32 whatever the
// weight type. With rounded weights the projection is kept in float32 too: a search scores the words that it
// chooses among again (rescore.h).
#pragma once

#include <cstdint>
#include <vector>

#include "base.h"
#include "linear.h"
#include "lstm.h"

namespace lrcn {

struct DecoderShape {
  int64_t vocab = 0;            // V
  int64_t embed = 0;            // E
  std::vector<int64_t> hidden;  // H_l, bottom up
  int64_t static_layer = -1;    // -1: none
  int64_t static_size = 0;      // F
  bool image_first = false;
  WeightType type = WeightType::kFloat32;
  bool table = false;

  int64_t layers() const { return static_cast<int64_t>(hidden.size()); }
  int64_t input(int64_t layer) const { return layer == 0 ? embed : hidden[layer - 1]; }
  // Columns of features: F, E, or 0 where there is no image.
  int64_t features() const { return static_layer >= 0 ? static_size : image_first ? embed : 0; }
  int64_t table_bytes() const { return vocab * 4 * hidden[0] * static_cast<int64_t>(sizeof(float)); }
};

constexpr int64_t kMaxDecoderLayers = 16;
void check_decoder(const DecoderShape& shape);  // throws unless there can be such a decoder

// Weights in torch's layout.
struct DecoderWeights {
  const float* embedding;          // [V, E]
  std::vector<const float*> w_ih;  // [4H_l, input(l)], or [4H_l, input(l) + F] at the static layer
  std::vector<const float*> w_hh;  // [4H_l, H_l]
  std::vector<const float*> bias;  // [4H_l], b_ih + b_hh; null: 0
  const float* projection;         // [V, H_top]
  const float* projection_bias;    // [V]; null: 0
};

// The packed decoder is one block of bytes that starts with a description of itself.
int64_t decoder_packed_bytes(const DecoderShape& shape);
void decoder_pack(const DecoderShape& shape, const DecoderWeights& weights, void* packed,
                  const Parallel& parallel = {});

// A view of a packed decoder. It owns nothing.
class PackedDecoder {
 public:
  // Throws unless packed [bytes] is what decoder_pack wrote, on this instruction set.
  PackedDecoder(const void* packed, int64_t bytes);

  const DecoderShape& shape() const { return shape_; }
  const PackedLinear& projection() const { return projection_; }
  const float* projection_bias() const { return projection_bias_; }
  // [V, H_top] as given, or null where packing does not round it.
  const float* exact_projection() const { return exact_projection_; }

 private:
  friend class DecoderStates;
  struct Layer {
    const void* lstm;
    const float* bias;  // [4H]
  };
  DecoderShape shape_;
  std::vector<Layer> layers_;
  const float* words_;     // embedding [V, E], or the table [V, 4H_0]
  PackedLinear static_{};  // [4H, F] of the static layer
  PackedLinear image_{};   // [4H_0, E], when the image comes first and words are a table
  PackedLinear projection_{};
  const float* projection_bias_;
  const float* exact_projection_ = nullptr;
};

// The states of the rows of one step, and the way to the next. Rows name the row whose state they
// continue; nothing is shuffled, the kernel reads through pointers.
class DecoderStates {
 public:
  // No step has more than max_rows rows. The decoder and, until the last image step, features [images,
  // features()] outlive this object. State starts at zero, one row per image.
  DecoderStates(const PackedDecoder& decoder, const float* features, int64_t images, int64_t max_rows,
                const Parallel& parallel);

  // image_first: feeds the features, one row per image.
  void image_step();

  // Row r feeds tokens[r] to the state that row parents[r] had after the previous step; it belongs to
  // image images[r]. All are [rows].
  void step(int64_t rows, const int32_t* tokens, const int64_t* parents, const int64_t* images);

  // Of the step just made: the top layer's h of each row, [H_top] each.
  const float* const* top() const { return h_out_.data(); }

 private:
  struct State {
    std::vector<float> h, c;  // [max_rows, H]
  };
  void run_layers(int64_t rows, const int64_t* parents, const int64_t* images);

  const PackedDecoder& decoder_;
  const float* features_;
  int64_t images_;
  Parallel parallel_;
  std::vector<float> static_terms_;  // [images, 4H] of the static layer
  std::vector<float> zeros_;
  std::vector<State> states_[2];     // [layers], this step's and the last one's
  int now_ = 0;                      // which of them the next step reads
  bool fresh_ = true;                // no step yet: the state is zero
  std::vector<int64_t> each_image_;  // 0, 1, ..., images - 1
  // Arguments of lstm_step, per row.
  std::vector<const float*> word_, init_, x_, h_in_, c_in_;
  std::vector<float*> h_next_, c_next_;
  std::vector<const float*> h_out_;
};

}  // namespace lrcn
