// Persistent LSTM backward over the whole grid: one launch runs all T steps, last to first, of one direction
// or of both side by side. Blocks along y are groups of rows as in lstm_grid.cu; groups share nothing.
//
//   d_h[t] = (gradient of the output h[t]) + d_z[later] W_hh        then one cell per (row, unit):
//   BackwardCell
//
// A block owns 8 hidden units: it computes d_z of their 4 gates, and holds the 8 columns of W_hh in registers
// with which everybody's d_z becomes d_h of its units. K = 4H is spread over 8 warps, 16 batch rows at a time
// on mma.m16n8k16 with the batch on M and the units on N; warps leave partial sums in shared memory.
//
// d_z travels through d_xg, the output, where it stays: there is no buffer to reuse. After step n a block
// stores n + 1 to its place in `done` with release; a warp waits, with acquire, for the blocks whose d_z it
// multiplies.
//
// The operands' k order is free as long as both agree. A lane's registers of two k-steps are 16 bytes of
// d_xg, the 8 units of one block (the producer) and one gate; neighbouring lanes take neighbouring producers,
// so that a warp reads whole sectors of 32 bytes:
//
//   pair = (producers 2P and 2P + 1, gates 2y and 2y + 1)     lane q: producer 2P + q % 2, gate 2y + q / 2
//   k-step s of 2, register r of 2, half e of 2   <->   unit 8 producer + 4 s + 2 r + e
#include "launch.h"
#include "lstm_mma.cuh"

namespace lrcn::cuda {
namespace {

constexpr int kUnits = kLstmGridUnits, kWarps = 8, kThreads = kWarps * 32, kTileRows = 16;

template <int kTiles>
struct BackwardState {
  float partial[kTiles][kWarps][kTileRows][kUnits];
};

// kProducers producers a warp, an even number: H <= 64 kProducers. kTiles tiles of 16 batch rows a group.
template <typename T, int kProducers, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_grid_backward_kernel(LstmRows all_rows, const __grid_constant__ LstmSequencesBackward sequences,
                              uint32_t* all_done, int64_t group_rows, unsigned groups) {
  const unsigned direction = block_index_y() / groups;
  const LstmRows rows = rows_in(all_rows, direction);
  const LstmSequenceBackward& args = sequences.of[direction];
  auto& state = shared<BackwardState<kTiles>>();
  const int lane = lane_index(), warp = warp_index(), g = lane / 4, q = lane % 4;
  const int64_t H = rows.H;
  const int first_unit = block_index() * kUnits, blocks = grid_blocks(), first_producer = warp * kProducers;
  const int64_t first_row = block_index_y() % groups * group_rows;
  const int count = static_cast<int>(rows.B - first_row < group_rows ? rows.B - first_row : group_rows);
  uint32_t* const done = all_done + block_index_y() * blocks;

  uint32_t weights[kProducers][2][2];  // [pair][k-step]: mma's b
#pragma unroll
  for (int p = 0; p < kProducers; ++p)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int producer = first_producer + p / 2 * 2 + q % 2, gate = p % 2 * 2 + q / 2;
      const T* const from =
          static_cast<const T*>(args.w_hh) + (gate * H + producer * kUnits + 2 * i) * H + first_unit + g;
      weights[p][i / 2][i % 2] = producer < blocks ? pack<T>(to_float(from[0]), to_float(from[H])) : 0;
    }

  // In the second half of a step this thread is one unit of one row.
  const int my_row = thread_index() / kUnits, my_unit = thread_index() % kUnits;
  BackwardCell<T> cell(rows, first_row + my_row, first_unit + my_unit, my_row < count);

  for (int64_t n = 0; n < rows.T; ++n) {
    const int64_t t = step_of(rows, rows.T - 1 - n);
    cell.load(rows, args, t);

    if (n > 0) {
      if (lane < kProducers && first_producer + lane < blocks)
        while (load_acquire(done + first_producer + lane) < static_cast<uint32_t>(n)) pause();
      sync_warp();  // d_z of the later step is there, for all lanes
      const T* const d_z = static_cast<const T*>(args.d_xg) + later(rows, t) * rows.B * 4 * H;
#pragma unroll 1  // both at once do not fit into the registers
      for (int tile = 0; tile < kTiles; ++tile) {
        float sum[4] = {};
        // Where this lane's first pair lies, in rows g and g + 8 of the tile; the others are constants away.
        const T* const from =
            d_z + ((first_row + tile * kTileRows + g) * 4 + q / 2) * H + (first_producer + q % 2) * kUnits;
        const bool has_low = tile * kTileRows + g < count, has_high = tile * kTileRows + g + 8 < count;
#pragma unroll
        for (int p = 0; p < kProducers; ++p) {
          const T* const piece = from + p % 2 * 2 * H + p / 2 * 2 * kUnits;
          const bool exists = first_producer + p / 2 * 2 + q % 2 < blocks;
          const Vec16 low = exists && has_low ? load_l2(piece) : Vec16{};
          const Vec16 high = exists && has_high ? load_l2(piece + 32 * H) : Vec16{};
          sync_warp();
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const uint32_t a[4] = {low.word[2 * s], high.word[2 * s], low.word[2 * s + 1],
                                   high.word[2 * s + 1]};
            mma<T>(sum, a, weights[p][s]);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) state.partial[tile][warp][g + i / 2 * 8][2 * q + i % 2] = sum[i];
      }
      sync_block();  // all sums are there
    }

    float recurrent = 0.0f, d_z[4];
    if (cell.next_keeps)
#pragma unroll
      for (int w = 0; w < kWarps; ++w)
        recurrent += state.partial[my_row / kTileRows][w][my_row % kTileRows][my_unit];
    cell.finish(recurrent, d_z);
    cell.write(rows, args, t, d_z);
    sync_block();  // the block's d_z is written, and the sums are read
    if (thread_index() == 0) store_release(done + block_index(), static_cast<uint32_t>(n + 1));
  }
}

template <typename T, int kTiles>
void start(const LstmRows& rows, const LstmSequencesBackward& sequences, uint32_t* done, const Grid& grid,
           int64_t group_rows, Stream stream) {
  const auto go = [&](auto kernel) {
    launch(kernel, grid, kThreads, 1, 0, stream, rows, sequences, done, group_rows,
           grid.y / static_cast<unsigned>(sequences.count));
  };
  if (rows.H <= 256) return go(lstm_grid_backward_kernel<T, 4, kTiles>);
#ifndef LRCN_SIMT  // the emulator would take minutes for these, and to compile them
  if (rows.H <= 512) return go(lstm_grid_backward_kernel<T, 8, kTiles>);
  if (rows.H <= 768) return go(lstm_grid_backward_kernel<T, 12, kTiles>);
  go(lstm_grid_backward_kernel<T, 16, kTiles>);
#endif
}

}  // namespace

void lstm_grid_backward(const LstmRows& rows, const LstmSequencesBackward& sequences, uint32_t* done,
                        int64_t groups, Stream stream) {
  if (rows.H % kUnits != 0)
    throw std::invalid_argument("lstm_grid_backward: H must be a multiple of 8, got " +
                                std::to_string(rows.H));
  with_groups("lstm_grid_backward", rows, groups, sequences.count,
              [&](auto type, int64_t group_rows, const Grid& grid) {
                using T = decltype(type);
                if (group_rows <= kTileRows)
                  return start<T, 1>(rows, sequences, done, grid, group_rows, stream);
                start<T, kLstmGridRows / kTileRows>(rows, sequences, done, grid, group_rows, stream);
              });
}

}  // namespace lrcn::cuda
