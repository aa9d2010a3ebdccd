// CPU implementations of the linear ops: check, allocate, call core.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "../core/linear.h"
#include "cpu_lstm.h"
#include "packed.h"
#include "pool.h"

namespace lrcn::ops {

Tensor linear_pack_cpu(const Tensor& w, ScalarType dtype) {
  LRCN_CHECK(w.dim() == 2, "linear_pack: w must be [N, K], got ", shape_of(w));
  const int64_t N = w.size(0), K = w.size(1);
  check_float("linear_pack: w", w);
  LRCN_CHECK(w.is_contiguous(), "linear_pack: w must be contiguous");
  PackHeader header{};
  std::memcpy(header.magic, kLinearMagic, sizeof kLinearMagic);
  header.outputs = N, header.inputs = K, header.type = weight_type("linear_pack", dtype);
  Tensor packed = new_packed(w, header, linear_packed_bytes(N, K, header.type));
  linear_pack(w.const_data_ptr<float>(), K, 1, N, K, header.type, weights_of(packed), torch_pool());
  return packed;
}

namespace {

Tensor linear_cpu(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& bias,
                  int64_t out_features) {
  LRCN_CHECK(x.dim() >= 1, "linear: x must be [..., K], got a scalar");
  check_float("linear: x", x);
  LRCN_CHECK(x.is_contiguous(), "linear: x must be contiguous");
  const int64_t N = out_features, K = x.size(-1);
  const PackHeader& header = check_packed("linear: packed", packed, kLinearMagic, N, K, /*projected=*/0);
  if (bias.has_value()) check("linear: bias", *bias, "[N]", {N}, "x", x);

  std::vector<int64_t> sizes;
  int64_t M = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.push_back(x.size(d)), M *= x.size(d);
  sizes.push_back(N);
  Tensor y = torch::stable::new_empty(x, sizes);
  linear_forward({weights_of(packed), header.type, N, K}, M, x.const_data_ptr<float>(), K,
                 bias.has_value() ? bias->const_data_ptr<float>() : nullptr, y.mutable_data_ptr<float>(), N,
                 torch_pool());
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lrcn_fast, CPU, m) {
  m.impl("linear_pack", TORCH_BOX(&linear_pack_cpu));
  m.impl("linear", TORCH_BOX(&linear_cpu));
}

}  // namespace lrcn::ops
