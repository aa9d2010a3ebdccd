// Launchers of caption decoding: the whole search of a batch of images on the GPU. Plain pointers, sizes and
// a stream, like lstm.h. Nothing here allocates, copies from or waits for the GPU: a whole search can be
// enqueued before its first step has run.
//
// B images, K beams, V vocabulary, E embedding, H_l hidden size of layer l, F image features, P prefix words.
//
// A step is, in this order:
//
//   history   rules that read the history: the words of each row that have a rule of their own
//   scores    vocabulary projection, 64 words a block: log-softmax in parts, best words of each part
//   merge     per row: normaliser, and its best continuations in the search's order
//   beam      per image: the search itself (csrc/core/beam.h has the rules)
//   cell      per layer: one LSTM step of the new rows, which read the state of their parents where it lies
//
// When sampling, K is the number of captions drawn for an image, and in place of merge and beam there is
//
//   draw      per caption: its next word
//
// which needs the logits of a row as they are; those of `draw_rows` rows exist at a time.
//
// Segments. Step 0, of one row per image, is part of decode_begin. The others come in segments of
// kDecodeSegment that are launched with the same arguments each time: the step's number is an offset of the
// launch plus a base on the GPU, which the last kernel of a segment moves on. So a Graph (launch.h) of one
// segment serves a whole search, and every later one of the same DecodeTask in the same memory: nothing that
// a segment reads lies elsewhere, but for the model. What differs between these searches is in DecodeInputs,
// and in what DecodeBuffers says the caller writes. B counts the images there is room for; those that a
// search does not use are done from the beginning.
//
// Rows. Row `image * K + slot` belongs to one hypothesis; its token is -1 where there is none, or none that
// goes on, and every kernel passes over it. Before the first word an image has one row, number `image`.
// Once `finished` has counted all searches (images, or captions that are drawn), kernels return at once:
// steps enqueued too many change nothing. The last one, max_new - 1, ends every search, so there are none
// beyond.
//
// What a row computes depends on that row only, in a fixed order, so an image's result does not depend on its
// batch, bit for bit. Arithmetic is float32; the weights of the layers and of the projection may be narrower.
#pragma once

#include "lstm.h"

namespace lrcn::cuda {

constexpr int kDecodeLayers = 16;
constexpr int kDecodeRows = 8;   // rows that one warp multiplies with the weights it has loaded
constexpr int kDecodePart = 64;  // words of one block of `scores`
// Steps of a segment. The host hears that all searches are done one or two segments late.
constexpr int kDecodeSegment = 4;
static_assert(kDecodeSegment % 2 == 0, "a segment ends on the side of the double buffers where it began");

// Rows of weights and activations are padded with zeros to this many numbers.
constexpr int64_t kDecodePad = 4;
constexpr int64_t decode_padded(int64_t n) {
  return (n + kDecodePad - 1) / kDecodePad * kDecodePad;
}

struct DecodeShape {
  int64_t vocab, embed, layers;
  int64_t hidden[kDecodeLayers];
  int64_t static_layer;  // whose input is cat(x, features) at every step; -1: none
  int64_t static_size;   // F of it
  bool image_first;      // features [E] are the input before the first word
  bool table;            // embedding and layer 0's input weight folded into [V, 4H_0]
  Dtype type;            // of the weights: float32, bfloat16 or float16

  int64_t input(int64_t layer) const { return layer == 0 ? embed : hidden[layer - 1]; }
  int64_t features() const { return static_layer >= 0 ? static_size : image_first ? embed : 0; }
};

// Weights in torch's layout, float32. w_ih of the static layer is [4H, input + F].
struct DecodeWeights {
  const float* embedding;            // [V, E]
  const float* w_ih[kDecodeLayers];  // [4H, input]
  const float* w_hh[kDecodeLayers];  // [4H, H]
  const float* bias[kDecodeLayers];  // [4H]
  const float* projection;           // [V, H_top]
  const float* projection_bias;      // [V], or nullptr
};

// A packed decoder: where its parts lie. Rows are padded; `T` is the weights' type.
struct DecodeModel {
  DecodeShape shape;
  struct Layer {
    void* w_x;    // [4H, input] T; nullptr where the table has taken its place
    void* w_hh;   // [4H, H] T
    float* bias;  // [4H]
  } layers[kDecodeLayers];
  float* words;            // [V, E], or the table [V, 4H_0]
  void* w_static;          // [4H, F] T, or nullptr
  void* w_image;           // [4H_0, E] T for the image step of a decoder with a table, or nullptr
  void* projection;        // [V, H_top] T
  float* projection_bias;  // [V]
};
// Called with every piece that is carved out of a block of memory.
using DecodeVisit = void (*)(const char* name, void* piece, int64_t bytes);
// The parts of `packed`, which has decode_packed_bytes(shape) bytes and is 16-byte aligned. `gap` bytes at
// least lie between two parts: the emulator of tests/simt then sees who runs over the end of one.
DecodeModel decode_model(const DecodeShape& shape, void* packed, int64_t gap = 0,
                         DecodeVisit visit = nullptr);
int64_t decode_packed_bytes(const DecodeShape& shape, int64_t gap = 0);  // _packed_sizes.py knows it
// Temporary memory of decode_pack, 16-byte aligned; may be 0.
int64_t decode_pack_bytes(const DecodeShape& shape);
void decode_pack(const DecodeModel& model, const DecodeWeights& weights, void* scratch, Stream stream);

enum class DecodeStop { kHeuristic, kWhenFull, kNever };  // early_stopping False, True, "never"

// All that the kernels of a segment depend on, beside the model and the memory.
struct DecodeTask {
  int64_t images;  // there is room for: decode_room
  int64_t beams, returned, prefix_length, max_new, min_new, no_repeat_ngram;
  int64_t bos, eos, pad;
  bool feed_bos;
  bool in_slot;  // finished hypotheses keep their place; otherwise they go to a pool
  bool greedy;   // with in_slot and one beam: the best word by logit after the rules
  bool sample;   // with in_slot: every beam is a caption drawn by itself, and the best of them come first
  DecodeStop stop;
  float repetition_penalty;
  bool longer_is_kinder;  // length_penalty > 0

