// The arguments of the lstm ops, checked alike on every device. The values of lengths are not: reading them
// would wait for a GPU.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"

namespace lrcn::ops {

using MaybeTensor = std::optional<Tensor>;

struct LstmSizes {
  int64_t T, B, H, P;  // P = H without w_hr
  bool projects;
};

inline bool is_half(ScalarType type) {
  return type == ScalarType::BFloat16 || type == ScalarType::Half;
}

// The argument that fixes dtype and device.
inline void check_lstm_like(const char* what, const Tensor& t, const char* layout,
                            std::initializer_list<int64_t> sizes) {
  check_layout(what, t, layout, sizes, what, t);
  const ScalarType type = t.scalar_type();
  LRCN_CHECK(type == ScalarType::Float || type == ScalarType::Double || is_half(type), what,
             " must be float32, float64, bfloat16 or float16, got ", torch::headeronly::toString(type));
}

// The tensors that say which rows exist and where sequences start.
inline void check_masks(const std::string& op, const char* like_name, const Tensor& like, const LstmSizes& n,
                        const MaybeTensor& lengths, const MaybeTensor& cont) {
  if (lengths.has_value()) {
    const std::string name = op + ": lengths";
    check_layout(name.c_str(), *lengths, "[B]", {n.B}, like_name, like);
    LRCN_CHECK(lengths->scalar_type() == ScalarType::Long, name, " must be int64, got ",
               torch::headeronly::toString(lengths->scalar_type()));
  }
  if (cont.has_value()) {
    const std::string name = op + ": cont";
    check_layout(name.c_str(), *cont, "[T, B]", {n.T, n.B}, like_name, like);
    const ScalarType type = cont->scalar_type();
    LRCN_CHECK(type == ScalarType::Bool || type == ScalarType::Byte, name, " must be bool or uint8, got ",
               torch::headeronly::toString(type));
  }
}

// The arguments that both ops have.
inline void check_lstm_common(const std::string& op, const char* like_name, const Tensor& like,
                              const LstmSizes& n, const Tensor& w_hh, const MaybeTensor& w_hr,
                              const Tensor& c0, const MaybeTensor& lengths, const MaybeTensor& cont) {
  const auto name = [&](const char* argument) { return op + ": " + argument; };
  check(name("w_hh").c_str(), w_hh, n.projects ? "[4H, P]" : "[4H, H]", {4 * n.H, n.P}, like_name, like);
  if (n.projects) check(name("w_hr").c_str(), *w_hr, "[P, H]", {n.P, n.H}, like_name, like);
  check(name("c0").c_str(), c0, "[B, H]", {n.B, n.H}, like_name, like);
  check_masks(op, like_name, like, n, lengths, cont);
}

inline LstmSizes check_lstm(const Tensor& xg, const Tensor& w_hh, const MaybeTensor& w_hr, const Tensor& h0,
                            const Tensor& c0, const MaybeTensor& lengths, const MaybeTensor& cont) {
  LRCN_CHECK(xg.dim() == 3, "lstm: xg must be [T, B, 4H], got ", shape_of(xg));
  LRCN_CHECK(c0.dim() == 2, "lstm: c0 must be [B, H], got ", shape_of(c0));
  const bool projects = w_hr.has_value();
  LRCN_CHECK(!projects || w_hr->dim() == 2, "lstm: w_hr must be [P, H], got ", shape_of(*w_hr));
  const int64_t H = c0.size(1);
  const LstmSizes n{xg.size(0), xg.size(1), H, projects ? w_hr->size(0) : H, projects};
  check_lstm_like("lstm: xg", xg, "[T, B, 4H]", {n.T, n.B, 4 * n.H});
  check_lstm_common("lstm", "xg", xg, n, w_hh, w_hr, c0, lengths, cont);
  check("lstm: h0", h0, projects ? "[B, P]" : "[B, H]", {n.B, n.P}, "xg", xg);
  return n;
}

// One of two tensors, or nothing if there are none.
inline MaybeTensor one_of(const std::vector<Tensor>& pair, size_t i) {
  return pair.empty() ? std::nullopt : MaybeTensor(pair[i]);
}
// The results of both directions, run(0) and then run(1), side by side: (a, b) and (c, d) are (a, c, b, d).
template <typename Run>
auto one_after_the_other(const Run& run) {
  const auto first = run(size_t{0}), second = run(size_t{1});
  return std::apply(
      [&](const auto&... a) {
        return std::apply([&](const auto&... b) { return std::tuple_cat(std::make_tuple(a, b)...); }, second);
      },
      first);
}
inline void check_two(const char* argument, const std::vector<Tensor>& pair, bool optional = false) {
  LRCN_CHECK(pair.size() == 2 || (optional && pair.empty()), argument, " must be 2 tensors",
             optional ? " or none" : "", ", got ", pair.size());
}
inline void check_same_projection(const char* op, const LstmSizes& one, const LstmSizes& other) {
  LRCN_CHECK(other.P == one.P, op, ": P must be the same in both, got ", one.P, " and ", other.P);
}

// The sizes that both directions of lstm_bidirectional have; of w_hr there may be none.
inline LstmSizes check_lstm_bidirectional(const std::vector<Tensor>& xg, const std::vector<Tensor>& w_hh,
                                          const std::vector<Tensor>& w_hr, const std::vector<Tensor>& h0,
                                          const std::vector<Tensor>& c0, const MaybeTensor& lengths) {
  check_two("lstm_bidirectional: xg", xg), check_two("lstm_bidirectional: w_hh", w_hh);
  check_two("lstm_bidirectional: w_hr", w_hr, true);
  check_two("lstm_bidirectional: h0", h0), check_two("lstm_bidirectional: c0", c0);
  LstmSizes sizes[2];
  for (size_t i = 0; i < 2; ++i)
    sizes[i] = check_lstm(xg[i], w_hh[i], one_of(w_hr, i), h0[i], c0[i], lengths, std::nullopt);
  check("lstm_bidirectional: xg[1]", xg[1], "[T, B, 4H]", {sizes[0].T, sizes[0].B, 4 * sizes[0].H}, "xg[0]",
        xg[0]);
  check_same_projection("lstm_bidirectional", sizes[0], sizes[1]);
  return sizes[0];
}

inline LstmSizes check_lstm_backward(const Tensor& d_h, const Tensor& d_c, const MaybeTensor& d_gates,
                                     const Tensor& w_hh, const MaybeTensor& w_hr, const Tensor& gates,
                                     const Tensor& c0, const Tensor& c, const MaybeTensor& lengths,
                                     const MaybeTensor& cont) {
  LRCN_CHECK(c.dim() == 3, "lstm_backward: c must be [T, B, H], got ", shape_of(c));
  const bool projects = w_hr.has_value();
  LRCN_CHECK(!projects || w_hr->dim() == 2, "lstm_backward: w_hr must be [P, H], got ", shape_of(*w_hr));
  const int64_t H = c.size(2);
  const LstmSizes n{c.size(0), c.size(1), H, projects ? w_hr->size(0) : H, projects};
  check_lstm_like("lstm_backward: c", c, "[T, B, H]", {n.T, n.B, n.H});
  check_lstm_common("lstm_backward", "c", c, n, w_hh, w_hr, c0, lengths, cont);
  check("lstm_backward: d_h", d_h, projects ? "[T, B, P]" : "[T, B, H]", {n.T, n.B, n.P}, "c", c);
  check("lstm_backward: d_c", d_c, "[T, B, H]", {n.T, n.B, n.H}, "c", c);
  check("lstm_backward: gates", gates, "[T, B, 4H]", {n.T, n.B, 4 * n.H}, "c", c);
  if (d_gates.has_value())
    check("lstm_backward: d_gates", *d_gates, "[T, B, 4H]", {n.T, n.B, 4 * n.H}, "c", c);
  return n;
}

// The same for the backward pass; of d_gates there may be none either.
inline LstmSizes check_lstm_bidirectional_backward(
    const std::vector<Tensor>& d_h, const std::vector<Tensor>& d_c, const std::vector<Tensor>& d_gates,
    const std::vector<Tensor>& w_hh, const std::vector<Tensor>& w_hr, const std::vector<Tensor>& gates,
    const std::vector<Tensor>& c0, const std::vector<Tensor>& c, const MaybeTensor& lengths) {
  const char* const op = "lstm_bidirectional_backward";
  const auto name = [&](const char* argument) { return std::string(op) + ": " + argument; };
  check_two(name("d_h").c_str(), d_h), check_two(name("d_c").c_str(), d_c);
  check_two(name("d_gates").c_str(), d_gates, true), check_two(name("w_hh").c_str(), w_hh);
  check_two(name("w_hr").c_str(), w_hr, true), check_two(name("gates").c_str(), gates);
  check_two(name("c0").c_str(), c0), check_two(name("c").c_str(), c);
  LstmSizes sizes[2];
  for (size_t i = 0; i < 2; ++i)
    sizes[i] = check_lstm_backward(d_h[i], d_c[i], one_of(d_gates, i), w_hh[i], one_of(w_hr, i), gates[i],
                                   c0[i], c[i], lengths, std::nullopt);
  check(name("c[1]").c_str(), c[1], "[T, B, H]", {sizes[0].T, sizes[0].B, sizes[0].H}, "c[0]", c[0]);
  check_same_projection(op, sizes[0], sizes[1]);
  return sizes[0];
}

}  // namespace lrcn::ops
