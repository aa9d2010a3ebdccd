// Persistent LSTM forward, 8 batch rows for each thread-block cluster, or for a block alone: one launch runs
// all T steps, and between them h never leaves shared memory. Along y there is one direction, or both; they
// share nothing.
//
// A block owns `tiles` tiles of 8 hidden units, and K, the units of h_prev, is cut into `parts`; a warp has
// one part of one tile. A step is: wait for h_prev, multiply it with the weights, hand the sums of all parts
// to the warp with the first one, which has all gates of a unit and row in one lane (lstm_mma.cuh), let it
// update the cells and store its part of h into every block of the cluster. The weights stay on the chip: as
// mma operands in registers, or for float32, which is multiplied without tensor cores, in shared memory.
//
// In a cluster the stores count themselves off at the receiver's mbarrier, and nothing else orders the
// blocks. h_n goes to buffer n % 2 and is read in step n + 1. It overwrites h_{n-2}, which is safe: who
// publishes h_n has received all of h_{n-1}, and each tile of that was published after the warps of its block
// had read h_{n-2}.
//
// Dynamic shared memory:
//
//   full     [2]                           mbarriers, one a buffer of h
//   h        [2][8 rows][stride] Vec16     half: pieces of 8 units; zeros past the last
//            [2][units][8 rows] float
//   sums     [2][parts - 1][tiles][8][32]  of the later parts, by lane; [step % 2]: one barrier is enough
//   weights  [H][8 tiles][4 gates] float   float32 only
#include <algorithm>
#include <cstring>

#include "launch.h"
#include "lstm_mma.cuh"

namespace lrcn::cuda {
namespace {

constexpr int kUnits = 8, kRows = kLstmClusterRows, kWarps = 16, kThreads = kWarps * 32, kMaxPairs = 4;

struct Shape {
  int tiles, parts;
  int pairs;        // of k-steps a part: 32 units each
  int stride;       // pieces a row
  int units;        // of the cluster, with those that only fill it up
  int64_t h_bytes;  // of one buffer
  int64_t sums;     // floats of the sums of one step
  int64_t weights;  // floats
};

Shape shape_of(bool half, int64_t H, int64_t blocks) {
  Shape s{};
  s.tiles = static_cast<int>((H + blocks * kUnits - 1) / (blocks * kUnits));
  if (s.tiles > kWarps) return {};
  const int pairs = static_cast<int>((H + 31) / 32);
  s.parts = std::min(kWarps / s.tiles, pairs);
  s.pairs = (pairs + s.parts - 1) / s.parts;
  if (half && s.pairs > kMaxPairs) return {};
  s.parts = (pairs + s.pairs - 1) / s.pairs;
  s.units = static_cast<int>(blocks) * s.tiles * kUnits;
  s.stride = std::max(s.units / kUnits, s.parts * s.pairs * 4);
  s.stride += (12 - s.stride % 8) % 8;  // 4 mod 8: two rows of a quarter warp's loads on different banks
  s.h_bytes = half ? int64_t{kRows} * s.stride * 16 : int64_t{kRows} * s.units * 4;
  s.sums = int64_t{s.parts - 1} * s.tiles * 8 * 32;
  s.weights = half ? 0 : H * s.tiles * kUnits * 4;
  return s;
}
int64_t bytes_of(const Shape& s) {
  return s.tiles == 0 ? 0 : 2 * sizeof(Mbarrier) + 2 * s.h_bytes + 4 * (2 * s.sums + s.weights);
}

// A warp's share of the product: the half types.
template <typename T, int kPairs>
struct Product {
  GateWeights<T, kPairs> weights;

