// Persistent LSTM forward over the whole grid: one launch runs all T steps, of one direction or of both side
// by side. Blocks along y are groups of rows, those of the second direction after those of the first; groups
// share nothing.
//
// A block owns 8 hidden units, so 32 rows of W_hh, and keeps them in registers, K spread over its 8 warps. In
// a step each warp multiplies its part of K with its part of h_prev, for 8 batch rows at a time on
// mma.m16n8k16 (lstm_mma.cuh), and leaves partial sums [32 gate rows x 8 batch rows] in shared memory. Then
// warp r adds up batch row r of the eight, lane 8 * gate + unit one gate row each, and the gates of a unit
// meet by shuffles.
//
// h travels in pieces: the 8 units of one block and one batch row are 16 bytes, which one thread stores and
// others load atomically. A piece says itself whether it is there. |h| <= 1, so bit 14 of every f16 and bf16
// of it, the top of the exponent, is free:
//
//   bit 14 of the piece   the phase, which changes with every use of the buffer; zeros are "not yet"
//   bit 30                one of the 8 is NaN: readers take all of them for NaN, as W_hh h makes of it anyway
//
// Step n publishes into exchange[n % 2]. That is safe: who publishes h_n has read every piece of h_{n-1}, and
// a block publishes h_{n-1} only after all its warps have read h_{n-2}, the buffer's previous content.
#include "launch.h"
#include "lstm_mma.cuh"

namespace lrcn::cuda {
namespace {

constexpr int kUnits = kLstmGridUnits, kWarps = 8, kThreads = kWarps * 32, kTileRows = 8;
constexpr uint32_t kPhaseBit = 1u << 14, kNanBit = 1u << 30, kSpareBits = kPhaseBit | kNanBit;
constexpr uint32_t kNans = 0x7fff7fffu;

// One tile's sums of one warp. The stride 36 spreads what a warp stores, and what it loads, over all banks.
struct Partial {
  float sum[kTileRows][4 * kUnits + 4];
};
template <int kTiles>
struct GridState {
  Partial partial[2][kTiles][kWarps];  // [step % 2]: one barrier a step is then enough
};

// Waits for a piece and returns it clean.
LRCN_DEVICE Vec16 receive(const Vec16* from, Vec16 piece, uint32_t phase) {
  while ((piece.word[0] & kPhaseBit) != phase) {
    pause();
    piece = load_relaxed(from);
  }
  const bool nan = (piece.word[0] & kNanBit) != 0;
  piece.word[0] &= ~kSpareBits;
  if (nan)
    for (int i = 0; i < 4; ++i) piece.word[i] = kNans;
  return piece;
}

// kPairs pairs of k-steps a warp: H <= 256 kPairs. kTiles tiles of 8 batch rows a group.
template <typename T, int kPairs, int kTiles>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_grid_kernel(LstmRows all_rows, const __grid_constant__ LstmSequences sequences, Vec16* exchanges,
                     int64_t group_rows, unsigned groups) {
  const unsigned direction = block_index_y() / groups;
  const LstmRows rows = rows_in(all_rows, direction);
  const LstmSequence& args = sequences.of[direction];
  auto& state = *reinterpret_cast<GridState<kTiles>*>(shared_dynamic());
  const int lane = lane_index(), warp = warp_index(), g = lane / 4, q = lane % 4;
  const int64_t H = rows.H;
  const int first_unit = block_index() * kUnits, pieces = grid_blocks();
  const int64_t first_row = block_index_y() % groups * group_rows;
  Vec16* const exchange = exchanges + direction * 2 * rows.B * pieces;
  const int count = static_cast<int>(rows.B - first_row < group_rows ? rows.B - first_row : group_rows);

  GateWeights<T, kPairs> weights;
  weights.load(args.w_hh, H, first_unit, warp * kPairs * 32);

  // In the second half of a step this lane is one gate of one unit, of row `warp` of each tile.
  const int gate = lane / kUnits, unit = first_unit + lane % kUnits;
  const bool has_unit = unit < H;
  const T* const xg = static_cast<const T*>(args.xg);
  int64_t length[kTiles]{};
  float cell[kTiles], x[kTiles];
  const auto row_of = [&](int tile) { return first_row + tile * kTileRows + warp; };
  const auto load_x = [&](int64_t n, int tile) {
    const int64_t t = step_of(rows, n);
    return has_unit && t < length[tile] ? to_float(xg[((t * rows.B + row_of(tile)) * 4 + gate) * H + unit])
                                        : 0.0f;
  };
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const bool has_row = tile * kTileRows + warp < count;
    length[tile] = has_row ? length_of(rows, row_of(tile)) : 0;
    cell[tile] =
        has_row && has_unit ? to_float(static_cast<const T*>(args.c0)[row_of(tile) * H + unit]) : 0.0f;
    x[tile] = load_x(0, tile);
  }

