// The packed weights of the ops: a uint8 tensor that says what it holds, then core's bytes. A tensor packed
// from another shape, or one that is no packed weight, is an error instead of a wild read.
#pragma once

#include <cstring>

#include "../core/linear.h"
#include "checks.h"

namespace lrcn::ops {

// 64 bytes, so that the weights behind it start on a cache line (torch's allocations do).
struct PackHeader {
  char magic[8];
  int64_t outputs;
  int64_t inputs;
  int64_t projected;  // P with w_hr, else 0
  WeightType type;
  char unused[28];
};
static_assert(sizeof(PackHeader) == 64);

constexpr char kLinearMagic[8] = {'l', 'r', 'c', 'n', 'l', 'i', 'n', '1'};
constexpr char kLstmMagic[8] = {'l', 'r', 'c', 'n', 'l', 's', 't', '1'};
constexpr char kLayerMagic[8] = {'l', 'r', 'c', 'n', 'l', 'a', 'y', '1'};

inline WeightType weight_type(const char* what, ScalarType dtype) {
  if (dtype == ScalarType::Float) return WeightType::kFloat32;
  if (dtype == ScalarType::BFloat16) return WeightType::kBFloat16;
  if (dtype == ScalarType::Char) return WeightType::kInt8;
  fail(what, ": dtype must be float32, bfloat16 or int8, got ", torch::headeronly::toString(dtype));
}

// A fresh packed tensor on like's device with its header written; the weights go to weights_of(it).
Tensor new_packed(const Tensor& like, const PackHeader& header, int64_t weight_bytes);

// The header of `packed`, after checking that it is a packed weight of this kind, shape and size.
const PackHeader& check_packed(const char* what, const Tensor& packed, const char (&magic)[8],
                               int64_t outputs, int64_t inputs, int64_t projected);

inline const void* weights_of(const Tensor& packed) {
  return packed.const_data_ptr<uint8_t>() + sizeof(PackHeader);
}
inline void* weights_of(Tensor& packed) {
  return packed.mutable_data_ptr<uint8_t>() + sizeof(PackHeader);
}

}  // namespace lrcn::ops
