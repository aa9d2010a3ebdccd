// Persistent LSTM backward, 8 batch rows for each thread-block cluster: one launch runs all T steps, last to
// first. Along y there is one direction, or both; they share nothing.
//
//   d_h[t] = (gradient of the output h[t]) + d_z[later] W_hh        then one BackwardCell per (row, unit)
//
// A block owns `tiles` tiles of 16 hidden units: it computes d_z of their 4 gates, and holds their columns of
// W_hh in registers, with which everybody's d_z becomes d_h of its units. K = 4H is cut into `parts`; a warp
// multiplies one part for one tile on mma.m16n8k16, units on M, batch on N, and leaves its sums in shared
// memory. Then a thread is one unit of one row: it adds up the sums, does the cell, and stores d_z into every
// block of the cluster.
//
// The exchange is that of lstm_cluster.cu: two buffers, and a mbarrier for each that counts the bytes. d_z of
// step n overwrites that of step n - 2 when all of step n - 1 has come, which each block sent after it had
// read step n - 2.
//
// A lane's b registers of two k-steps are one piece of 16 bytes, 8 units of one gate. A pair of k-steps is 8
// producing units with all their gates, lane q takes gate q:
//
//   k-step s of 2, register r of 2, half e of 2   <->   unit 8 pair + 4 s + 2 r + e
//
// Dynamic shared memory:
//
//   full  [2]                                 mbarriers, one a buffer of d_z
//   d_z   [2][8 rows][stride] Vec16           pieces [unit / 8][gate]
//   sums  [2][parts][8 rows][16 tiles + 4]    [step % 2]: one barrier is enough; + 4 for the banks
#include <algorithm>

#include "launch.h"
#include "lstm_mma.cuh"

namespace lrcn::cuda {
namespace {

constexpr int kUnits = 16, kRows = kLstmClusterRows, kWarps = 16, kThreads = kWarps * 32, kMaxPairs = 8;

struct Shape {
  int tiles, parts;
  int pairs;        // of k-steps a part
  int stride;       // pieces a row
  int64_t d_bytes;  // of one buffer
  int sums;         // floats of the sums of one step
};

Shape shape_of(int64_t H, int64_t blocks) {
  Shape s{};
  s.tiles = static_cast<int>((H + blocks * kUnits - 1) / (blocks * kUnits));
  if (s.tiles * kUnits * kRows > kThreads) return {};  // a thread for each unit and row
  const int pairs = static_cast<int>((H + 7) / 8);
  const int least = (pairs + kWarps / s.tiles - 1) / (kWarps / s.tiles);
  if (least > kMaxPairs) return {};
  for (s.pairs = 2; s.pairs < least;) s.pairs *= 2;
  s.parts = (pairs + s.pairs - 1) / s.pairs;
  const int pieces = static_cast<int>(blocks) * s.tiles * 2;
  if (s.parts * s.pairs > pieces) return {};  // never, if blocks is a power of two: all that is read was sent
  s.stride = pieces * 4 + 4;  // 4 mod 8: two rows of a quarter warp's loads on different banks
  s.d_bytes = int64_t{kRows} * s.stride * 16;
  s.sums = s.parts * kRows * (s.tiles * kUnits + 4);
  return s;
}
int64_t bytes_of(const Shape& s) {
  return s.tiles == 0 ? 0 : 2 * sizeof(Mbarrier) + 2 * s.d_bytes + 4 * 2 * s.sums;
}

template <typename T, int kPairs>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_cluster_backward_kernel(LstmRows all_rows, const __grid_constant__ LstmSequencesBackward sequences,
                                 Shape shape, int blocks) {
  const LstmRows rows = rows_in(all_rows, block_index_y());
  const LstmSequenceBackward& args = sequences.of[block_index_y()];
  auto* const full = reinterpret_cast<Mbarrier*>(shared_dynamic());
  unsigned char* const buffers = shared_dynamic() + 2 * sizeof(Mbarrier);
  float* const all_sums = reinterpret_cast<float*>(buffers + 2 * shape.d_bytes);
  const int lane = lane_index(), warp = warp_index(), g = lane / 4, q = lane % 4;
  const int tile = warp % shape.tiles, part = warp / shape.tiles;
  const int units = shape.tiles * kUnits, first_unit = cluster_rank() * units;  // the block's
  const unsigned d_bytes = kRows * blocks * units * 4 * sizeof(T);
  const int64_t H = rows.H;

  uint32_t weights[kPairs][2][4];  // [pair][k-step]: mma's a
  const int column = first_unit + tile * kUnits + g;
  const T* w = static_cast<const T*>(args.w_hh) + (q * H + part * kPairs * 8) * H + column;
  int left = static_cast<int>(H) - part * kPairs * 8;  // rows of this gate from w on
#pragma unroll
  for (int p = 0; p < kPairs; ++p, w += 8 * H, left -= 8)
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = 4 * s + 2 * (i / 2), right = i % 2 * 8;
        const bool exists = column + right < H;
        const float low = exists && k < left ? to_float(w[k * H + right]) : 0.0f;
        const float high = exists && k + 1 < left ? to_float(w[(k + 1) * H + right]) : 0.0f;
        weights[p][s][i] = pack<T>(low, high);
      }
  if (thread_index() == 0)
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_arrive_expect(&full[i], d_bytes);
    }
  sync_cluster();  // nobody stores before the receiver is ready

