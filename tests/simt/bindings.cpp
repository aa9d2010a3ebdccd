// The launchers as C functions, which the tests load with ctypes. They return nullptr, or the failure's text.
// Compiled for the emulator and, with gpu/runtime.cpp in its place, for a GPU.
#include "bindings.h"

#include <cstring>
#include <exception>
#include <string>

#include "../../csrc/cuda/decode.h"
#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/lstm.h"
#include "selftest.h"

namespace {

template <typename F>
const char* guarded(F&& f) {
  static std::string message;
  try {
    f();
    finish();
    return nullptr;
  } catch (const std::exception& e) {
    message = e.what();
    return message.c_str();
  }
}

}  // namespace

using namespace lrcn::cuda;

SIMT_API const char* lstm_cell(int64_t T, int64_t B, int64_t H, const int64_t* lengths, const uint8_t* cont,
                               int64_t reverse, int64_t dtype, const void* xg, const void* c0,
                               const void* z_first, const void* recurrent, void* c_state, void* h, void* c,
                               void* gates, int64_t t) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  return guarded([&] { lstm_cell(rows, {xg, c0, z_first, recurrent, c_state, h, c, gates}, t, nullptr); });
}
SIMT_API const char* lstm_cell_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                        const uint8_t* cont, int64_t reverse, int64_t dtype, const void* d_h,
                                        const void* d_c, const void* d_gates, const void* gates,
                                        const void* c, const void* c0, const void* recurrent, void* carry,
                                        void* d_xg, void* d_first, void* d_c0, int64_t t) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmCellBackward cell{d_h, d_c, d_gates, gates, c, c0, recurrent, carry, d_xg, d_first, d_c0};
  return guarded([&] { lstm_cell_backward(rows, cell, t, nullptr); });
}
SIMT_API const char* lstm_projection_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                              const uint8_t* cont, int64_t reverse, int64_t dtype,
                                              const void* d_h, const void* recurrent, void* d_p, int64_t P,
                                              int64_t t) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  return guarded([&] { lstm_projection_backward(rows, d_h, recurrent, d_p, P, t, nullptr); });
}
// One direction, or with xg2 both.
SIMT_API const char* lstm_grid(int64_t T, int64_t B, int64_t H, const int64_t* lengths, const uint8_t* cont,
                               int64_t reverse, int64_t dtype, const void* xg, const void* w_hh,
                               const void* c0, const float* z_first, void* h, void* c, void* gates,
                               const void* xg2, const void* w_hh2, const void* c02, const float* z_first2,
                               void* h2, void* c2, void* gates2, void* exchange, int64_t groups) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequences sequences{
      xg2 == nullptr ? 1 : 2,
      {{xg, w_hh, c0, z_first, h, c, gates}, {xg2, w_hh2, c02, z_first2, h2, c2, gates2}}};
  return guarded([&] { lstm_grid(rows, sequences, exchange, groups, nullptr); });
}
SIMT_API const char* lstm_grid_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                        const uint8_t* cont, int64_t reverse, int64_t dtype, const void* d_h,
                                        const void* d_c, const void* d_gates, const void* w_hh,
                                        const void* gates, const void* c, const void* c0, void* d_xg,
                                        void* d_first, void* d_c0, const void* d_h2, const void* d_c2,
                                        const void* d_gates2, const void* w_hh2, const void* gates2,
                                        const void* c2, const void* c02, void* d_xg2, void* d_first2,
                                        void* d_c02, uint32_t* done, int64_t groups) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequencesBackward sequences{
      d_h2 == nullptr ? 1 : 2,
      {{d_h, d_c, d_gates, w_hh, gates, c, c0, d_xg, d_first, d_c0},
       {d_h2, d_c2, d_gates2, w_hh2, gates2, c2, c02, d_xg2, d_first2, d_c02}}};
  return guarded([&] { lstm_grid_backward(rows, sequences, done, groups, nullptr); });
}
SIMT_API const char* lstm_cluster(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                  const uint8_t* cont, int64_t reverse, int64_t dtype, const void* xg,
                                  const void* w_hh, const void* c0, const float* z_first, void* h, void* c,
                                  void* gates, const void* xg2, const void* w_hh2, const void* c02,
                                  const float* z_first2, void* h2, void* c2, void* gates2, int64_t blocks) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequences sequences{
      xg2 == nullptr ? 1 : 2,
      {{xg, w_hh, c0, z_first, h, c, gates}, {xg2, w_hh2, c02, z_first2, h2, c2, gates2}}};
  return guarded([&] { lstm_cluster(rows, sequences, blocks, nullptr); });
}
SIMT_API const char* lstm_cluster_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                           const uint8_t* cont, int64_t reverse, int64_t dtype,
                                           const void* d_h, const void* d_c, const void* d_gates,
                                           const void* w_hh, const void* gates, const void* c, const void* c0,
                                           void* d_xg, void* d_first, void* d_c0, const void* d_h2,
                                           const void* d_c2, const void* d_gates2, const void* w_hh2,
                                           const void* gates2, const void* c2, const void* c02, void* d_xg2,
                                           void* d_first2, void* d_c02, int64_t blocks) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequencesBackward sequences{
      d_h2 == nullptr ? 1 : 2,
      {{d_h, d_c, d_gates, w_hh, gates, c, c0, d_xg, d_first, d_c0},
       {d_h2, d_c2, d_gates2, w_hh2, gates2, c2, c02, d_xg2, d_first2, d_c02}}};
  return guarded([&] { lstm_cluster_backward(rows, sequences, blocks, nullptr); });
}
// What the plans may ask for, without a GPU.
SIMT_API int64_t lstm_cluster_room(int64_t dtype, int64_t H, int64_t blocks, int64_t backward) {
  return (backward != 0 ? lstm_cluster_backward_bytes : lstm_cluster_bytes)(static_cast<Dtype>(dtype), H,
                                                                            blocks);
}