  LRCN_DEVICE void load(const LstmSequence& args, const Shape& s, int64_t H, int first_unit, int part,
                        float*) {
    weights.load(args.w_hh, H, first_unit, part * s.pairs * 32);
  }
  LRCN_DEVICE void multiply(const unsigned char* h, const Shape& s, int64_t, int, int part,
                            float (&sum)[2][4]) const {
    const int g = lane_index() / 4, q = lane_index() % 4;
    const Vec16* const from = reinterpret_cast<const Vec16*>(h) + g * s.stride + part * s.pairs * 4 + q;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) weights.multiply(p, from[p * 4], sum);
  }
};

struct alignas(16) Four {
  float of[4];
};
struct alignas(8) Two {
  float of[2];
};

// float32: lane (g, q) has all gates of unit g and rows 2q, 2q + 1 here too.
template <int kPairs>
struct Product<float, kPairs> {
  const float* weights;

  LRCN_DEVICE void load(const LstmSequence& args, const Shape& s, int64_t H, int first_unit, int, float* to) {
    const float* const w_hh = static_cast<const float*>(args.w_hh);
    const int units = s.tiles * kUnits, first = first_unit / units * units;  // the block's
    for (int64_t i = thread_index(); i < 4 * units * H; i += block_threads()) {
      const int64_t k = i % H, row = i / H, unit = first + row / 4, gate = row % 4;
      to[(k * units + row / 4) * 4 + gate] = unit < H ? w_hh[(gate * H + unit) * H + k] : 0.0f;
    }
    weights = to;
  }
  LRCN_DEVICE void multiply(const unsigned char* h, const Shape& s, int64_t H, int tile, int part,
                            float (&sum)[2][4]) const {
    const int g = lane_index() / 4, q = lane_index() % 4, units = s.tiles * kUnits;
    const int begin = part * s.pairs * 32, end = begin + s.pairs * 32;
    const int last = end < H ? end : static_cast<int>(H);
    const Four* const w = reinterpret_cast<const Four*>(weights) + tile * kUnits + g;
    const Two* const x = reinterpret_cast<const Two*>(h) + q;
#pragma unroll 4
    for (int k = begin; k < last; ++k) {
      const Four w_k = w[k * units];
      const Two h_k = x[k * (kRows / 2)];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
#pragma unroll
        for (int r = 0; r < 2; ++r) sum[gate / 2][gate % 2 * 2 + r] += w_k.of[gate] * h_k.of[r];
    }
  }
};

LRCN_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Stores h of the lane's unit and two rows into a buffer of every block of the cluster.
template <bool kAlone>
LRCN_DEVICE void store(uint32_t* to, uint32_t value, Mbarrier* full, int blocks) {
  if constexpr (kAlone) {
    *to = value;
  } else {
    for (int rank = 0; rank < blocks; ++rank) store_async(to, value, full, rank);
  }
}
template <typename T, bool kAlone>
LRCN_DEVICE void publish(const float (&h)[2], unsigned char* buffer, const Shape& s, int unit, Mbarrier* full,
                         int blocks) {
  const int g = lane_index() / 4, q = lane_index() % 4;
  if constexpr (sizeof(T) == 4) {
    float* const to = reinterpret_cast<float*>(buffer) + unit * kRows + 2 * q;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      store<kAlone>(reinterpret_cast<uint32_t*>(to + r), bits_of(h[r]), full, blocks);
  } else {
    // Two neighbouring units are a word: lanes of even g take row 2q of both, lanes of odd g row 2q + 1.
    const bool odd = g % 2;
    const float other = shuffle_xor(odd ? h[0] : h[1], 4);
    const uint32_t pair = odd ? pack<T>(other, h[1]) : pack<T>(h[0], other);
    Vec16* const piece = reinterpret_cast<Vec16*>(buffer) + (2 * q + odd) * s.stride + unit / kUnits;
    store<kAlone>(&piece->word[g / 2], pair, full, blocks);
  }
}

template <typename T, int kPairs, bool kAlone>
__global__ void __launch_bounds__(kThreads, 1)
    lstm_cluster_kernel(LstmRows all_rows, const __grid_constant__ LstmSequences sequences, Shape shape,
                        int blocks) {
  const LstmRows rows = rows_in(all_rows, block_index_y());
  const LstmSequence& args = sequences.of[block_index_y()];
  auto* const full = reinterpret_cast<Mbarrier*>(shared_dynamic());
  unsigned char* const states = shared_dynamic() + 2 * sizeof(Mbarrier);
  float* const sums = reinterpret_cast<float*>(states + 2 * shape.h_bytes);
  const unsigned state_bytes = kRows * shape.units * sizeof(T);
  const int64_t H = rows.H;
  const int lane = lane_index(), warp = warp_index(), g = lane / 4, q = lane % 4;
  const int tile = warp % shape.tiles, part = warp / shape.tiles;
  const int first_unit = ((kAlone ? 0 : cluster_rank()) * shape.tiles + tile) * kUnits, unit = first_unit + g;

  Product<T, kPairs> product;
  product.load(args, shape, H, first_unit, part, sums + 2 * shape.sums);
  for (int64_t i = thread_index(); i < 2 * shape.h_bytes / 4; i += block_threads())
    reinterpret_cast<uint32_t*>(states)[i] = 0;
  if constexpr (kAlone) {
    sync_block();
  } else {
    if (thread_index() == 0)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(&full[i], 1);
        mbarrier_arrive_expect(&full[i], state_bytes);
      }
    sync_cluster();  // nobody stores before the receiver is ready
  }