  // In the second half of a step this thread is one unit of one row.
  const int my_row = thread_index() / units, my_unit = thread_index() % units, unit = first_unit + my_unit;
  const int64_t row = int64_t{block_index() / blocks} * kRows + my_row;
  BackwardCell<T> cell(rows, row, unit, my_row < kRows && row < rows.B && unit < H);

  for (int64_t n = 0; n < rows.T; ++n) {
    const int64_t t = step_of(rows, rows.T - 1 - n);
    cell.load(rows, args, t);
    float* const sums = all_sums + n % 2 * shape.sums;
    if (n > 0) {
      const int buffer = (n - 1) % 2;
      mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);
      if (thread_index() == 0) mbarrier_arrive_expect(&full[buffer], d_bytes);  // of step n + 1
      if (part < shape.parts) {
        float sum[4] = {};
        const Vec16* const from = reinterpret_cast<const Vec16*>(buffers + buffer * shape.d_bytes) +
                                  g * shape.stride + part * kPairs * 4 + q;
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const Vec16 d_z = from[p * 4];
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const uint32_t b[2] = {d_z.word[2 * s], d_z.word[2 * s + 1]};
            mma<T>(sum, weights[p][s], b);
          }
        }
        float* const to = sums + (part * kRows + 2 * q) * (units + 4) + tile * kUnits + g;
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i % 2 * (units + 4) + i / 2 * 8] = sum[i];
      }
      sync_block();  // all sums are there
    }

    float recurrent = 0.0f, d_z[4];
    if (cell.next_keeps)
#pragma unroll 1
      for (int p = 0; p < shape.parts; ++p) recurrent += sums[(p * kRows + my_row) * (units + 4) + my_unit];
    cell.finish(recurrent, d_z);
    if (n + 1 < rows.T && my_row < kRows) {
      // Two neighbouring units are a word: the even one's thread takes gates i and f of both, the odd one's
      // g, o.
      const bool odd = lane % 2;
      Vec16* const pieces = reinterpret_cast<Vec16*>(buffers + n % 2 * shape.d_bytes) +
                            my_row * shape.stride + unit / 8 * 4 + (odd ? 2 : 0);
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        const float other = shuffle_xor(odd ? d_z[w] : d_z[2 + w], 1);
        const uint32_t pair = odd ? pack<T>(other, d_z[2 + w]) : pack<T>(d_z[w], other);
        for (int rank = 0; rank < blocks; ++rank)
          store_async(&pieces[w].word[unit % 8 / 2], pair, &full[n % 2], rank);
      }
    }
    cell.write(rows, args, t, d_z);
  }
}

template <typename T, int kPairs>
void start(const LstmRows& rows, const LstmSequencesBackward& sequences, const Shape& shape, int64_t blocks,
           Stream stream) {
  const Grid grid{static_cast<unsigned>((rows.B + kRows - 1) / kRows * blocks),
                  static_cast<unsigned>(sequences.count)};
  const unsigned threads =
      static_cast<unsigned>(shape.tiles * 32 * std::max(shape.parts, kUnits * kRows / 32));
  launch(lstm_cluster_backward_kernel<T, kPairs>, grid, threads, static_cast<unsigned>(blocks),
         bytes_of(shape), stream, rows, sequences, shape, static_cast<int>(blocks));
}

}  // namespace

int64_t lstm_cluster_backward_bytes(Dtype dtype, int64_t H, int64_t blocks) {
  if (H <= 0 || blocks < 2 || blocks > kLstmClusterBlocks) return 0;
  if (dtype != Dtype::kFloat16 && dtype != Dtype::kBFloat16) return 0;
  return bytes_of(shape_of(H, blocks));
}

void lstm_cluster_backward(const LstmRows& rows, const LstmSequencesBackward& sequences, int64_t blocks,
                           Stream stream) {
  if (rows.T == 0 || rows.B == 0 || rows.H == 0) return;
  if (lstm_cluster_backward_bytes(rows.dtype, rows.H, blocks) == 0)
    throw std::invalid_argument("lstm_cluster_backward: H must be what " + std::to_string(blocks) +
                                " blocks can hold in half precision, got " + std::to_string(rows.H));
  const Shape shape = shape_of(rows.H, blocks);
  with_half_type("lstm_cluster_backward", rows.dtype, [&](auto type) {
    using T = decltype(type);
    if (shape.pairs == 2) return start<T, 2>(rows, sequences, shape, blocks, stream);
#ifndef LRCN_SIMT  // the same with other numbers
    if (shape.pairs == 4) return start<T, 4>(rows, sequences, shape, blocks, stream);
    start<T, 8>(rows, sequences, shape, blocks, stream);
#endif
  });
}

}  // namespace lrcn::cuda
