// The order of things: where a packed decoder's parts and a search's buffers lie, and which kernels make a
// step. Host code only.
#include <algorithm>

#include "decode.h"

namespace lrcn::cuda {
namespace {

int64_t size_of(Dtype type) {
  return type == Dtype::kFloat32 ? 4 : 2;
}

// Hands out aligned pieces of a block of memory, or with a null base counts them.
class Carver {
 public:
  explicit Carver(void* base, int64_t gap = 0, DecodeVisit visit = nullptr)
      : base_(static_cast<char*>(base)), gap_(gap), visit_(visit) {}

  void* take(const char* name, int64_t bytes) {
    void* const piece = base_ == nullptr ? nullptr : base_ + end_;
    if (visit_ != nullptr && base_ != nullptr && bytes > 0) visit_(name, piece, bytes);
    end_ += (bytes + gap_ + 15) / 16 * 16;
    return piece;
  }
  template <typename T>
  void take(const char* name, T** piece, int64_t count) {
    *piece = static_cast<T*>(take(name, count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t bytes() const { return end_; }

 private:
  char* base_;
  int64_t gap_, end_ = 0;
  DecodeVisit visit_;
};

int64_t carve_model(const DecodeShape& s, void* packed, DecodeModel* model, int64_t gap = 0,
                    DecodeVisit visit = nullptr) {
  Carver carver(packed, gap, visit);
  const auto weight = [&](bool present, int64_t rows, int64_t columns) -> void* {
    return present ? carver.take("weight", rows * decode_padded(columns) * size_of(s.type)) : nullptr;
  };
  model->shape = s;
  for (int64_t l = 0; l < s.layers; ++l) {
    DecodeModel::Layer& layer = model->layers[l];
    layer.w_x = weight(l > 0 || !s.table, 4 * s.hidden[l], s.input(l));
    layer.w_hh = weight(true, 4 * s.hidden[l], s.hidden[l]);
    carver.take("bias", &layer.bias, decode_padded(4 * s.hidden[l]));
  }
  carver.take("words", &model->words, s.vocab * (s.table ? 4 * s.hidden[0] : decode_padded(s.embed)));
  const bool has_static = s.static_layer >= 0;
  model->w_static = weight(has_static, has_static ? 4 * s.hidden[s.static_layer] : 0, s.static_size);
  model->w_image = weight(s.image_first && s.table, 4 * s.hidden[0], s.embed);
  model->projection = weight(true, s.vocab, s.hidden[s.layers - 1]);
  carver.take("projection_bias", &model->projection_bias, decode_padded(s.vocab));
  return carver.bytes();
}

// One step of all layers from the states of half `side` to the other half. The input of layer 0 is the
// features, or the words of the rows.
void step_layers(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers, int64_t side,
                 const DecodeRows& rows, const int32_t* parents, bool image_step, Stream stream) {
  const DecodeShape& s = model.shape;
  const int64_t images = task.images, state_rows = images * task.beams;
  int64_t offset = 0, offset_below = 0;
  for (int64_t l = 0; l < s.layers; ++l) {
    const int64_t H = s.hidden[l];
    const bool bottom = l == 0, in_table = bottom && s.table, is_static = l == s.static_layer;
    DecodeCell cell{};
    cell.H = H, cell.stride = decode_padded(H);
    cell.inputs = in_table ? 0 : decode_padded(s.input(l));
    cell.w_x = model.layers[l].w_x, cell.w_hh = model.layers[l].w_hh;
    cell.x = !bottom ? buffers.h[1 - side] + offset_below : image_step ? buffers.features : model.words;
    cell.x_is_word = bottom && !image_step;
    cell.table = in_table && !image_step ? model.words : nullptr;
    // The table and the term of the features each hold the bias, but not both.
    const bool image_term = is_static || (in_table && image_step);
    cell.term = image_term ? buffers.term : in_table ? nullptr : model.layers[l].bias;
    cell.term_rows = image_term ? images : 1;
    cell.parents = parents;
    cell.h_prev = buffers.h[side] + offset, cell.c_prev = buffers.c[side] + offset;
    cell.h = buffers.h[1 - side] + offset, cell.c = buffers.c[1 - side] + offset;
    decode_cell(s.type, rows, cell, stream);
    offset_below = offset;
    offset += state_rows * decode_padded(H);
  }
}

int64_t top_offset(const DecodeShape& s, int64_t state_rows) {
  int64_t offset = 0;
  for (int64_t l = 0; l + 1 < s.layers; ++l) offset += state_rows * decode_padded(s.hidden[l]);
  return offset;
}

// Steps of the model before the first word is chosen.
int64_t steps_before(const DecodeShape& s, const DecodeTask& task) {
  return (s.image_first ? 1 : 0) + (task.feed_bos ? 1 : 0) + task.prefix_length;
}

// Before the first word is chosen.
DecodeRows first_rows(const DecodeTask& task, const DecodeBuffers& buffers, int64_t images,
                      const int32_t* tokens) {
  return {images, 1, tokens, buffers.progress, static_cast<uint32_t>(task.searches())};
}
DecodeRows later_rows(const DecodeTask& task, const DecodeBuffers& buffers) {
  return {task.images * task.beams, task.beams, buffers.tokens, buffers.progress,
          static_cast<uint32_t>(task.searches())};
}

// Step `offset` of a segment, or 0: the next words of `rows`, and the state of those that go on.
void step(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
          const DecodeRows& rows, int64_t offset, Stream stream) {
  const DecodeStep number{buffers.progress, offset};
  const int64_t side = (steps_before(model.shape, task) + offset) % 2, state_rows = task.images * task.beams;
  if (task.reads_history()) decode_history(task, buffers, rows, number, stream);
  const float* const h = buffers.h[side] + top_offset(model.shape, state_rows);
  if (task.sample) {
    for (int64_t first = 0; first < rows.count; first += task.draw_rows) {
      DecodeRows some = rows;
      some.count = std::min(task.draw_rows, rows.count - first);
      if (rows.tokens != nullptr) some.tokens += first;
      decode_scores(model, task, buffers, some, first, h, number, stream);
      decode_draw(model, task, buffers, first, some.count, number, stream);
    }
  } else {
    decode_scores(model, task, buffers, rows, 0, h, number, stream);
    decode_merge(model, task, buffers, rows, number, stream);
    decode_beam(task, buffers, number, stream);
  }
  step_layers(model, task, buffers, side, later_rows(task, buffers), buffers.parents, false, stream);
}

}  // namespace

DecodeModel decode_model(const DecodeShape& shape, void* packed, int64_t gap, DecodeVisit visit) {
  DecodeModel model{};
  carve_model(shape, packed, &model, gap, visit);
  return model;
}

int64_t decode_packed_bytes(const DecodeShape& shape, int64_t gap) {
  DecodeModel model{};
  return carve_model(shape, nullptr, &model, gap);
}

int64_t decode_pack_bytes(const DecodeShape& s) {
  return s.table ? (s.vocab + 4 * s.hidden[0]) * decode_padded(s.embed) * static_cast<int64_t>(sizeof(float))
                 : 0;
}

void decode_pack(const DecodeModel& model, const DecodeWeights& weights, void* scratch, Stream stream) {
  const DecodeShape& s = model.shape;
  for (int64_t l = 0; l < s.layers; ++l) {
    const DecodeModel::Layer& layer = model.layers[l];
    const int64_t H = s.hidden[l], input = s.input(l);
    const int64_t ld = input + (l == s.static_layer ? s.static_size : 0);
    if (layer.w_x != nullptr) decode_pad(s.type, weights.w_ih[l], ld, 4 * H, input, layer.w_x, stream);
    decode_pad(s.type, weights.w_hh[l], H, 4 * H, H, layer.w_hh, stream);
    decode_pad(Dtype::kFloat32, weights.bias[l], 4 * H, 1, 4 * H, layer.bias, stream);
    if (l == s.static_layer)
      decode_pad(s.type, weights.w_ih[l] + input, ld, 4 * H, s.static_size, model.w_static, stream);
    if (l > 0) continue;
    if (model.w_image != nullptr)
      decode_pad(s.type, weights.w_ih[0], ld, 4 * H, input, model.w_image, stream);
    if (!s.table) {
      decode_pad(Dtype::kFloat32, weights.embedding, s.embed, s.vocab, s.embed, model.words, stream);
      continue;
    }
    const int64_t stride = decode_padded(s.embed);
    float* const embedding = static_cast<float*>(scratch);
    float* const w = embedding + s.vocab * stride;
    decode_pad(Dtype::kFloat32, weights.embedding, s.embed, s.vocab, s.embed, embedding, stream);
    decode_pad(Dtype::kFloat32, weights.w_ih[0], ld, 4 * H, s.embed, w, stream);
    decode_linear(Dtype::kFloat32, s.vocab, 4 * H, stride, embedding, w, weights.bias[0], model.words,
                  stream);
  }
  const int64_t top = s.hidden[s.layers - 1];
  decode_pad(s.type, weights.projection, top, s.vocab, top, model.projection, stream);
  decode_pad(Dtype::kFloat32, weights.projection_bias, s.vocab, 1, s.vocab, model.projection_bias, stream);
}

int64_t decode_buffers(const DecodeShape& s, const DecodeTask& task, void* workspace, DecodeBuffers* buffers,
                       int64_t gap, DecodeVisit visit) {
  Carver carver(workspace, gap, visit);
  const int64_t B = task.images, K = task.beams, rows = B * K, parts = decode_parts(s.vocab);
  const int64_t words = task.reads_history() ? rows * task.longest() : 0;
  int64_t state = 0;
  for (int64_t l = 0; l < s.layers; ++l) state += rows * decode_padded(s.hidden[l]);
  const int64_t term_layer = s.static_layer >= 0 ? s.static_layer : s.image_first && s.table ? 0 : -1;
  carver.take("progress", &buffers->progress, 1);
  carver.take("norms", &buffers->norms, task.longest() + 1);
  carver.take("banned", &buffers->banned, 2 * ((s.vocab + 31) / 32));
  carver.take("uniforms", &buffers->uniforms, task.sample ? rows * task.max_new : 0);
  carver.take("fed", &buffers->fed, (1 + task.prefix_length) * B);
  carver.take("features", &buffers->features, B * decode_padded(s.features()));
  carver.take("term", &buffers->term, term_layer < 0 ? 0 : B * 4 * s.hidden[term_layer]);
  for (int side = 0; side < 2; ++side) {
    carver.take("h", &buffers->h[side], state);
    carver.take("c", &buffers->c[side], state);
  }
  carver.take("images", &buffers->images, B);
  carver.take("slots", &buffers->slots, (task.sample ? 1 : 2) * rows);
  carver.take("nodes", &buffers->nodes, B * task.max_new * task.width());
  carver.take("pool", &buffers->pool, task.in_slot ? 0 : rows);
  carver.take("tokens", &buffers->tokens, rows);
  carver.take("parents", &buffers->parents, rows);
  carver.take("part_best", &buffers->part_best, rows * parts * decode_kept(task));
  carver.take("part_max", &buffers->part_max, rows * parts);
  carver.take("part_sum", &buffers->part_sum, rows * parts);
  carver.take("lists", &buffers->lists, task.sample ? 0 : rows * task.width());
  carver.take("list_count", &buffers->list_count, task.sample ? 0 : rows);
  carver.take("history", &buffers->history, words);
  carver.take("special", &buffers->special, words);
  carver.take("special_logit", &buffers->special_logit, words);
  carver.take("logits", &buffers->logits, task.sample ? std::min(task.draw_rows, rows) * s.vocab : 0);
  carver.take("mass", &buffers->mass, task.sample ? rows * parts : 0);
  return carver.bytes();
}

void decode_begin(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeInputs& inputs, Stream stream) {
  if (inputs.images == 0) return;  // a grid of zero blocks is a launch error
  const DecodeShape& s = model.shape;
  decode_start(s, task, buffers, inputs, stream);
  const auto term_of_features = [&](int64_t layer, const void* w, const float* bias) {
    decode_linear(s.type, inputs.images, 4 * s.hidden[layer], decode_padded(s.features()), buffers.features,
                  w, bias, buffers.term, stream);
  };
  if (const int64_t l = s.static_layer; l >= 0)
    term_of_features(l, model.w_static, l == 0 && s.table ? nullptr : model.layers[l].bias);
  if (model.w_image != nullptr) term_of_features(0, model.w_image, model.layers[0].bias);

  int64_t side = 0;
  const auto layers = [&](const int32_t* tokens, bool image_step) {
    step_layers(model, task, buffers, side, first_rows(task, buffers, inputs.images, tokens), nullptr,
                image_step, stream);
    side = 1 - side;
  };
  if (s.image_first) layers(nullptr, true);
  for (int64_t i = task.feed_bos ? 0 : 1; i <= task.prefix_length; ++i)
    layers(buffers.fed + i * task.images, false);
  step(model, task, buffers, first_rows(task, buffers, inputs.images, nullptr), 0, stream);
}

void decode_segment(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                    Stream stream) {
  if (task.images == 0) return;
  for (int64_t offset = 1; offset <= kDecodeSegment; ++offset)
    step(model, task, buffers, later_rows(task, buffers), offset, stream);
  decode_advance(buffers, stream);
}

}  // namespace lrcn::cuda
