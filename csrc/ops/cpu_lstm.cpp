// CPU implementations of the lstm ops: check, allocate, call core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "../core/lstm.h"
#include "checks.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {
namespace {

using MaybeTensor = std::optional<Tensor>;

bool is_half(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half;
}

Tensor to_float(const Tensor& t) {
  return torch::stable::to(t, ScalarType::Float);
}

MaybeTensor to_float(const MaybeTensor& t) {
  return t.has_value() ? MaybeTensor(to_float(*t)) : std::nullopt;
}

template <typename T>
const T* data_or_null(const MaybeTensor& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

// T, B and the masks, checked. `op` starts the messages; like fixes the device.
LstmShape make_shape(const char* op, const Tensor& like, int64_t T, int64_t B, int64_t H, int64_t P,
                     const MaybeTensor& lengths, const MaybeTensor& cont, bool reverse) {
  LstmShape shape{T, B, H, P};
  shape.reverse = reverse;
  const std::string name = op;
  if (lengths.has_value()) {
    check_layout((name + ": lengths").c_str(), *lengths, "[B]", {B}, "xg", like);
    LRCN_CHECK(lengths->scalar_type() == ScalarType::Long, name, ": lengths must be int64, got ",
               torch::headeronly::toString(lengths->scalar_type()));
    shape.lengths = lengths->const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b)
      LRCN_CHECK(shape.lengths[b] >= 0 && shape.lengths[b] <= T, name, ": lengths must be within 0..T = 0..",
                 T, ", got ", shape.lengths[b], " at row ", b);
  }
  if (cont.has_value()) {
    check_layout((name + ": cont").c_str(), *cont, "[T, B]", {T, B}, "xg", like);
    const ScalarType type = cont->scalar_type();
    LRCN_CHECK(type == ScalarType::Bool || type == ScalarType::Byte, name,
               ": cont must be bool or uint8, got ", torch::headeronly::toString(type));
    shape.cont = static_cast<const uint8_t*>(cont->const_data_ptr());  // bool is one byte, 0 or 1
  }
  return shape;
}

Tensor lstm_pack_cpu(const Tensor& w_hh, const MaybeTensor& w_hr, ScalarType dtype) {
  LRCN_CHECK(w_hh.dim() == 2 && w_hh.size(0) % 4 == 0, "lstm_pack: w_hh must be [4H, P], got ",
             shape_of(w_hh));
  const int64_t H = w_hh.size(0) / 4, P = w_hh.size(1);
  LRCN_CHECK(w_hh.scalar_type() == ScalarType::Float, "lstm_pack: w_hh must be float32, got ",
             torch::headeronly::toString(w_hh.scalar_type()));
  check("lstm_pack: w_hh", w_hh, w_hr.has_value() ? "[4H, P]" : "[4H, H]", {4 * H, w_hr.has_value() ? P : H},
        "w_hh", w_hh);
  if (w_hr.has_value()) check("lstm_pack: w_hr", *w_hr, "[P, H]", {P, H}, "w_hh", w_hh);
  PackHeader header{};
  std::memcpy(header.magic, kLstmMagic, sizeof kLstmMagic);
  header.outputs = 4 * H, header.inputs = P, header.projected = w_hr.has_value() ? 1 : 0;
  header.type = weight_type("lstm_pack", dtype);
  Tensor packed = new_packed(w_hh, header, lstm_sequence_packed_bytes(H, P, w_hr.has_value(), header.type));
  lstm_sequence_pack(w_hh.const_data_ptr<float>(), data_or_null<float>(w_hr), H, P, header.type,
                     weights_of(packed), torch_pool());
  return packed;
}

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
  LRCN_CHECK(xg.dim() == 3, "lstm: xg must be [T, B, 4H], got ", shape_of(xg));
  LRCN_CHECK(c0.dim() == 2, "lstm: c0 must be [B, H], got ", shape_of(c0));
  const bool projects = w_hr.has_value();
  LRCN_CHECK(!projects || w_hr->dim() == 2, "lstm: w_hr must be [P, H], got ", shape_of(*w_hr));
  const int64_t T = xg.size(0), B = xg.size(1), H = c0.size(1), P = projects ? w_hr->size(0) : H;
  check("lstm: xg", xg, "[T, B, 4H]", {T, B, 4 * H}, "xg", xg);
  check("lstm: w_hh", w_hh, projects ? "[4H, P]" : "[4H, H]", {4 * H, P}, "xg", xg);
  if (projects) check("lstm: w_hr", *w_hr, "[P, H]", {P, H}, "xg", xg);
  check("lstm: h0", h0, projects ? "[B, P]" : "[B, H]", {B, P}, "xg", xg);
  check("lstm: c0", c0, "[B, H]", {B, H}, "xg", xg);
  const ScalarType dtype = xg.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    auto [h, c, gates] = lstm_cpu(to_float(xg), to_float(w_hh), to_float(w_hr), to_float(h0), to_float(c0),
                                  lengths, cont, packed, reverse, save_gates);
    return {torch::stable::to(h, dtype), torch::stable::to(c, dtype), torch::stable::to(gates, dtype)};
  }
  LRCN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
             "lstm: xg must be float32, float64, bfloat16 or float16, got ",
             torch::headeronly::toString(dtype));
  const LstmShape shape = make_shape("lstm", xg, T, B, H, P, lengths, cont, reverse);

  Tensor h = torch::stable::new_empty(xg, {T, B, P});
  Tensor c = torch::stable::new_empty(xg, {T, B, H});
  Tensor gates = save_gates ? torch::stable::empty_like(xg) : torch::stable::new_empty(xg, {0});
  if (dtype == ScalarType::Double) {
    LRCN_CHECK(!packed.has_value(), "lstm: packed is for float32, float16 and bfloat16 inputs, got Double");
    lstm_forward_reference(forward_args<double>(shape, xg, w_hh, w_hr, h0, c0, h, c, gates, save_gates));
  } else {
    const Tensor w = packed.has_value() ? *packed : lstm_pack_cpu(w_hh, w_hr, ScalarType::Float);
    const PackHeader& header = check_packed("lstm: packed", w, kLstmMagic, 4 * H, P, projects);
    lstm_forward(forward_args<float>(shape, xg, w_hh, w_hr, h0, c0, h, c, gates, save_gates), weights_of(w),
                 header.type, torch_pool());
  }
  return {h, c, gates};
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
  LRCN_CHECK(c.dim() == 3, "lstm_backward: c must be [T, B, H], got ", shape_of(c));
  const bool projects = w_hr.has_value();
  LRCN_CHECK(!projects || w_hr->dim() == 2, "lstm_backward: w_hr must be [P, H], got ", shape_of(*w_hr));
  const int64_t T = c.size(0), B = c.size(1), H = c.size(2), P = projects ? w_hr->size(0) : H;
  check("lstm_backward: d_h", d_h, projects ? "[T, B, P]" : "[T, B, H]", {T, B, P}, "c", c);
  check("lstm_backward: d_c", d_c, "[T, B, H]", {T, B, H}, "c", c);
  if (d_gates.has_value()) check("lstm_backward: d_gates", *d_gates, "[T, B, 4H]", {T, B, 4 * H}, "c", c);
  check("lstm_backward: w_hh", w_hh, projects ? "[4H, P]" : "[4H, H]", {4 * H, P}, "c", c);
  if (projects) check("lstm_backward: w_hr", *w_hr, "[P, H]", {P, H}, "c", c);
  check("lstm_backward: gates", gates, "[T, B, 4H]", {T, B, 4 * H}, "c", c);
  check("lstm_backward: c0", c0, "[B, H]", {B, H}, "c", c);
  const ScalarType dtype = c.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    auto [d_xg, d_h0, d_c0, d_p] =
        lstm_backward_cpu(to_float(d_h), to_float(d_c), to_float(d_gates), to_float(w_hh), to_float(w_hr),
                          to_float(gates), to_float(c0), to_float(c), lengths, cont, reverse);
    return {torch::stable::to(d_xg, dtype), torch::stable::to(d_h0, dtype), torch::stable::to(d_c0, dtype),
            torch::stable::to(d_p, dtype)};
  }
  LRCN_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
             "lstm_backward: c must be float32, float64, bfloat16 or float16, got ",
             torch::headeronly::toString(dtype));
  const LstmShape shape = make_shape("lstm_backward", c, T, B, H, P, lengths, cont, reverse);

  Tensor d_xg = torch::stable::empty_like(gates);
  Tensor d_h0 = torch::stable::new_empty(c, {B, P});
  Tensor d_c0 = torch::stable::empty_like(c0);
  Tensor d_p = projects ? torch::stable::empty_like(d_h) : torch::stable::new_empty(c, {0});
  if (dtype == ScalarType::Double)
    lstm_backward_reference(
        backward_args<double>(shape, d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, d_xg, d_h0, d_c0, d_p));
  else
    lstm_backward(
        backward_args<float>(shape, d_h, d_c, d_gates, w_hh, w_hr, gates, c0, c, d_xg, d_h0, d_c0, d_p),
        torch_pool());
  return {d_xg, d_h0, d_c0, d_p};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("lstm_pack", TORCH_BOX(&lstm_pack_cpu));
  m.impl("lstm", TORCH_BOX(&lstm_cpu));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward_cpu));
}

}  // namespace lrcn::ops
