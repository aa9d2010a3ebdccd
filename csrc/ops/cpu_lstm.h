// What the CPU's LSTM ops share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../core/lstm.h"
#include "lstm_checks.h"

namespace lrcn::ops {

inline Tensor to_float(const Tensor& t) {
  return torch::stable::to(t, ScalarType::Float);
}

inline MaybeTensor to_float(const MaybeTensor& t) {
  return t.has_value() ? MaybeTensor(to_float(*t)) : std::nullopt;
}

template <typename T>
const T* data_or_null(const MaybeTensor& t) {
  return t.has_value() ? t->const_data_ptr<T>() : nullptr;
}

// Core's view of checked sizes and masks; checks the values of lengths.
LstmShape make_shape(const char* op, const LstmSizes& n, const MaybeTensor& lengths, const MaybeTensor& cont,
                     bool reverse);

// A PackedSequence's batch_sizes [T] in core's terms.
struct PackedRows {
  std::vector<int64_t> lengths, offsets;
  int64_t count = 0;
};
// Checks them against B and the rows of x.
PackedRows read_batch_sizes(const std::string& op, const Tensor& batch_sizes, int64_t batch, int64_t rows);

// The weights that are packed for a recurrence: w_hh [4H, P] and w_hr [P, H].
void check_recurrent_weights(const std::string& op, const Tensor& w_hh, const MaybeTensor& w_hr);

Tensor lstm_pack_cpu(const Tensor& w_hh, const MaybeTensor& w_hr, ScalarType dtype);

}  // namespace lrcn::ops
