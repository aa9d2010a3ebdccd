// The lstm_layer ops: one direction of one layer with its input projection, and all its gradients, in one
// call. Rows that do not exist (past a sequence's length) take part in nothing.
//
// The weight gradients are sums over the rows of all steps that exist, [N] of them, in the order of time.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../core/memory.h"
#include "../core/outer.h"
#include "../core/simd/table.h"
#include "cpu_lstm.h"
#include "pool.h"

namespace lrcn::ops {
namespace {

using torch::stable::matmul;
using torch::stable::new_empty;

// The tensors that say which rows exist, and how they run.
struct Masks {
  const MaybeTensor& lengths;
  const MaybeTensor& batch_sizes;
  const MaybeTensor& cont;
  bool reverse;
};

// Checked sizes, and where each row that exists is.
struct Layer {
  LstmSizes n;
  int64_t inputs;  // I
  int64_t rows;    // N, those that exist
  LstmShape shape;
  PackedRows packed;
  // Of padded sequences with lengths: where the rows that exist are, in the order of time, and the inverse.
  std::vector<int64_t> places;  // [N]
  std::vector<int64_t> dense;   // [T, B]
};

void find_rows(Layer& layer) {
  const LstmShape& s = layer.shape;
  layer.dense.resize(s.steps * s.batch);
  for (int64_t t = 0; t < s.steps; ++t)
    for (int64_t b = 0; b < s.batch; ++b)
      if (t < s.length(b)) {
        layer.dense[s.row(t, b)] = layer.rows++;
        layer.places.push_back(s.row(t, b));
      }
}

Layer check_layer(const char* op, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                  const MaybeTensor& w_hr, const Tensor& h0, const Tensor& c0, const Masks& masks) {
  const auto name = [&](const char* argument) { return std::string(op) + ": " + argument; };
  const bool packed = masks.batch_sizes.has_value();
  const char* layout = packed ? "[N, I]" : "[T, B, I]";
  LRCN_CHECK(x.dim() == (packed ? 2 : 3), name("x"), " must be ", layout, ", got ", shape_of(x));
  LRCN_CHECK(c0.dim() == 2, name("c0"), " must be [B, H], got ", shape_of(c0));
  const bool projects = w_hr.has_value();
  LRCN_CHECK(!projects || w_hr->dim() == 2, name("w_hr"), " must be [P, H], got ", shape_of(*w_hr));
  Layer layer{};
  const int64_t H = c0.size(1), T = packed ? masks.batch_sizes->size(0) : x.size(0);
  layer.n = {T, packed ? c0.size(0) : x.size(1), H, projects ? w_hr->size(0) : H, projects};
  layer.inputs = x.size(-1);
  const LstmSizes& n = layer.n;
  if (packed)
    check_lstm_like(name("x").c_str(), x, layout, {x.size(0), layer.inputs});
  else
    check_lstm_like(name("x").c_str(), x, layout, {n.T, n.B, layer.inputs});
  check(name("w_ih").c_str(), w_ih, "[4H, I]", {4 * H, layer.inputs}, "x", x);
  check_lstm_common(op, "x", x, n, w_hh, w_hr, c0, masks.lengths, masks.cont);
  check(name("h0").c_str(), h0, projects ? "[B, P]" : "[B, H]", {n.B, n.P}, "x", x);

  layer.shape = make_shape(op, n, masks.lengths, masks.cont, masks.reverse);
  if (packed) {
    LRCN_CHECK(!masks.lengths.has_value() && !masks.cont.has_value(), op,
               ": lengths and cont must be None with batch_sizes, got a tensor");
    layer.packed = read_batch_sizes(op, *masks.batch_sizes, n.B, x.size(0));
    layer.rows = layer.packed.count;
    layer.shape.lengths = layer.packed.lengths.data();
    layer.shape.offsets = layer.packed.offsets.data();
  } else if (masks.lengths.has_value()) {
    find_rows(layer);
  } else {
    layer.rows = n.T * n.B;
  }
  return layer;
}

// Before the first write: the largest tensors of a training step are new in every step, and to map them in
// small pages takes up to 8 % of it (H=256, B=128).
void prefer_large_pages(Tensor& t) {
  lrcn::prefer_large_pages(t.mutable_data_ptr(), t.numel() * static_cast<int64_t>(t.element_size()));
}

// [T, B, n], or [N, n] of packed sequences.
Tensor new_rows(const Layer& layer, const Tensor& like, int64_t n) {
  return layer.shape.offsets == nullptr ? new_empty(like, {layer.n.T, layer.n.B, n})
                                        : new_empty(like, {layer.rows, n});
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_cpu(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                                                  const MaybeTensor& bias, const MaybeTensor& w_hr,
                                                  const Tensor& h0, const Tensor& c0,
                                                  const MaybeTensor& lengths, const MaybeTensor& batch_sizes,
                                                  const MaybeTensor& cont, bool reverse, bool save_gates) {
  const Layer layer =
      check_layer("lstm_layer", x, w_ih, w_hh, w_hr, h0, c0, {lengths, batch_sizes, cont, reverse});
  const LstmSizes& n = layer.n;
  if (bias.has_value()) check("lstm_layer: bias", *bias, "[4H]", {4 * n.H}, "x", x);
  const ScalarType dtype = x.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    auto [h, c, gates] =
        lstm_layer_cpu(to_float(x), to_float(w_ih), to_float(w_hh), to_float(bias), to_float(w_hr),
                       to_float(h0), to_float(c0), lengths, batch_sizes, cont, reverse, save_gates);
    return {torch::stable::to(h, dtype), torch::stable::to(c, dtype), torch::stable::to(gates, dtype)};
  }
  Tensor h = new_rows(layer, x, n.P), c = new_rows(layer, x, n.H);
  Tensor gates = save_gates ? new_rows(layer, x, 4 * n.H) : new_empty(x, {0});
  prefer_large_pages(gates);
  const auto args = [&](auto zero, const auto* xg) {
    using T = decltype(zero);
    return LstmForward<T>{layer.shape,
                          xg,
                          w_hh.const_data_ptr<T>(),
                          data_or_null<T>(w_hr),
                          h0.const_data_ptr<T>(),
                          c0.const_data_ptr<T>(),
                          h.mutable_data_ptr<T>(),
                          c.mutable_data_ptr<T>(),
                          save_gates ? gates.mutable_data_ptr<T>() : nullptr};
  };
  if (dtype == ScalarType::Double) {
    Tensor xg = matmul(x, torch::stable::transpose(w_ih, 0, 1));
    double* row = xg.mutable_data_ptr<double>();
    const double* b = data_or_null<double>(bias);
    for (int64_t i = 0; b != nullptr && i < xg.numel(); ++i) row[i] += b[i % (4 * n.H)];
    lstm_forward_reference(args(0.0, row));
    return {h, c, gates};
  }
  const WeightType type = WeightType::kFloat32;
  const Scratch ih = allocate_scratch(lstm_packed_bytes(n.H, layer.inputs, 0, type));
  lstm_pack(w_ih.const_data_ptr<float>(), layer.inputs, layer.inputs, nullptr, 0, n.H, type, ih.get(),
            torch_pool());
  const Scratch hh = allocate_scratch(lstm_sequence_packed_bytes(n.H, n.P, n.projects, type));
  lstm_sequence_pack(w_hh.const_data_ptr<float>(), data_or_null<float>(w_hr), n.H, n.P, type, hh.get(),
                     torch_pool());
  const LstmInput input{x.const_data_ptr<float>(), layer.inputs, ih.get(), type, data_or_null<float>(bias)};
  lstm_forward(args(0.0f, static_cast<const float*>(nullptr)), hh.get(), type, torch_pool(), &input);
  return {h, c, gates};
}

// The rows [n] that exist of t, a tensor [T, B, n] or [N, n], in the order of time.
template <typename T>
std::vector<const T*> rows_of(const Layer& layer, const Tensor& t) {
  std::vector<const T*> rows(layer.rows);
  const int64_t n = t.size(-1);
  for (int64_t r = 0; r < layer.rows; ++r)
    rows[r] = t.const_data_ptr<T>() + (layer.dense.empty() ? r : layer.places[r]) * n;
  return rows;
}

// The rows that exist [N, n], back in the layout of `like`, with zeros for those that do not.
Tensor scatter(const Layer& layer, const Tensor& rows, const Tensor& like) {
  if (layer.dense.empty()) return torch::stable::view(rows, like.sizes());
  Tensor out = torch::stable::empty_like(like);
  const size_t bytes = static_cast<size_t>(like.size(-1)) * like.element_size();
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t t = 0; t < layer.n.T; ++t)
    for (int64_t b = 0; b < layer.n.B; ++b, to += bytes) {
      if (t >= layer.shape.length(b)) {
        std::memset(to, 0, bytes);
        continue;
      }
      std::memcpy(to, from, bytes), from += bytes;
    }
  return out;
}

// The states h that the rows that exist started from, in the order of time; null: zeros.
template <typename T>
std::vector<const T*> previous(const Layer& layer, const Tensor& h, const Tensor& h0) {
  const LstmShape& s = layer.shape;
  const T *states = h.const_data_ptr<T>(), *start = h0.const_data_ptr<T>();
  std::vector<const T*> starts(s.batch), rows;
  for (int64_t b = 0; b < s.batch; ++b) {
    const T* row = start + b * s.proj;
    starts[b] = std::all_of(row, row + s.proj, [](T v) { return v == T(0); }) ? nullptr : row;
  }
  for (int64_t t = 0; t < s.steps; ++t)
    for (int64_t b = 0; b < s.batch; ++b) {
      if (t >= s.length(b)) continue;
      if (s.resets(t, b))
        rows.push_back(nullptr);
      else
        rows.push_back(s.first(t, b) ? starts[b] : states + s.row(s.before(t), b) * s.proj);
    }
  return rows;
}

// o * tanh(c) of the rows that exist, what w_hr multiplies. [N, H].
template <typename T>
Tensor unprojected(const Layer& layer, const Tensor& gates, const Tensor& c) {
  const int64_t H = layer.n.H;
  Tensor u = new_empty(c, {layer.rows, H});
  T* value = u.template mutable_data_ptr<T>();
  const std::vector<const T*> cells = rows_of<T>(layer, c), rows = rows_of<T>(layer, gates);
  for (int64_t r = 0; r < layer.rows; ++r, value += H) {
    if constexpr (std::is_same_v<T, float>)
      simd::kernels().tanh(H, cells[r], value);
    else
      std::transform(cells[r], cells[r] + H, value, [](T v) { return std::tanh(v); });
    for (int64_t j = 0; j < H; ++j) value[j] *= rows[r][3 * H + j];
  }
  return u;
}

// The gradient of a weight [M, n]: the sum of the outer products of the rows of d [N, M] and the inputs [n]
// that the weight multiplied, of which null is zeros.
template <typename T>
Tensor weight_gradient(const Tensor& d, std::vector<const T*> inputs, int64_t n) {
  const int64_t M = d.size(1);
  std::vector<const T*> rows;
  for (size_t r = 0; r < inputs.size(); ++r)
    if (inputs[r] != nullptr) rows.push_back(d.const_data_ptr<T>() + static_cast<int64_t>(r) * M);
  inputs.erase(std::remove(inputs.begin(), inputs.end(), nullptr), inputs.end());
  const int64_t K = static_cast<int64_t>(rows.size());
  if constexpr (std::is_same_v<T, float>) {
    Tensor sum = new_empty(d, {M, n});
    prefer_large_pages(sum);
    outer_sum(K, M, rows.data(), n, inputs.data(), sum.mutable_data_ptr<T>(), torch_pool());
    return sum;
  } else {
    const auto matrix = [&](const std::vector<const T*>& from, int64_t columns) {
      Tensor out = new_empty(d, {K, columns});
      for (int64_t k = 0; k < K; ++k)
        std::copy_n(from[k], columns, out.template mutable_data_ptr<T>() + k * columns);
      return out;
    };
    return matmul(torch::stable::transpose(matrix(rows, M), 0, 1), matrix(inputs, n));
  }
}

// Sums of the columns of m [N, n].
template <typename T>
Tensor column_sums(const Tensor& m) {
  const int64_t N = m.size(0), n = m.size(1);
  Tensor sums = new_empty(m, {n});
  T* out = sums.template mutable_data_ptr<T>();
  const T* in = m.template const_data_ptr<T>();
  torch_pool()(n, /*grain=*/512, [&](int64_t begin, int64_t end) {
    std::fill(out + begin, out + end, T(0));
    for (int64_t r = 0; r < N; ++r)
      for (int64_t j = begin; j < end; ++j) out[j] += in[r * n + j];
  });
  return sums;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Gradients backward(const Layer& layer, const MaybeTensor& d_h, const MaybeTensor& d_c,
                   const MaybeTensor& d_gates, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                   const MaybeTensor& w_hr, const Tensor& h0, const Tensor& c0, const Tensor& h,
                   const Tensor& c, const Tensor& gates, bool need_d_x, bool need_d_h0) {
  const LstmSizes& n = layer.n;
  Tensor d_z = new_empty(x, {layer.rows, 4 * n.H});
  prefer_large_pages(d_z);
  Tensor d_p = new_empty(x, {n.projects ? layer.rows : 0, n.P});
  Tensor d_h0 = torch::stable::empty_like(h0), d_c0 = torch::stable::empty_like(c0);
  LstmBackward<T> args{layer.shape,
                       data_or_null<T>(d_h),
                       data_or_null<T>(d_c),
                       data_or_null<T>(d_gates),
                       w_hh.const_data_ptr<T>(),
                       data_or_null<T>(w_hr),
                       gates.const_data_ptr<T>(),
                       c0.const_data_ptr<T>(),
                       c.const_data_ptr<T>(),
                       d_z.template mutable_data_ptr<T>(),
                       d_h0.template mutable_data_ptr<T>(),
                       d_c0.template mutable_data_ptr<T>(),
                       n.projects ? d_p.template mutable_data_ptr<T>() : nullptr};
  if (!layer.dense.empty()) args.dense = layer.dense.data();
  args.need_d_h0 = need_d_h0;
  if constexpr (std::is_same_v<T, float>)
    lstm_backward(args, torch_pool());
  else
    lstm_backward_reference(args);

  Tensor d_w_hr = new_empty(x, {0});
  if (n.projects) {
    const Tensor u = unprojected<T>(layer, gates, c);
    std::vector<const T*> rows(layer.rows);
    for (int64_t r = 0; r < layer.rows; ++r) rows[r] = u.const_data_ptr<T>() + r * n.H;
    d_w_hr = weight_gradient<T>(d_p, std::move(rows), n.H);
  }
  return {need_d_x ? scatter(layer, matmul(d_z, w_ih), x) : new_empty(x, {0}),
          weight_gradient<T>(d_z, rows_of<T>(layer, x), layer.inputs),
          weight_gradient<T>(d_z, previous<T>(layer, h, h0), n.P),
          column_sums<T>(d_z),
          d_w_hr,
          need_d_h0 ? d_h0 : new_empty(x, {0}),
          d_c0};
}

Gradients lstm_layer_backward_cpu(const MaybeTensor& d_h, const MaybeTensor& d_c, const MaybeTensor& d_gates,
                                  const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                                  const MaybeTensor& w_hr, const Tensor& h0, const Tensor& c0,
                                  const MaybeTensor& lengths, const MaybeTensor& batch_sizes,
                                  const MaybeTensor& cont, const Tensor& h, const Tensor& c,
                                  const Tensor& gates, bool reverse, bool need_d_x, bool need_d_h0) {
  const Layer layer =
      check_layer("lstm_layer_backward", x, w_ih, w_hh, w_hr, h0, c0, {lengths, batch_sizes, cont, reverse});
  const auto check_rows = [&](const char* what, const MaybeTensor& t, int64_t columns) {
    if (!t.has_value()) return;
    if (layer.shape.offsets == nullptr)
      check(what, *t, "[T, B, n]", {layer.n.T, layer.n.B, columns}, "x", x);
    else
      check(what, *t, "[N, n]", {layer.rows, columns}, "x", x);
  };
  check_rows("lstm_layer_backward: d_h", d_h, layer.n.P);
  check_rows("lstm_layer_backward: d_c", d_c, layer.n.H);
  check_rows("lstm_layer_backward: d_gates", d_gates, 4 * layer.n.H);
  check_rows("lstm_layer_backward: h", h, layer.n.P);
  check_rows("lstm_layer_backward: c", c, layer.n.H);
  check_rows("lstm_layer_backward: gates", gates, 4 * layer.n.H);
  const ScalarType dtype = x.scalar_type();
  if (is_half(dtype)) {  // computed in float32
    const Gradients wide = lstm_layer_backward_cpu(
        to_float(d_h), to_float(d_c), to_float(d_gates), to_float(x), to_float(w_ih), to_float(w_hh),
        to_float(w_hr), to_float(h0), to_float(c0), lengths, batch_sizes, cont, to_float(h), to_float(c),
        to_float(gates), reverse, need_d_x, need_d_h0);
    return std::apply(
        [&](const auto&... gradient) { return Gradients{torch::stable::to(gradient, dtype)...}; }, wide);
  }
  const auto run = dtype == ScalarType::Double ? &backward<double> : &backward<float>;
  return run(layer, d_h, d_c, d_gates, x, w_ih, w_hh, w_hr, h0, c0, h, c, gates, need_d_x, need_d_h0);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer_cpu));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward_cpu));
}

}  // namespace lrcn::ops
