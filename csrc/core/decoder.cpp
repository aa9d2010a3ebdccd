#include "decoder.h"

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "simd/table.h"

namespace lrcn {
namespace {

constexpr int64_t kMagic = 0x3144434e43524c33;  // changes with the layout below
constexpr int64_t kLine = 64;                   // bytes that every part is aligned to
constexpr int64_t kTableRows = 256;             // rows of the table per GEMM: 1 MB of embeddings at E = 1000

struct Header {
  int64_t magic, bytes;
  char isa[32];  // a packed weight is for one instruction set
  int64_t vocab, embed, layers, static_layer, static_size, image_first, type, table;
  int64_t hidden[kMaxDecoderLayers];
  char unused[16];
};
static_assert(sizeof(Header) % kLine == 0);

// Byte offsets of the parts, each aligned to a cache line. lrcn_fast/_packed_sizes.py knows the sum.
struct Layout {
  std::vector<int64_t> lstm, bias;
  int64_t words = 0, static_term = 0, image = 0, projection = 0, projection_bias = 0, exact = 0, bytes = 0;
};

int64_t padded(int64_t bytes) {
  return (bytes + kLine - 1) / kLine * kLine;
}

// Layer 0 with a table gets its word's term ready-made.
int64_t input_of_step(const DecoderShape& s, int64_t layer) {
  return layer == 0 && s.table ? 0 : s.input(layer);
}

// How the weights are stored that meet an image once, not at every step: there is no time to be won by
// rounding its features to 8 bits, and those were half of the error of int8 (benchmarks/accuracy.py).
WeightType type_of_image(const DecoderShape& s) {
  return s.type == WeightType::kInt8 ? WeightType::kBFloat16 : s.type;
}

Layout layout_of(const DecoderShape& s) {
  Layout layout;
  int64_t end = sizeof(Header);
  const auto place = [&](int64_t bytes) {
    const int64_t begin = end;
    end += padded(bytes);
    return begin;
  };
  const auto floats = [&](int64_t n) { return place(n * static_cast<int64_t>(sizeof(float))); };
  for (int64_t l = 0; l < s.layers(); ++l) {
    layout.lstm.push_back(place(lstm_packed_bytes(s.hidden[l], input_of_step(s, l), s.hidden[l], s.type)));
    layout.bias.push_back(floats(4 * s.hidden[l]));
  }
  layout.words = floats(s.vocab * (s.table ? 4 * s.hidden[0] : s.embed));
  if (s.static_layer >= 0)
    layout.static_term =
        place(linear_packed_bytes(4 * s.hidden[s.static_layer], s.static_size, type_of_image(s)));
  if (s.image_first && s.table)
    layout.image = place(linear_packed_bytes(4 * s.hidden[0], s.embed, type_of_image(s)));
  layout.projection = place(linear_packed_bytes(s.vocab, s.hidden.back(), s.type));
  layout.projection_bias = floats(s.vocab);
  if (s.type != WeightType::kFloat32) layout.exact = floats(s.vocab * s.hidden.back());
  layout.bytes = end;
  return layout;
}

// out [V, 4H] = embedding @ w_ih[:, :E]^T + bias
void fold_table(const DecoderShape& s, const DecoderWeights& weights, int64_t ld, float* out,
                const Parallel& parallel) {
  const int64_t gates = 4 * s.hidden[0];
  const PackedBuffer packed = allocate_packed(linear_packed_bytes(gates, s.embed, WeightType::kFloat32));
  linear_pack(weights.w_ih[0], ld, 1, gates, s.embed, WeightType::kFloat32, packed.get(), parallel);
  const PackedLinear w{packed.get(), WeightType::kFloat32, gates, s.embed};
  for (int64_t v = 0; v < s.vocab; v += kTableRows)
    linear_forward(w, std::min(kTableRows, s.vocab - v), weights.embedding + v * s.embed, s.embed,
                   weights.bias[0], out + v * gates, gates, parallel);
}

}  // namespace

int64_t decoder_packed_bytes(const DecoderShape& shape) {
  check_decoder(shape);
  return layout_of(shape).bytes;
}

void decoder_pack(const DecoderShape& s, const DecoderWeights& weights, void* packed,
                  const Parallel& parallel) {
  check_decoder(s);
  const Layout layout = layout_of(s);
  char* base = static_cast<char*>(packed);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(base + offset); };
  // Zeros behind the values too, so that equal weights are equal bytes.
  const auto pad = [&](int64_t offset, int64_t n) {
    const int64_t bytes = n * static_cast<int64_t>(sizeof(float));
    std::memset(base + offset + bytes, 0, padded(bytes) - bytes);
  };
  const auto copy = [&](int64_t offset, const float* from, int64_t n) {
    if (from == nullptr)
      std::fill_n(floats(offset), n, 0.0f);
    else
      std::copy_n(from, n, floats(offset));
    pad(offset, n);
  };

