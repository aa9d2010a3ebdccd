// The launchers as C functions, which the tests load with ctypes. They return nullptr, or the failure's text.
// Compiled for the emulator and, with gpu/runtime.cpp in its place, for a GPU.
#include "bindings.h"

#include <exception>
#include <string>

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
SIMT_API const char* lstm_grid(int64_t T, int64_t B, int64_t H, const int64_t* lengths, const uint8_t* cont,
                               int64_t reverse, int64_t dtype, const void* xg, const void* w_hh,
                               const void* c0, const float* z_first, void* h, void* c, void* gates,
                               void* exchange, int64_t groups) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  return guarded([&] { lstm_grid(rows, {xg, w_hh, c0, z_first, h, c, gates}, exchange, groups, nullptr); });
}
SIMT_API const char* lstm_grid_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                        const uint8_t* cont, int64_t reverse, int64_t dtype, const void* d_h,
                                        const void* d_c, const void* d_gates, const void* w_hh,
                                        const void* gates, const void* c, const void* c0, void* d_xg,
                                        void* d_first, void* d_c0, uint32_t* done, int64_t groups) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequenceBackward sequence{d_h, d_c, d_gates, w_hh, gates, c, c0, d_xg, d_first, d_c0};
  return guarded([&] { lstm_grid_backward(rows, sequence, done, groups, nullptr); });
}
SIMT_API const char* lstm_cluster(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                  const uint8_t* cont, int64_t reverse, int64_t dtype, const void* xg,
                                  const void* w_hh, const void* c0, const float* z_first, void* h, void* c,
                                  void* gates, int64_t blocks) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  return guarded([&] { lstm_cluster(rows, {xg, w_hh, c0, z_first, h, c, gates}, blocks, nullptr); });
}
SIMT_API const char* lstm_cluster_backward(int64_t T, int64_t B, int64_t H, const int64_t* lengths,
                                           const uint8_t* cont, int64_t reverse, int64_t dtype,
                                           const void* d_h, const void* d_c, const void* d_gates,
                                           const void* w_hh, const void* gates, const void* c, const void* c0,
                                           void* d_xg, void* d_first, void* d_c0, int64_t blocks) {
  const LstmRows rows{T, B, H, lengths, cont, reverse != 0, static_cast<Dtype>(dtype)};
  const LstmSequenceBackward sequence{d_h, d_c, d_gates, w_hh, gates, c, c0, d_xg, d_first, d_c0};
  return guarded([&] { lstm_cluster_backward(rows, sequence, blocks, nullptr); });
}
// What the plans may ask for, without a GPU.
SIMT_API int64_t lstm_cluster_room(int64_t dtype, int64_t H, int64_t blocks, int64_t backward) {
  return (backward != 0 ? lstm_cluster_backward_bytes : lstm_cluster_bytes)(static_cast<Dtype>(dtype), H,
                                                                            blocks);
}
SIMT_API const char* selftest(int64_t which, const float* in, float* out, void* scratch, int64_t n) {
  return guarded([&] { lrcn::cuda::selftest(int(which), in, out, scratch, int(n), nullptr); });
}
