// Inference with packed weights: the lstm_packed op, all layers and directions of an LSTM in one call;
// lstm_cell_packed, one step of one layer; and the weights of both.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "cpu_lstm.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {
namespace {

// new_empty goes through the dispatcher; three of them cost as much as a step of a small LSTM.
Tensor new_float(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes[d]);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                  strides.data(), aoti_torch_dtype_float32(),
                                                  aoti_torch_device_type_cpu(), /*device_index=*/0, &handle));
  return Tensor(handle);
}

// A packed direction, behind its header: bias [4H] in whole cache lines, w_ih, then w_hh and w_hr.
struct Parts {
  int64_t w_ih, w_hh, bytes;

  Parts(int64_t I, int64_t H, int64_t P, bool projects, WeightType type)
      : w_ih((4 * H * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64),
        w_hh(w_ih + lstm_packed_bytes(H, I, 0, type)),
        bytes(w_hh + lstm_sequence_packed_bytes(H, P, projects, type)) {}
};

Tensor lstm_layer_pack_cpu(const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& w_hr,
                           const MaybeTensor& bias, ScalarType dtype) {
  const bool projects = w_hr.has_value();
  check_recurrent_weights("lstm_layer_pack", w_hh, w_hr);
  LRCN_CHECK(w_ih.dim() == 2, "lstm_layer_pack: w_ih must be [4H, I], got ", shape_of(w_ih));
  const int64_t I = w_ih.size(1), H = w_hh.size(0) / 4, P = w_hh.size(1);
  check("lstm_layer_pack: w_ih", w_ih, "[4H, I]", {4 * H, I}, "w_hh", w_hh);
  if (bias.has_value()) check("lstm_layer_pack: bias", *bias, "[4H]", {4 * H}, "w_hh", w_hh);
  PackHeader header{};
  std::memcpy(header.magic, kLayerMagic, sizeof kLayerMagic);
  header.outputs = 4 * H, header.inputs = I, header.projected = projects ? P : 0;
  header.type = weight_type("lstm_layer_pack", dtype);
  const Parts parts(I, H, P, projects, header.type);
  Tensor packed = new_packed(w_hh, header, parts.bytes);
  char* const weights = static_cast<char*>(weights_of(packed));
  std::memset(weights, 0, parts.w_ih);
  if (bias.has_value()) std::memcpy(weights, bias->const_data_ptr<float>(), 4 * H * sizeof(float));
  lstm_pack(w_ih.const_data_ptr<float>(), I, I, nullptr, 0, H, header.type, weights + parts.w_ih,
            torch_pool());
  lstm_sequence_pack(w_hh.const_data_ptr<float>(), data_or_null<float>(w_hr), H, P, header.type,
                     weights + parts.w_hh, torch_pool());
  return packed;
}

// One direction of one layer: x [.., inputs] to h, whose rows are `stride` apart; h0 [B, P] or null; h_n [B,
// P] or null: not wanted; c [B, H]: before, then after.
void run_direction(const char* what, const Tensor& packed, bool projects, const LstmShape& s, const float* x,
                   int64_t inputs, const float* h0, float* h, int64_t stride, float* h_n, float* c) {
  const int64_t H = s.hidden, P = s.proj;
  const PackHeader& header = check_packed(what, packed, kLayerMagic, 4 * H, inputs, projects ? P : 0);
  const Parts parts(inputs, H, P, projects, header.type);
  const char* const weights = static_cast<const char*>(weights_of(packed));
  const LstmInput input{x, inputs, weights + parts.w_ih, header.type,
                        reinterpret_cast<const float*>(weights)};
  LstmForward<float> args{};
  args.shape = s;
  args.w_hr = projects ? reinterpret_cast<const float*>(weights + parts.w_hh) : nullptr;
  args.h0 = h0;
  args.h = h, args.h_stride = stride;
  args.c = c, args.last_cell = true;
  lstm_forward(args, weights + parts.w_hh, header.type, torch_pool(), &input);
  for (int64_t b = 0; b < s.batch && h_n != nullptr; ++b, h_n += P) {
    const int64_t length = s.length(b);
    if (length > 0)
      std::copy_n(h + s.row(s.reverse ? 0 : length - 1, b) * stride, P, h_n);
    else if (h0 != nullptr)
      std::copy_n(h0 + b * P, P, h_n);
    else
      std::fill_n(h_n, P, 0.0f);
  }
}

std::tuple<Tensor, Tensor, Tensor> lstm_packed_cpu(const Tensor& x, const std::vector<Tensor>& packed,
                                                   const MaybeTensor& h0, const MaybeTensor& c0,
                                                   const MaybeTensor& lengths, const MaybeTensor& batch_sizes,
                                                   const MaybeTensor& cont, int64_t hidden_size,
                                                   int64_t proj_size, bool bidirectional, bool batch_first) {
  const bool is_packed = batch_sizes.has_value(), projects = proj_size > 0;
  const char* layout = is_packed ? "[N, I]" : batch_first ? "[B, T, I]" : "[T, B, I]";
  LRCN_CHECK(x.dim() == (is_packed ? 2 : 3), "lstm_packed: x must be ", layout, ", got ", shape_of(x));
  check_float("lstm_packed: x", x);
  LRCN_CHECK(x.is_contiguous(), "lstm_packed: x must be contiguous");
  LRCN_CHECK(hidden_size > 0, "lstm_packed: hidden_size must be positive, got ", hidden_size);
  LRCN_CHECK(proj_size >= 0, "lstm_packed: proj_size must not be negative, got ", proj_size);
  const size_t D = bidirectional ? 2 : 1, LD = packed.size();
  LRCN_CHECK(LD > 0 && LD % D == 0, "lstm_packed: packed must be one for each layer and direction, got ", LD);
  LRCN_CHECK(h0.has_value() == c0.has_value(), "lstm_packed: h0 and c0 must both be given, or both be None");
  LRCN_CHECK(!is_packed || c0.has_value(), "lstm_packed: h0 and c0 must be given with batch_sizes, got None");
  LRCN_CHECK(!is_packed || c0->dim() == 3, "lstm_packed: c0 must be [L*D, B, H], got ", shape_of(*c0));
  LRCN_CHECK(!is_packed || (!lengths.has_value() && !cont.has_value()),
             "lstm_packed: lengths and cont must be None with batch_sizes, got a tensor");

  LstmSizes n{};
  n.T = is_packed ? batch_sizes->size(0) : x.size(batch_first ? 1 : 0);
  n.B = is_packed ? c0->size(1) : x.size(batch_first ? 0 : 1);
  n.H = hidden_size, n.P = projects ? proj_size : hidden_size, n.projects = projects;
  const auto parts = static_cast<int64_t>(LD), width = static_cast<int64_t>(D) * n.P;
  if (c0.has_value()) {
    check("lstm_packed: h0", *h0, projects ? "[L*D, B, P]" : "[L*D, B, H]", {parts, n.B, n.P}, "x", x);
    check("lstm_packed: c0", *c0, "[L*D, B, H]", {parts, n.B, n.H}, "x", x);
  }
  check_masks("lstm_packed", "x", x, n, lengths, cont);
  LstmShape shape = make_shape("lstm_packed", n, lengths, cont, false);
  shape.batch_first = batch_first && !is_packed;
  PackedRows rows;
  if (is_packed) {
    rows = read_batch_sizes("lstm_packed", *batch_sizes, n.B, x.size(0));
    shape.lengths = rows.lengths.data(), shape.offsets = rows.offsets.data();
  }

  const Tensor h_n = new_float({parts, n.B, n.P}), c_n = new_float({parts, n.B, n.H});
  float *h_last = h_n.mutable_data_ptr<float>(), *c_last = c_n.mutable_data_ptr<float>();
  if (c0.has_value())
    std::copy_n(c0->const_data_ptr<float>(), c0->numel(), c_last);
  else
    std::fill_n(c_last, c_n.numel(), 0.0f);
  const float* h_first = data_or_null<float>(h0);
  Tensor y = x;
  for (size_t i = 0; i < LD; i += D) {
    const Tensor in = y;
    y = is_packed ? new_float({x.size(0), width}) : new_float({x.size(0), x.size(1), width});
    for (size_t d = 0; d < D; ++d) {
      const size_t part = i + d;
      const int64_t states = static_cast<int64_t>(part) * n.B;
      shape.reverse = d == 1;
      run_direction("lstm_packed: packed", packed[part], projects, shape, in.const_data_ptr<float>(),
                    in.size(-1), h_first == nullptr ? nullptr : h_first + states * n.P,
                    y.mutable_data_ptr<float>() + static_cast<int64_t>(d) * n.P, width, h_last + states * n.P,
                    c_last + states * n.H);
    }
  }
  return {y, h_n, c_n};
}

std::tuple<Tensor, Tensor> lstm_cell_packed_cpu(const Tensor& x, const Tensor& packed, const Tensor& h0,
                                                const Tensor& c0) {
  LRCN_CHECK(x.dim() == 2, "lstm_cell_packed: x must be [B, I], got ", shape_of(x));
  check_float("lstm_cell_packed: x", x);
  LRCN_CHECK(x.is_contiguous(), "lstm_cell_packed: x must be contiguous");
  LRCN_CHECK(c0.dim() == 2, "lstm_cell_packed: c0 must be [B, H], got ", shape_of(c0));
  const int64_t B = x.size(0), H = c0.size(1);
  check("lstm_cell_packed: h0", h0, "[B, H]", {B, H}, "x", x);
  check("lstm_cell_packed: c0", c0, "[B, H]", {B, H}, "x", x);
  Tensor h = new_float({B, H}), c = new_float({B, H});
  float* const cells = c.mutable_data_ptr<float>();
  std::copy_n(c0.const_data_ptr<float>(), B * H, cells);
  run_direction("lstm_cell_packed: packed", packed, /*projects=*/false, LstmShape{1, B, H, H},
                x.const_data_ptr<float>(), x.size(1), h0.const_data_ptr<float>(), h.mutable_data_ptr<float>(),
                H, /*h_n=*/nullptr, cells);
  return {h, c};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("lstm_layer_pack", TORCH_BOX(&lstm_layer_pack_cpu));
  m.impl("lstm_packed", TORCH_BOX(&lstm_packed_cpu));
  m.impl("lstm_cell_packed", TORCH_BOX(&lstm_cell_packed_cpu));
}

}  // namespace lrcn::ops