  Header header{};
  header.magic = kMagic;
  header.bytes = layout.bytes;
  std::strncpy(header.isa, simd::kernels().isa, sizeof header.isa - 1);
  header.vocab = s.vocab, header.embed = s.embed, header.layers = s.layers();
  header.static_layer = s.static_layer, header.static_size = s.static_size;
  header.image_first = s.image_first, header.type = static_cast<int64_t>(s.type), header.table = s.table;
  std::copy(s.hidden.begin(), s.hidden.end(), header.hidden);
  std::memcpy(base, &header, sizeof header);

  for (int64_t l = 0; l < s.layers(); ++l) {
    const int64_t H = s.hidden[l], ld = s.input(l) + (l == s.static_layer ? s.static_size : 0);
    lstm_pack(weights.w_ih[l], ld, input_of_step(s, l), weights.w_hh[l], H, H, s.type, base + layout.lstm[l],
              parallel);
    copy(layout.bias[l], weights.bias[l], 4 * H);
    if (l == s.static_layer)
      linear_pack(weights.w_ih[l] + s.input(l), ld, 1, 4 * H, s.static_size, type_of_image(s),
                  base + layout.static_term, parallel);
    if (l == 0 && s.image_first && s.table)
      linear_pack(weights.w_ih[0], ld, 1, 4 * H, s.embed, type_of_image(s), base + layout.image, parallel);
    if (l == 0 && s.table) {
      fold_table(s, weights, ld, floats(layout.words), parallel);
      pad(layout.words, s.vocab * 4 * H);
    }
  }
  if (!s.table) copy(layout.words, weights.embedding, s.vocab * s.embed);
  linear_pack(weights.projection, s.hidden.back(), 1, s.vocab, s.hidden.back(), s.type,
              base + layout.projection, parallel);
  copy(layout.projection_bias, weights.projection_bias, s.vocab);
  if (s.type != WeightType::kFloat32) copy(layout.exact, weights.projection, s.vocab * s.hidden.back());
}

PackedDecoder::PackedDecoder(const void* packed, int64_t bytes) {
  Header header{};
  LRCN_CHECK(bytes >= static_cast<int64_t>(sizeof header), "decode: packed must come from decode_pack, got ",
             bytes, " bytes");
  std::memcpy(&header, packed, sizeof header);
  LRCN_CHECK(header.magic == kMagic && header.bytes == bytes && header.layers >= 1 &&
                 header.layers <= kMaxDecoderLayers,
             "decode: packed must come from decode_pack of this version, got ", bytes, " other bytes");
  header.isa[sizeof header.isa - 1] = 0;
  LRCN_CHECK(std::strcmp(header.isa, simd::kernels().isa) == 0,
             "decode: packed must be for this instruction set, ", simd::kernels().isa, ", got ", header.isa,
             ": pack the weights again");
  shape_.vocab = header.vocab, shape_.embed = header.embed;
  shape_.hidden.assign(header.hidden, header.hidden + header.layers);
  shape_.static_layer = header.static_layer, shape_.static_size = header.static_size;
  shape_.image_first = header.image_first != 0, shape_.type = static_cast<WeightType>(header.type);
  shape_.table = header.table != 0;
  check_decoder(shape_);
  const Layout layout = layout_of(shape_);
  LRCN_CHECK(layout.bytes == bytes, "decode: packed must be [", layout.bytes, "] bytes, got ", bytes);

  const char* base = static_cast<const char*>(packed);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<const float*>(base + offset); };
  for (int64_t l = 0; l < shape_.layers(); ++l)
    layers_.push_back({base + layout.lstm[l], floats(layout.bias[l])});
  words_ = floats(layout.words);
  if (shape_.static_layer >= 0)
    static_ = {base + layout.static_term, type_of_image(shape_), 4 * shape_.hidden[shape_.static_layer],
               shape_.static_size};
  if (shape_.image_first && shape_.table)
    image_ = {base + layout.image, type_of_image(shape_), 4 * shape_.hidden[0], shape_.embed};
  projection_ = {base + layout.projection, shape_.type, shape_.vocab, shape_.hidden.back()};
  projection_bias_ = floats(layout.projection_bias);
  if (shape_.type != WeightType::kFloat32) exact_projection_ = floats(layout.exact);
}

