// CPU implementations of the lstm ops: check, allocate, call core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "cpu_lstm.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {

LstmShape make_shape(const char* op, const LstmSizes& n, const MaybeTensor& lengths, const MaybeTensor& cont,
                     bool reverse) {
  LstmShape shape{n.T, n.B, n.H, n.P};
  shape.reverse = reverse;
  shape.lengths = data_or_null<int64_t>(lengths);
  // bool is one byte, 0 or 1
  shape.cont = cont.has_value() ? static_cast<const uint8_t*>(cont->const_data_ptr()) : nullptr;
  for (int64_t b = 0; lengths.has_value() && b < n.B; ++b)
    LRCN_CHECK(shape.lengths[b] >= 0 && shape.lengths[b] <= n.T, op, ": lengths must be within 0..T = 0..",
               n.T, ", got ", shape.lengths[b], " at row ", b);
  return shape;
}

PackedRows read_batch_sizes(const std::string& op, const Tensor& batch_sizes, int64_t batch, int64_t rows) {
  const std::string name = op + ": batch_sizes";
  LRCN_CHECK(batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.dim() == 1 &&
                 batch_sizes.is_cpu() && batch_sizes.is_contiguous(),
             name, " must be int64 [T] on the CPU, got ",
             torch::headeronly::toString(batch_sizes.scalar_type()), " ", shape_of(batch_sizes));
  const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
  PackedRows packed;
  packed.lengths.assign(batch, 0);
  for (int64_t t = 0, most = batch; t < batch_sizes.numel(); most = sizes[t++]) {
    LRCN_CHECK(sizes[t] >= 0 && sizes[t] <= most, name, " must fall from B = ", batch, ", got ", sizes[t],
               " at step ", t);
    packed.offsets.push_back(packed.count);
    packed.count += sizes[t];
    for (int64_t b = 0; b < sizes[t]; ++b) ++packed.lengths[b];
  }
  LRCN_CHECK(packed.count == rows, name, " must sum to the rows of x = ", rows, ", got ", packed.count);
  return packed;
}

void check_recurrent_weights(const std::string& op, const Tensor& w_hh, const MaybeTensor& w_hr) {
  const std::string hh = op + ": w_hh", hr = op + ": w_hr";
  const bool projects = w_hr.has_value();
  LRCN_CHECK(w_hh.dim() == 2 && w_hh.size(0) % 4 == 0, hh, " must be [4H, P], got ", shape_of(w_hh));
  check_float(hh.c_str(), w_hh);
  const int64_t H = w_hh.size(0) / 4, P = w_hh.size(1);
  check(hh.c_str(), w_hh, projects ? "[4H, P]" : "[4H, H]", {4 * H, projects ? P : H}, "w_hh", w_hh);
  if (projects) check(hr.c_str(), *w_hr, "[P, H]", {P, H}, "w_hh", w_hh);
}

Tensor lstm_pack_cpu(const Tensor& w_hh, const MaybeTensor& w_hr, ScalarType dtype) {
  check_recurrent_weights("lstm_pack", w_hh, w_hr);
  const int64_t H = w_hh.size(0) / 4, P = w_hh.size(1);
  PackHeader header{};
  std::memcpy(header.magic, kLstmMagic, sizeof kLstmMagic);
  header.outputs = 4 * H, header.inputs = P, header.projected = w_hr.has_value() ? P : 0;
  header.type = weight_type("lstm_pack", dtype);
  Tensor packed = new_packed(w_hh, header, lstm_sequence_packed_bytes(H, P, w_hr.has_value(), header.type));
  lstm_sequence_pack(w_hh.const_data_ptr<float>(), data_or_null<float>(w_hr), H, P, header.type,
                     weights_of(packed), torch_pool());
  return packed;
}