  for (int64_t n = 0; n < rows.T; ++n) {
    const int64_t t = step_of(rows, n);
    float x_next[kTiles];  // on its way while we wait
    bool keeps[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      x_next[tile] = n + 1 < rows.T ? load_x(n + 1, tile) : 0.0f;
      keeps[tile] = t < length[tile] && keeps_state(rows, t, row_of(tile));
    }

    if (n > 0) {
      const uint32_t phase = (n - 1) / 2 % 2 == 0 ? kPhaseBit : 0;
      const Vec16* const from = exchange + ((n - 1) % 2 * rows.B + first_row) * pieces;
      const auto piece_at = [&](int tile, int p) {
        return from + (tile * kTileRows + g) * pieces + (warp * kPairs + p) * 4 + q;
      };
      const auto exists = [&](int tile, int p) {
        return tile * kTileRows + g < count && (warp * kPairs + p) * 4 + q < pieces;
      };
      Vec16 piece[kTiles][kPairs];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int p = 0; p < kPairs; ++p)
          piece[tile][p] = exists(tile, p) ? load_relaxed(piece_at(tile, p)) : Vec16{};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float sum[2][4] = {};
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          Vec16 h = piece[tile][p];
          if (exists(tile, p)) h = receive(piece_at(tile, p), h, phase);
          sync_warp();
          weights.multiply(p, h, sum);
        }
        Partial& partial = state.partial[n % 2][tile][warp];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) partial.sum[2 * q + i % 2][(2 * m + i / 2) * kUnits + g] = sum[m][i];
      }
      sync_block();  // all sums are there, and everything of h_{n-1} has been read
    }

#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      if (tile * kTileRows + warp >= count) break;
      const int64_t row = row_of(tile);
      const bool active = t < length[tile], first = is_first(rows, t, length[tile]);
      float z = x[tile];
      if (keeps[tile] && first && has_unit) z += args.z_first[(row * 4 + gate) * H + unit];
      if (keeps[tile] && !first) {
        float recurrent = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) recurrent += state.partial[n % 2][tile][w].sum[warp][lane];
        z += recurrent;
      }
      const float a = gate == 2 ? std::tanh(z) : sigmoid(z);
      const int u = lane % kUnits;
      const float i = shuffle(a, u), f = shuffle(a, kUnits + u), candidate = shuffle(a, 2 * kUnits + u),
                  o = shuffle(a, 3 * kUnits + u);
      float h = 0.0f;
      if (active) {
        cell[tile] = f * (keeps[tile] ? cell[tile] : 0.0f) + i * candidate;
        h = o * std::tanh(cell[tile]);
      }

      const float low = shuffle(h, 2 * (lane % 4)), high = shuffle(h, 2 * (lane % 4) + 1);
      const uint32_t word = pack<T>(low, high);
      Vec16 piece;
#pragma unroll
      for (int w = 0; w < 4; ++w) piece.word[w] = shuffle(word, w);
      if (lane == 0 && n + 1 < rows.T) {
        const uint32_t nan = (piece.word[0] | piece.word[1] | piece.word[2] | piece.word[3]) & kSpareBits;
        piece.word[0] =
            (piece.word[0] & ~kSpareBits) | (nan != 0 ? kNanBit : 0) | (n / 2 % 2 == 0 ? kPhaseBit : 0);
        store_relaxed(exchange + (n % 2 * rows.B + row) * pieces + block_index(), piece);
      }

      if (has_unit) {
        const int64_t at = t * rows.B + row;
        if (gate == 0) put(static_cast<T*>(args.h)[at * H + unit], h);
        if (gate == 1) put(static_cast<T*>(args.c)[at * H + unit], active ? cell[tile] : 0.0f);
        if (args.gates != nullptr)
          put(static_cast<T*>(args.gates)[(at * 4 + gate) * H + unit], active ? a : 0.0f);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) x[tile] = x_next[tile];
  }
}

template <typename T, int kTiles>
void start(const LstmRows& rows, const LstmSequences& sequences, void* exchange, const Grid& grid,
           int64_t group_rows, Stream stream) {
  const auto go = [&](auto kernel) {
    launch(kernel, grid, kThreads, 1, sizeof(GridState<kTiles>), stream, rows, sequences,
           static_cast<Vec16*>(exchange), group_rows, grid.y / static_cast<unsigned>(sequences.count));
  };
  if (rows.H <= 256) return go(lstm_grid_kernel<T, 1, kTiles>);
#ifndef LRCN_SIMT  // the emulator would take minutes for these, and to compile them
  if (rows.H <= 512) return go(lstm_grid_kernel<T, 2, kTiles>);
  if (rows.H <= 768) return go(lstm_grid_kernel<T, 3, kTiles>);
  go(lstm_grid_kernel<T, 4, kTiles>);
#endif
}

}  // namespace

void lstm_grid(const LstmRows& rows, const LstmSequences& sequences, void* exchange, int64_t groups,
               Stream stream) {
  with_groups("lstm_grid", rows, groups, sequences.count,
              [&](auto type, int64_t group_rows, const Grid& grid) {
                using T = decltype(type);
                if (group_rows <= kTileRows)
                  return start<T, 1>(rows, sequences, exchange, grid, group_rows, stream);
                start<T, kLstmGridRows / kTileRows>(rows, sequences, exchange, grid, group_rows, stream);
              });
}

}  // namespace lrcn::cuda