DecoderStates::DecoderStates(const PackedDecoder& decoder, const float* features, int64_t images,
                             int64_t max_rows, const Parallel& parallel)
    : decoder_(decoder), features_(features), images_(images), parallel_(parallel) {
  const DecoderShape& s = decoder.shape();
  for (auto& states : states_) {
    states.resize(s.layers());
    for (int64_t l = 0; l < s.layers(); ++l) {
      states[l].h.resize(max_rows * s.hidden[l]);
      states[l].c.resize(max_rows * s.hidden[l]);
    }
  }
  zeros_.resize(*std::max_element(s.hidden.begin(), s.hidden.end()));
  each_image_.resize(images);
  for (int64_t i = 0; i < images; ++i) each_image_[i] = i;
  for (auto* pointers : {&word_, &init_, &x_, &h_in_, &c_in_, &h_out_}) pointers->resize(max_rows);
  for (auto* pointers : {&h_next_, &c_next_}) pointers->resize(max_rows);

  if (const int64_t l = s.static_layer; l >= 0) {
    const int64_t gates = 4 * s.hidden[l];
    static_terms_.resize(images * gates);
    const bool bias_in_table = l == 0 && s.table;
    linear_forward(decoder.static_, images, features, s.static_size,
                   bias_in_table ? nullptr : decoder.layers_[l].bias, static_terms_.data(), gates, parallel);
  }
}

void DecoderStates::image_step() {
  const DecoderShape& s = decoder_.shape();
  if (!s.table) {
    for (int64_t i = 0; i < images_; ++i) word_[i] = features_ + i * s.embed;
    return run_layers(images_, each_image_.data(), each_image_.data());
  }
  const int64_t gates = 4 * s.hidden[0];
  std::vector<float> terms(images_ * gates);
  linear_forward(decoder_.image_, images_, features_, s.embed, decoder_.layers_[0].bias, terms.data(), gates,
                 parallel_);
  for (int64_t i = 0; i < images_; ++i) word_[i] = terms.data() + i * gates;
  run_layers(images_, each_image_.data(), each_image_.data());
}

void DecoderStates::step(int64_t rows, const int32_t* tokens, const int64_t* parents, const int64_t* images) {
  const DecoderShape& s = decoder_.shape();
  const int64_t width = s.table ? 4 * s.hidden[0] : s.embed;
  for (int64_t r = 0; r < rows; ++r) word_[r] = decoder_.words_ + tokens[r] * width;
  run_layers(rows, parents, images);
}

// word_ holds layer 0's input: a row of the table, or an embedding.
void DecoderStates::run_layers(int64_t rows, const int64_t* parents, const int64_t* images) {
  const DecoderShape& s = decoder_.shape();
  for (int64_t l = 0; l < s.layers(); ++l) {
    const PackedDecoder::Layer& layer = decoder_.layers_[l];
    const int64_t H = s.hidden[l], kx = input_of_step(s, l);
    const State& last = states_[now_][l];
    State& next = states_[1 - now_][l];
    const bool has_static = l == s.static_layer, has_table = l == 0 && s.table;
    for (int64_t r = 0; r < rows; ++r) {
      const float* term = has_static ? static_terms_.data() + images[r] * 4 * H : layer.bias;
      init_[r] = term;
      x_[r] = l == 0 ? word_[r] : h_out_[r];
      h_in_[r] = last.h.data() + parents[r] * H;
      c_in_[r] = fresh_ ? zeros_.data() : last.c.data() + parents[r] * H;
      h_next_[r] = next.h.data() + r * H;
      c_next_[r] = next.c.data() + r * H;
    }
    LstmStep step{};
    step.packed = layer.lstm, step.type = s.type, step.hidden = H, step.rows = rows;
    // The table and the static term add up; each alone already holds the bias.
    step.init_a = has_table ? word_.data() : init_.data();
    step.init_b = has_table && has_static ? init_.data() : nullptr;
    step.x = kx == 0 ? nullptr : x_.data(), step.kx = kx;
    step.h_prev = fresh_ ? nullptr : h_in_.data(), step.kh = H, step.c_prev = c_in_.data();
    step.h = h_next_.data(), step.c = c_next_.data(), step.gates = nullptr;
    lstm_step(step, parallel_);
    for (int64_t r = 0; r < rows; ++r) h_out_[r] = h_next_[r];
  }
  now_ = 1 - now_;
  fresh_ = false;
}

}  // namespace lrcn