namespace {

template <typename T>
LstmForward<T> forward_args(const LstmShape& shape, const Tensor& xg, const Tensor& w_hh,
                            const MaybeTensor& w_hr, const Tensor& h0, const Tensor& c0, Tensor& h, Tensor& c,
                            Tensor& gates, bool save_gates) {
  return {shape,
          xg.const_data_ptr<T>(),
          w_hh.const_data_ptr<T>(),
          data_or_null<T>(w_hr),
          h0.const_data_ptr<T>(),
          c0.const_data_ptr<T>(),
          h.mutable_data_ptr<T>(),
          c.mutable_data_ptr<T>(),
          save_gates ? gates.mutable_data_ptr<T>() : nullptr};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cpu(const Tensor& xg, const Tensor& w_hh, const MaybeTensor& w_hr,
                                            const Tensor& h0, const Tensor& c0, const MaybeTensor& lengths,
                                            const MaybeTensor& cont, const MaybeTensor& packed, bool reverse,
                                            bool save_gates) {
  const LstmSizes n = check_lstm(xg, w_hh, w_hr, h0, c0, lengths, cont);
  const ScalarType dtype = xg.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    auto [h, c, gates] = lstm_cpu(to_float(xg), to_float(w_hh), to_float(w_hr), to_float(h0), to_float(c0),
                                  lengths, cont, packed, reverse, save_gates);
    return {torch::stable::to(h, dtype), torch::stable::to(c, dtype), torch::stable::to(gates, dtype)};
  }
  const LstmShape shape = make_shape("lstm", n, lengths, cont, reverse);

  Tensor h = torch::stable::new_empty(xg, {n.T, n.B, n.P});
  Tensor c = torch::stable::new_empty(xg, {n.T, n.B, n.H});
  Tensor gates = save_gates ? torch::stable::empty_like(xg) : torch::stable::new_empty(xg, {0});
  if (dtype == ScalarType::Double) {
    LRCN_CHECK(!packed.has_value(), "lstm: packed is for float32, float16 and bfloat16 inputs, got Double");
    lstm_forward_reference(forward_args<double>(shape, xg, w_hh, w_hr, h0, c0, h, c, gates, save_gates));
  } else {
    const Tensor w = packed.has_value() ? *packed : lstm_pack_cpu(w_hh, w_hr, ScalarType::Float);
    const PackHeader& header =
        check_packed("lstm: packed", w, kLstmMagic, 4 * n.H, n.P, n.projects ? n.P : 0);
    lstm_forward(forward_args<float>(shape, xg, w_hh, w_hr, h0, c0, h, c, gates, save_gates), weights_of(w),
                 header.type, torch_pool());
  }
  return {h, c, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_bidirectional_cpu(
    const std::vector<Tensor>& xg, const std::vector<Tensor>& w_hh, const std::vector<Tensor>& w_hr,
    const std::vector<Tensor>& h0, const std::vector<Tensor>& c0, const MaybeTensor& lengths,
    bool save_gates) {
  check_lstm_bidirectional(xg, w_hh, w_hr, h0, c0, lengths);
  const auto run = [&](size_t i) {
    return lstm_cpu(xg[i], w_hh[i], one_of(w_hr, i), h0[i], c0[i], lengths, std::nullopt, std::nullopt,
                    i == 1, save_gates);
  };
  return one_after_the_other(run);
}

template <typename T>
LstmBackward<T> backward_args(const LstmShape& shape, const Tensor& d_h, const Tensor& d_c,
                              const MaybeTensor& d_gates, const Tensor& w_hh, const MaybeTensor& w_hr,
                              const Tensor& gates, const Tensor& c0, const Tensor& c, Tensor& d_xg,
                              Tensor& d_h0, Tensor& d_c0, Tensor& d_p) {
  return {shape,
          d_h.const_data_ptr<T>(),
          d_c.const_data_ptr<T>(),
          data_or_null<T>(d_gates),
          w_hh.const_data_ptr<T>(),
          data_or_null<T>(w_hr),
          gates.const_data_ptr<T>(),
          c0.const_data_ptr<T>(),
          c.const_data_ptr<T>(),
          d_xg.mutable_data_ptr<T>(),
          d_h0.mutable_data_ptr<T>(),
          d_c0.mutable_data_ptr<T>(),
          w_hr.has_value() ? d_p.mutable_data_ptr<T>() : nullptr};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_backward_cpu(const Tensor& d_h, const Tensor& d_c,
                                                             const MaybeTensor& d_gates, const Tensor& w_hh,
                                                             const MaybeTensor& w_hr, const Tensor& gates,
                                                             const Tensor& c0, const Tensor& c,
                                                             const MaybeTensor& lengths,
                                                             const MaybeTensor& cont, bool reverse) {
  const LstmSizes n = check_lstm_backward(d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, lengths, cont);
  const ScalarType dtype = c.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    auto [d_xg, d_h0, d_c0, d_p] =
        lstm_backward_cpu(to_float(d_h), to_float(d_c), to_float(d_gates), to_float(w_hh), to_float(w_hr),
                          to_float(gates), to_float(c0), to_float(c), lengths, cont, reverse);
    return {torch::stable::to(d_xg, dtype), torch::stable::to(d_h0, dtype), torch::stable::to(d_c0, dtype),
            torch::stable::to(d_p, dtype)};
  }
  const LstmShape shape = make_shape("lstm_backward", n, lengths, cont, reverse);

  Tensor d_xg = torch::stable::empty_like(gates);
  Tensor d_h0 = torch::stable::new_empty(c, {n.B, n.P});
  Tensor d_c0 = torch::stable::empty_like(c0);
  Tensor d_p = n.projects ? torch::stable::empty_like(d_h) : torch::stable::new_empty(c, {0});
  if (dtype == ScalarType::Double)
    lstm_backward_reference(
        backward_args<double>(shape, d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, d_xg, d_h0, d_c0, d_p));
  else
    lstm_backward(
        backward_args<float>(shape, d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, d_xg, d_h0, d_c0, d_p),
        torch_pool());
  return {d_xg, d_h0, d_c0, d_p};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_bidirectional_backward_cpu(
    const std::vector<Tensor>& d_h, const std::vector<Tensor>& d_c, const std::vector<Tensor>& d_gates,
    const std::vector<Tensor>& w_hh, const std::vector<Tensor>& w_hr, const std::vector<Tensor>& gates,
    const std::vector<Tensor>& c0, const std::vector<Tensor>& c, const MaybeTensor& lengths) {
  check_lstm_bidirectional_backward(d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, lengths);
  const auto run = [&](size_t i) {
    return lstm_backward_cpu(d_h[i], d_c[i], one_of(d_gates, i), w_hh[i], one_of(w_hr, i), gates[i], c0[i],
                             c[i], lengths, std::nullopt, i == 1);
  };
  return one_after_the_other(run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("lstm_pack", TORCH_BOX(&lstm_pack_cpu));
  m.impl("lstm", TORCH_BOX(&lstm_cpu));
  m.impl("lstm_bidirectional", TORCH_BOX(&lstm_bidirectional_cpu));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward_cpu));
  m.impl("lstm_bidirectional_backward", TORCH_BOX(&lstm_bidirectional_backward_cpu));
}

}  // namespace lrcn::ops
