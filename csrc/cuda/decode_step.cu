// The model's part of a decoding step: an LSTM layer over a list of rows, and what is computed once.
//
//   z = table[word] + term + x W_x^T + h_prev[parent] W_hh^T,   then the cell of lstm_cell.cu
//
// A warp owns one unit, so its four gate rows of each weight, and 8 rows of the list: 32 dot products, whose
// numbers k are spread over the lanes (decode_common.cuh). After the reduction lane 4 r + gate holds a gate
// of row r. Nothing is shared between warps but the caches, so there is no barrier.
#include "decode_common.cuh"
#include "launch.h"

namespace lrcn::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kPadThreads = 128;

unsigned blocks_of(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) decode_cell_kernel(DecodeRows rows, DecodeCell cell) {
  if (all_done(rows)) return;
  const int64_t H = cell.H, stride = cell.stride;
  const int64_t unit = int64_t{block_index()} * kWarps + warp_index();
  const int64_t first = int64_t{block_index_y()} * kDecodeRows;
  if (unit >= H) return;

  // Rows that are not live are multiplied too, as copies of some row, and not stored.
  bool any = false;
  const float *x[kDecodeRows], *h_prev[kDecodeRows];
#pragma unroll
  for (int r = 0; r < kDecodeRows; ++r) {
    const bool live = is_live(rows, first + r);
    const int64_t row = live ? first + r : 0;
    any = any || live;
    const int64_t from = live && cell.x_is_word ? rows.tokens[row] : row;
    x[r] = cell.x + from * cell.inputs;
    h_prev[r] = cell.h_prev + (live && cell.parents != nullptr ? cell.parents[row] : row) * stride;
  }
  if (!any) return;

  float sum[kDecodeRows * kDecodeColumns] = {};
  const T *w_x[kDecodeColumns], *w_hh[kDecodeColumns];
#pragma unroll
  for (int gate = 0; gate < kDecodeColumns; ++gate) {
    w_x[gate] = static_cast<const T*>(cell.w_x) + (gate * H + unit) * cell.inputs;
    w_hh[gate] = static_cast<const T*>(cell.w_hh) + (gate * H + unit) * stride;
  }
  if (cell.inputs > 0) accumulate(sum, w_x, x, cell.inputs);
  accumulate(sum, w_hh, h_prev, stride);
  float z = collect(sum);

  const unsigned lane = lane_index(), gate = lane % kDecodeColumns;
  const int64_t row = first + lane / kDecodeColumns, column = gate * H + unit;
  const bool live = is_live(rows, row);
  if (live) {
    if (cell.table != nullptr) z += cell.table[rows.tokens[row] * 4 * H + column];
    if (cell.term != nullptr)
      z += cell.term[(cell.term_rows == 1 ? 0 : row / rows.per_image) * 4 * H + column];
  }
  const float a = gate == 2 ? std::tanh(z) : sigmoid(z);
  const int base = static_cast<int>(lane - gate);
  const float i = shuffle(a, base), f = shuffle(a, base + 1), g = shuffle(a, base + 2),
              o = shuffle(a, base + 3);
  if (!live || gate != 0) return;
  const int64_t parent = cell.parents == nullptr ? row : cell.parents[row];
  const float c = f * cell.c_prev[parent * stride + unit] + i * g;
  cell.c[row * stride + unit] = c;
  cell.h[row * stride + unit] = o * std::tanh(c);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_linear_kernel(int64_t rows, int64_t N, int64_t K, const float* __restrict__ x,
                         const T* __restrict__ w, const float* __restrict__ bias, float* __restrict__ out) {
  const int64_t column = (int64_t{block_index()} * kWarps + warp_index()) * kDecodeColumns;
  const int64_t first = int64_t{block_index_y()} * kDecodeRows;
  if (column >= N) return;
  const float* x_rows[kDecodeRows];
  const T* w_rows[kDecodeColumns];
#pragma unroll
  for (int r = 0; r < kDecodeRows; ++r) x_rows[r] = x + (first + r < rows ? first + r : 0) * K;
#pragma unroll
  for (int j = 0; j < kDecodeColumns; ++j) w_rows[j] = w + (column + j) * K;
  float sum[kDecodeRows * kDecodeColumns] = {};
  accumulate(sum, w_rows, x_rows, K);
  const float value = collect(sum);
  const int64_t row = first + lane_index() / kDecodeColumns, n = column + lane_index() % kDecodeColumns;
  if (row < rows) out[row * N + n] = value + (bias == nullptr ? 0.0f : bias[n]);
}

template <typename T>
__global__ void __launch_bounds__(kPadThreads)
    decode_pad_kernel(const float* from, int64_t ld, int64_t rows, int64_t columns, int64_t padded, T* to) {
  const int64_t at = int64_t{block_index()} * kPadThreads + thread_index();
  if (at >= rows * padded) return;
  const int64_t row = at / padded, column = at % padded;
  put(to[at], from != nullptr && column < columns ? from[row * ld + column] : 0.0f);
}

}  // namespace

void decode_cell(Dtype type, const DecodeRows& rows, const DecodeCell& cell, Stream stream) {
  with_weight_type(type, [&](auto weight) {
    const Grid grid{blocks_of(cell.H, kWarps), blocks_of(rows.count, kDecodeRows)};
    launch(decode_cell_kernel<decltype(weight)>, grid, kThreads, 1, 0, stream, rows, cell);
  });
}

void decode_linear(Dtype type, int64_t rows, int64_t N, int64_t K, const float* x, const void* w,
                   const float* bias, float* out, Stream stream) {
  with_weight_type(type, [&](auto weight) {
    using T = decltype(weight);
    const Grid grid{blocks_of(N, kWarps * kDecodeColumns), blocks_of(rows, kDecodeRows)};
    launch(decode_linear_kernel<T>, grid, kThreads, 1, 0, stream, rows, N, K, x, static_cast<const T*>(w),
           bias, out);
  });
}

void decode_pad(Dtype type, const float* from, int64_t ld, int64_t rows, int64_t columns, void* to,
                Stream stream) {
  with_weight_type(type, [&](auto weight) {
    using T = decltype(weight);
    const Grid grid{blocks_of(rows * decode_padded(columns), kPadThreads)};
    launch(decode_pad_kernel<T>, grid, kPadThreads, 1, 0, stream, from, ld, rows, columns,
           decode_padded(columns), static_cast<T*>(to));
  });
}

}  // namespace lrcn::cuda