  // Of sampling, with the meaning of csrc/core/sampling.h.
  float logit_scale;
  int64_t top_k;
  double top_p;
  int64_t draw_rows;  // a multiple of kDecodeRows

  // What DecodeProgress::finished counts to.
  int64_t searches() const { return sample ? images * beams : images; }
  int64_t longest() const { return prefix_length + max_new; }
  // Candidates that one step of one image looks at; the most that one row contributes.
  int64_t width() const { return in_slot ? beams : 2 * beams; }
  bool reads_history() const { return no_repeat_ngram > 0 || repetition_penalty != 1.0f; }
};

// A grid's y holds no more.
constexpr int64_t kDecodeMostRows = int64_t{65535} * kDecodeRows;
// Images that memory is made for when there are `images` with `beams` rows each, at most kDecodeMostRows in
// all: the next power of two, so that there are few sizes.
constexpr int64_t decode_room(int64_t images, int64_t beams) {
  int64_t room = images < 1 ? 0 : 1;
  while (room < images) room *= 2;
  return room * beams <= kDecodeMostRows ? room : kDecodeMostRows / beams;
}

// One search.
struct DecodeInputs {
  int64_t images;         // at most those of the task
  const float* features;  // [images, F], or nullptr
  const int64_t* prefix;  // [images, P], or nullptr
};

// Counters that begin at 0. The host reads how many searches are done, and what went wrong.
struct DecodeProgress {
  uint32_t finished, not_finite, no_word, bad_feature, bad_prefix;
  uint32_t base;  // steps of the segments that are over
};

struct DecodeImage {
  int32_t done, side, slots, pooled;  // side: which half of DecodeBuffers::slots is the latest
};
struct DecodeSlot {  // a hypothesis in the beam; of a caption that is drawn only node and sum
  int32_t node, token, parent, ended;
  float sum;
};
struct DecodeNode {  // one word of a hypothesis; parent -1: its first
  int32_t parent, token;
  float logprob;
};
struct DecodePooled {
  int32_t node;
  float score;
};
struct DecodeCandidate {
  float sum, logprob;
  int32_t token;
};

struct DecodeBuffers {
  // Written by the caller before a search.
  float* norms;      // [P + max_new + 1]: what a sum of so many words is divided by
  uint32_t* banned;  // [2, ceil(V / 32)] one bit a word: before min_new words, and after
  double* uniforms;  // [B, K, max_new] when sampling

