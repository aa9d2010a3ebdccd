#include "packed.h"

#include <torch/csrc/stable/ops.h>

#include "../core/memory.h"

namespace lrcn::ops {

Tensor new_packed(const Tensor& like, const PackHeader& header, int64_t weight_bytes) {
  Tensor packed =
      torch::stable::new_empty(like, {static_cast<int64_t>(sizeof header) + weight_bytes}, ScalarType::Byte);
  prefer_large_pages(packed.mutable_data_ptr<uint8_t>(), packed.numel());
  std::memcpy(packed.mutable_data_ptr<uint8_t>(), &header, sizeof header);
  return packed;
}

const PackHeader& check_packed(const char* what, const Tensor& packed, const char (&magic)[8],
                               int64_t outputs, int64_t inputs, int64_t projected) {
  LRCN_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous() &&
                 packed.is_cpu() && packed.numel() >= static_cast<int64_t>(sizeof(PackHeader)),
             what, " must be a packed weight on the CPU, got ",
             torch::headeronly::toString(packed.scalar_type()), " ", shape_of(packed));
  const auto& header = *reinterpret_cast<const PackHeader*>(packed.const_data_ptr<uint8_t>());
  LRCN_CHECK(std::memcmp(header.magic, magic, sizeof magic) == 0, what, " is no packed weight of this op");
  const auto shape = [](int64_t n, int64_t k, int64_t p) {
    return shape_text(std::initializer_list<int64_t>{n, k}) +
           (p > 0 ? " with w_hr to " + std::to_string(p) : "");
  };
  LRCN_CHECK(header.outputs == outputs && header.inputs == inputs && header.projected == projected, what,
             " must be packed from a weight of ", shape(outputs, inputs, projected), ", got one of ",
             shape(header.outputs, header.inputs, header.projected));
  return header;
}

}  // namespace lrcn::ops