// Decoding. `sizes` is memory of the host: the members of DecodeShape (three hidden sizes), then those of
// DecodeTask up to longer_is_kinder and its numbers after `uniforms`, floats as their bits.
namespace {

constexpr int64_t kGap = 64;

DecodeShape decode_shape(const int64_t*& sizes) {
  DecodeShape s{};
  s.vocab = *sizes++, s.embed = *sizes++, s.layers = *sizes++;
  for (int l = 0; l < 3; ++l) s.hidden[l] = *sizes++;
  s.static_layer = *sizes++, s.static_size = *sizes++, s.image_first = *sizes++ != 0;
  s.table = *sizes++ != 0, s.type = static_cast<Dtype>(*sizes++);
  return s;
}
DecodeTask decode_task(const int64_t* sizes) {
  DecodeTask task{};
  for (int64_t* member : {&task.images, &task.beams, &task.returned, &task.prefix_length, &task.max_new,
                          &task.min_new, &task.no_repeat_ngram, &task.bos, &task.eos, &task.pad})
    *member = *sizes++;
  task.images = decode_room(task.images, task.beams);
  for (bool* member : {&task.feed_bos, &task.in_slot, &task.greedy, &task.sample}) *member = *sizes++ != 0;
  const auto number = [&](float* member) {
    const auto bits = static_cast<uint32_t>(*sizes++);
    std::memcpy(member, &bits, sizeof bits);
  };
  task.stop = static_cast<DecodeStop>(*sizes++);
  number(&task.repetition_penalty);
  task.longer_is_kinder = *sizes++ != 0;
  number(&task.logit_scale);
  task.top_k = *sizes++;
  std::memcpy(&task.top_p, sizes++, sizeof task.top_p);
  task.draw_rows = *sizes++;
  return task;
}

}  // namespace

SIMT_API int64_t decode_bytes(const int64_t* sizes, int64_t which) {
  const DecodeShape shape = decode_shape(sizes);
  if (which == 0) return decode_packed_bytes(shape, kGap);
  if (which == 1) return decode_pack_bytes(shape);
  if (which == 3) return decode_packed_bytes(shape);
  DecodeBuffers buffers;
  return decode_buffers(shape, decode_task(sizes), nullptr, &buffers, kGap);
}
SIMT_API const char* decode_pack(const int64_t* sizes, const float* embedding, const float* projection,
                                 const float* projection_bias, const float* w_ih0, const float* w_ih1,
                                 const float* w_ih2, const float* w_hh0, const float* w_hh1,
                                 const float* w_hh2, const float* bias0, const float* bias1,
                                 const float* bias2, void* packed, void* scratch) {
  const DecodeShape shape = decode_shape(sizes);
  forget_buffer(packed);
  const DecodeModel model = decode_model(shape, packed, kGap, add_buffer);
  const DecodeWeights weights{embedding,  {w_ih0, w_ih1, w_ih2}, {w_hh0, w_hh1, w_hh2}, {bias0, bias1, bias2},
                              projection, projection_bias};
  return guarded([&] { lrcn::cuda::decode_pack(model, weights, scratch, nullptr); });
}
// Searches of `images` images, in the order of the rows, one after the other: with one graph, in the same
// memory. Each is `segments` segments long. The progress is the first thing in the workspace.
SIMT_API const char* decode(const int64_t* sizes, void* packed, const float* features, const int64_t* prefix,
                            const float* norms, const uint32_t* banned, const double* uniforms,
                            void* workspace, int64_t* sequences, int64_t* lengths, float* scores,
                            float* logprobs, int64_t segments, int64_t images, int64_t more_images) {
  const DecodeShape shape = decode_shape(sizes);
  const DecodeTask task = decode_task(sizes);
  forget_buffer(packed), forget_buffer(workspace);
  const DecodeModel model = decode_model(shape, packed, kGap, add_buffer);
  DecodeBuffers buffers;
  const int64_t bytes = decode_buffers(shape, task, workspace, &buffers, kGap, add_buffer);
  const int64_t draws = task.beams * task.max_new, n = task.returned, longest = task.longest();
  return guarded([&] {
    const Graph segment([&](Stream stream) { decode_segment(model, task, buffers, stream); });
    int64_t first = 0;
    for (const int64_t count : {images, more_images}) {
      if (first > 0 && count == 0) break;
      clear(workspace, bytes);
      copy(buffers.norms, norms, (longest + 1) * int64_t{sizeof(float)});
      copy(buffers.banned, banned, 2 * ((shape.vocab + 31) / 32) * int64_t{sizeof(uint32_t)});
      if (task.sample)
        copy(buffers.uniforms, uniforms + first * draws, count * draws * int64_t{sizeof(double)});
      const DecodeInputs inputs{count, features + first * shape.features(),
                                prefix + first * task.prefix_length};
      decode_begin(model, task, buffers, inputs, nullptr);
      for (int64_t i = 0; i < segments; ++i) segment.launch(nullptr);
      decode_end(task, buffers, count,
                 {sequences + first * n * longest, lengths + first * n, scores + first * n,
                  logprobs + first * n * longest},
                 nullptr);
      first += count;
    }
  });
}
SIMT_API const char* selftest(int64_t which, const float* in, float* out, void* scratch, int64_t n) {
  return guarded([&] { lrcn::cuda::selftest(int(which), in, out, scratch, int(n), nullptr); });
}