  DecodeProgress* progress;
  int32_t* fed;            // [1 + P, B] BOS and the prefix
  float* features;         // [B, F] padded
  float* term;             // [B, 4H] what the features add to the gates, or nullptr
  float* h[2];             // per layer [rows, H] padded, one layer after the other
  float* c[2];             // the same
  DecodeImage* images;     // [B]
  DecodeSlot* slots;       // [2, B, K]; when sampling the first half alone
  DecodeNode* nodes;       // [B, max_new * width]
  DecodePooled* pool;      // [B, K] best first
  int32_t* tokens;         // [rows]
  int32_t* parents;        // [rows] row of the step before
  uint64_t* part_best;     // [rows, parts, kept]
  float* part_max;         // [rows, parts]
  float* part_sum;         // [rows, parts]
  DecodeCandidate* lists;  // [rows, width] best first
  int32_t* list_count;     // [rows]
  int32_t* history;        // [rows, P + max_new], or nullptr
  int32_t* special;        // [rows, P + max_new]
  float* special_logit;    // [rows, P + max_new]
  float* logits;           // [draw_rows, V] after the token rules, when sampling
  double* mass;            // [rows, parts] what may be drawn of each part, when sampling
};
// Carves the buffers out of 16-byte aligned memory, which is zeros before each search; `gap` and `visit` as
// above. Returns the bytes in all; `workspace` may be nullptr for those alone.
int64_t decode_buffers(const DecodeShape& shape, const DecodeTask& task, void* workspace,
                       DecodeBuffers* buffers, int64_t gap = 0, DecodeVisit visit = nullptr);

// n sequences per image of the search, best first. Missing hypotheses have length 0 and score -inf.
struct DecodeResult {
  int64_t* sequences;  // [B, n, P + max_new], then pad
  int64_t* lengths;    // [B, n]
  float* scores;       // [B, n]
  float* logprobs;     // [B, n, P + max_new], 0 for the prefix and after the end
};

// A search: begin, decode_segments(task) times a segment, end. Segments after the last image is done may be
// left out.
void decode_begin(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeInputs& inputs, Stream stream);
void decode_segment(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                    Stream stream);
void decode_end(const DecodeTask& task, const DecodeBuffers& buffers, int64_t images,
                const DecodeResult& result, Stream stream);
inline int64_t decode_segments(const DecodeTask& task) {
  return (task.max_new - 1 + kDecodeSegment - 1) / kDecodeSegment;
}

// --- the kernels of a step, for decode_search.cu ---------------------------------------------------

// The number of a step, t: the base of its segment plus `offset`, which is 0 for step 0 and else 1 ..
// kDecodeSegment. t and offset are odd and even together.
struct DecodeStep {
  const DecodeProgress* progress;
  int64_t offset;
};

// Rows of one launch. A row is live unless its token is negative.
struct DecodeRows {
  int64_t count, per_image;
  const int32_t* tokens;  // nullptr: all are live
  const DecodeProgress* progress;
  uint32_t searches;
};

// One LSTM step of one layer. Row r continues the state of row parents[r] of the step before.
struct DecodeCell {
  int64_t H, stride;  // stride: H padded
  int64_t inputs;     // numbers of x, padded; 0 without x
  const void* w_x;    // [4H, inputs]
  const void* w_hh;   // [4H, H] padded
  const float* x;     // [*, inputs]: row tokens[r] if x_is_word, else row r
  bool x_is_word;
  const float* table;  // [V, 4H] added to the gates, by word; or nullptr
  const float* term;   // [term_rows, 4H] added too: bias (1 row), of the image (more); or nullptr
  int64_t term_rows;
  const int32_t* parents;  // nullptr: every row its own
  const float* h_prev;     // [*, H] padded
  const float* c_prev;
  float* h;
  float* c;
};
void decode_cell(Dtype type, const DecodeRows& rows, const DecodeCell& cell, Stream stream);

// out [rows, N] = x [rows, K] w^T + bias; N a multiple of 4, K padded in x and w. bias may be
// nullptr.
void decode_linear(Dtype type, int64_t rows, int64_t N, int64_t K, const float* x, const void* w,
                   const float* bias, float* out, Stream stream);

// [rows, columns] of a matrix with row stride `ld` as type T, padded. `from` may be nullptr: zeros.
void decode_pad(Dtype type, const float* from, int64_t ld, int64_t rows, int64_t columns, void* to,
                Stream stream);

constexpr int64_t decode_parts(int64_t vocab) {
  return (vocab + kDecodePart - 1) / kDecodePart;
}
// Of one part's best words, how many can matter.
inline int64_t decode_kept(const DecodeTask& task) {
  return task.sample ? 0 : task.width() < kDecodePart ? task.width() : kDecodePart;
}
// `rows` are those from first_row on; h is [*, H_top] padded of all.
void decode_scores(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                   const DecodeRows& rows, int64_t first_row, const float* h, DecodeStep step, Stream stream);
void decode_merge(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeRows& rows, DecodeStep step, Stream stream);
// After decode_scores of the same `rows` rows.
void decode_draw(const DecodeModel& model, const DecodeTask& task, const DecodeBuffers& buffers,
                 int64_t first_row, int64_t rows, DecodeStep step, Stream stream);
void decode_history(const DecodeTask& task, const DecodeBuffers& buffers, const DecodeRows& rows,
                    DecodeStep step, Stream stream);
void decode_beam(const DecodeTask& task, const DecodeBuffers& buffers, DecodeStep step, Stream stream);
void decode_start(const DecodeShape& shape, const DecodeTask& task, const DecodeBuffers& buffers,
                  const DecodeInputs& inputs, Stream stream);
void decode_advance(const DecodeBuffers& buffers, Stream stream);  // to the next segment

}  // namespace lrcn::cuda
