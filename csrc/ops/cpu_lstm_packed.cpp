// The lstm_packed op: inference of a whole LSTM, all layers and directions, in one call.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
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

// The packed weights of one direction of one layer.
struct Direction {
  const Tensor& ih;
  const Tensor& hh;
  const float* bias;  // [4H] or null
  bool projects;
};

// x [.., inputs] to h, whose rows are `stride` apart; h0 [B, P] or null; h_n [B, P]; c [B, H]: before, then
// after.
void run_direction(const Direction& weights, const LstmShape& s, const float* x, int64_t inputs,
                   const float* h0, float* h, int64_t stride, float* h_n, float* c) {
  const int64_t H = s.hidden, P = s.proj;
  const PackHeader& header_ih =
      check_packed("lstm_packed: packed, of w_ih,", weights.ih, kLinearMagic, 4 * H, inputs, false);
  const PackHeader& header_hh =
      check_packed("lstm_packed: packed, of w_hh,", weights.hh, kLstmMagic, 4 * H, P, weights.projects);
  const LstmInput input{x, {weights_of(weights.ih), header_ih.type, 4 * H, inputs}, weights.bias};
  LstmForward<float> args{};
  args.shape = s;
  args.w_hr = weights.projects ? static_cast<const float*>(weights_of(weights.hh)) : nullptr;
  args.h0 = h0;
  args.h = h, args.h_stride = stride;
  args.c = c, args.last_cell = true;
  lstm_forward(args, weights_of(weights.hh), header_hh.type, torch_pool(), &input);
  for (int64_t b = 0; b < s.batch; ++b, h_n += P) {
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
                                                   const std::vector<Tensor>& bias, const MaybeTensor& h0,
                                                   const MaybeTensor& c0, const MaybeTensor& lengths,
                                                   const MaybeTensor& batch_sizes, const MaybeTensor& cont,
                                                   int64_t hidden_size, int64_t proj_size, bool bidirectional,
                                                   bool batch_first) {
  const bool is_packed = batch_sizes.has_value(), projects = proj_size > 0;
  const char* layout = is_packed ? "[N, I]" : batch_first ? "[B, T, I]" : "[T, B, I]";
  LRCN_CHECK(x.dim() == (is_packed ? 2 : 3), "lstm_packed: x must be ", layout, ", got ", shape_of(x));
  LRCN_CHECK(x.scalar_type() == ScalarType::Float, "lstm_packed: x must be float32, got ",
             torch::headeronly::toString(x.scalar_type()));
  LRCN_CHECK(x.is_contiguous(), "lstm_packed: x must be contiguous");
  LRCN_CHECK(hidden_size > 0, "lstm_packed: hidden_size must be positive, got ", hidden_size);
  LRCN_CHECK(proj_size >= 0, "lstm_packed: proj_size must not be negative, got ", proj_size);
  const size_t D = bidirectional ? 2 : 1, LD = packed.size() / 2;
  LRCN_CHECK(LD > 0 && packed.size() == 2 * LD && LD % D == 0,
             "lstm_packed: packed must be two for each layer and direction, got ", packed.size());
  LRCN_CHECK(bias.empty() || bias.size() == LD,
             "lstm_packed: bias must be one for each layer and direction = ", LD, ", or none, got ",
             bias.size());
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
  for (const Tensor& b : bias) check("lstm_packed: bias", b, "[4H]", {4 * n.H}, "x", x);
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
      run_direction({packed[2 * part], packed[2 * part + 1],
                     bias.empty() ? nullptr : bias[part].const_data_ptr<float>(), projects},
                    shape, in.const_data_ptr<float>(), in.size(-1),
                    h_first == nullptr ? nullptr : h_first + states * n.P,
                    y.mutable_data_ptr<float>() + static_cast<int64_t>(d) * n.P, width, h_last + states * n.P,
                    c_last + states * n.H);
    }
  }
  return {y, h_n, c_n};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("lstm_packed", TORCH_BOX(&lstm_packed_cpu));
}

}  // namespace lrcn::ops