  // In the second half of a step this lane has one unit of two rows, if its warp has the first part.
  const int64_t first_row = int64_t{block_index() / blocks} * kRows + 2 * q, own = first_row * H + unit,
                own_gates = first_row * 4 * H + unit;
  bool mine[2]{};
  int length[2]{};
  float cell[2]{}, x[4][2];
  const auto load_x = [&](int64_t t, float (&to)[4][2]) {
    const T* const from = static_cast<const T*>(args.xg) + t * rows.B * 4 * H + own_gates;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        to[gate][r] = t < length[r] ? widen(from[(r * 4 + gate) * H]) : 0.0f;
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    mine[r] = part == 0 && first_row + r < rows.B && unit < H;
    if (mine[r]) {
      length[r] = static_cast<int>(length_of(rows, first_row + r));
      cell[r] = widen(static_cast<const T*>(args.c0)[own + r * H]);
    }
  }
  load_x(step_of(rows, 0), x);

  const int T_end = static_cast<int>(rows.T);  // 32 bits: there is not a register to spare
  for (int n = 0; n < T_end; ++n) {
    const int t = static_cast<int>(step_of(rows, n));
    float x_next[4][2] = {};  // on its way while we wait
    if (n + 1 < T_end) load_x(step_of(rows, n + 1), x_next);

    float sum[2][4] = {};
    if (n > 0) {
      const int buffer = (n - 1) % 2;
      if constexpr (kAlone) {
        sync_block();  // all of h is there
      } else {
        mbarrier_wait(&full[buffer], (n - 1) / 2 % 2);
        if (thread_index() == 0) mbarrier_arrive_expect(&full[buffer], state_bytes);  // of h_{n+1}
      }
      product.multiply(states + buffer * shape.h_bytes, shape, H, tile, part, sum);
      if (shape.parts > 1) {
        float* const parts = sums + n % 2 * shape.sums + tile * 8 * 32 + lane;
        if (part > 0)
#pragma unroll
          for (int i = 0; i < 8; ++i) parts[((part - 1) * shape.tiles * 8 + i) * 32] = sum[i / 4][i % 4];
        sync_block();  // all sums are there
        if (part == 0)
#pragma unroll 1
          for (int p = 0; p < shape.parts - 1; ++p)
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] += parts[(p * shape.tiles * 8 + i) * 32];
      }
    }

    if (part == 0) {
      float h[2], gates[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const bool active = t < length[r], first = is_first(rows, t, length[r]);
        const bool keeps = active && keeps_state(rows, t, first_row + r);
        float z[4];
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          z[gate] = x[gate][r];
          if (keeps)
            z[gate] += first ? args.z_first[own_gates + (r * 4 + gate) * H] : sum[gate / 2][gate % 2 * 2 + r];
          gates[r][gate] = gate == 2 ? std::tanh(z[gate]) : sigmoid(z[gate]);
        }
        h[r] = 0.0f;
        if (active) {
          cell[r] = gates[r][1] * (keeps ? cell[r] : 0.0f) + gates[r][0] * gates[r][2];
          h[r] = gates[r][3] * std::tanh(cell[r]);
        }
      }
      if (n + 1 < T_end)
        publish<T, kAlone>(h, states + n % 2 * shape.h_bytes, shape, unit, &full[n % 2], blocks);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!mine[r]) continue;
        const bool active = t < length[r];
        const int64_t step = t * rows.B * H;
        put(static_cast<T*>(args.h)[step + own + r * H], h[r]);
        put(static_cast<T*>(args.c)[step + own + r * H], active ? cell[r] : 0.0f);
        if (args.gates != nullptr)
#pragma unroll
          for (int gate = 0; gate < 4; ++gate)
            put(static_cast<T*>(args.gates)[4 * step + own_gates + (r * 4 + gate) * H],
                active ? gates[r][gate] : 0.0f);
      }
    }
#pragma unroll
    for (int gate = 0; gate < 4; ++gate)
#pragma unroll
      for (int r = 0; r < 2; ++r) x[gate][r] = x_next[gate][r];
  }
}

template <typename T, int kPairs>
void start(const LstmRows& rows, const LstmSequences& sequences, const Shape& shape, int64_t blocks,
           Stream stream) {
  const Grid grid{static_cast<unsigned>((rows.B + kRows - 1) / kRows * blocks),
                  static_cast<unsigned>(sequences.count)};
  const auto go = [&](auto kernel) {
    const unsigned threads = static_cast<unsigned>(shape.tiles * shape.parts * 32);
    launch(kernel, grid, threads, static_cast<unsigned>(blocks), bytes_of(shape), stream, rows, sequences,
           shape, static_cast<int>(blocks));
  };
  if (blocks == 1) return go(lstm_cluster_kernel<T, kPairs, true>);
  go(lstm_cluster_kernel<T, kPairs, false>);
}

}  // namespace

int64_t lstm_cluster_bytes(Dtype dtype, int64_t H, int64_t blocks) {
  if (H <= 0 || blocks < 1 || blocks > kLstmClusterBlocks || dtype == Dtype::kFloat64) return 0;
  return bytes_of(shape_of(dtype != Dtype::kFloat32, H, blocks));
}

void lstm_cluster(const LstmRows& rows, const LstmSequences& sequences, int64_t blocks, Stream stream) {
  if (rows.T == 0 || rows.B == 0 || rows.H == 0) return;
  if (lstm_cluster_bytes(rows.dtype, rows.H, blocks) == 0)
    throw std::invalid_argument("lstm_cluster: H must be what " + std::to_string(blocks) +
                                " blocks can hold, got " + std::to_string(rows.H));
  const Shape shape = shape_of(rows.dtype != Dtype::kFloat32, rows.H, blocks);
  if (rows.dtype == Dtype::kFloat32) return start<float, 0>(rows, sequences, shape, blocks, stream);
  with_half_type("lstm_cluster", rows.dtype, [&](auto type) {
    using T = decltype(type);
    if (shape.pairs == 1) return start<T, 1>(rows, sequences, shape, blocks, stream);
#ifndef LRCN_SIMT_MUTANT
    if (shape.pairs == 3) return start<T, 3>(rows, sequences, shape, blocks, stream);
#endif
#ifndef LRCN_SIMT  // the same with other numbers
    if (shape.pairs == 2) return start<T, 2>(rows, sequences, shape, blocks, stream);
    start<T, 4>(rows, sequences, shape, blocks, stream);
#endif
  });
}

}  // namespace lrcn::cuda
