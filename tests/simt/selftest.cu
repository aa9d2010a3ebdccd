// One small kernel per group of primitives of device.cuh that the real kernels leave out, so that each has
// a test on the emulator and, unchanged, on a GPU.
#include "../../csrc/cuda/device.cuh"
#include "../../csrc/cuda/launch.h"
#include "selftest.h"

namespace lrcn::cuda {
namespace {

// out [3, 32]: lane 5's value; the value 3 lanes on; the sum over each half of the warp, by half masks.
__global__ void shuffle_kernel(const float* in, float* out) {
  const unsigned lane = lane_index();
  const float x = in[lane];
  out[lane] = shuffle(x, 5);
  out[32 + lane] = float(shuffle_down(double(x), 3));
  float sum = x;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int bits = 8; bits > 0; bits /= 2) sum += shuffle_xor(sum, bits, half);
  out[64 + lane] = sum;
}

// out [1] = sum of in [grid * 64]: a tree in dynamic shared memory, then the last block to finish adds up.
__global__ void reduce_kernel(const float* in, float* out, float* partial, uint32_t* counter) {
  auto* sums = reinterpret_cast<float*>(shared_dynamic());
  const unsigned i = thread_index();
  sums[i] = in[block_index() * 64 + i];
  sync_block();
  if (i >= 32) return;
  sums[i] += sums[i + 32];
  for (unsigned n = 16; n > 0; n /= 2) {
    sync_warp();
    if (i < n) sums[i] += sums[i + n];
  }
  if (i != 0) return;
  partial[block_index()] = sums[0];
  if (add_acq_rel(counter, 1) + 1 < grid_blocks()) return;
  float total = 0;
  for (unsigned b = 0; b < grid_blocks(); ++b) total += partial[b];
  out[0] = total;
}

// out [grid, 128]: each block's slice of in, rotated by one block, twice, through scratch.
__global__ void rotate_kernel(const float* in, float* out, float* scratch) {
  const unsigned next = (block_index() + 1) % grid_blocks(), at = thread_index() * 4;
  store_l2(scratch + next * 128 + at, load_l2(in + block_index() * 128 + at));
  sync_grid();
  store_l2(out + next * 128 + at, load_l2(scratch + block_index() * 128 + at));
}

// out [grid]: the sum of the cluster's ranks' values, read straight from the peers' shared memory.
__global__ void peers_kernel(const float* in, float* out) {
  auto& mine = shared<float>();
  if (thread_index() == 0) mine = in[block_index()];
  sync_cluster();
  if (thread_index() == 0) {
    float sum = 0;
    for (unsigned rank = 0; rank < 4; ++rank) sum += *peer_shared(&mine, rank);
    out[block_index()] = sum;
  }
  sync_cluster();  // nobody leaves while a peer reads
}

// out [n, 32] = in [n, 32]: rank 0 sends rows to rank 1, which has room for two and says when a row is read.
struct Pipe {
  uint32_t row[2][32];
  Mbarrier full[2], empty[2];
};
__global__ void pipe_kernel(const float* in, float* out, int n) {
  auto& pipe = shared<Pipe>();
  const unsigned lane = lane_index();
  if (lane == 0)
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&pipe.full[i], 1);
      mbarrier_init(&pipe.empty[i], 32);
    }
  sync_cluster();
  for (int t = 0; t < n; ++t) {
    const int slot = t % 2, round = t / 2;
    if (cluster_rank() == 0) {
      if (round > 0) mbarrier_wait(&pipe.empty[slot], (round - 1) % 2);
      uint32_t bits;
      const float x = in[t * 32 + lane];
      memcpy(&bits, &x, 4);
      store_async(&pipe.row[slot][lane], bits, &pipe.full[slot], 1);
    } else {
      if (lane == 0) mbarrier_arrive_expect(&pipe.full[slot], 128);
      mbarrier_wait(&pipe.full[slot], round % 2);
      float x;
      memcpy(&x, &pipe.row[slot][lane], 4);
      out[t * 32 + lane] = x;
      mbarrier_arrive(&pipe.empty[slot], 0);
    }
  }
  sync_cluster();
}

// out [n]: block 0 sends n numbers to block 1 through a mailbox where the tag travels with the data.
__global__ void mailbox_kernel(const float* in, float* out, Vec16* mailbox, int n) {
  if (thread_index() != 0) return;
  Vec16* forth = mailbox;
  Vec16* back = mailbox + 1;
  for (uint32_t t = 1; t <= uint32_t(n); ++t) {
    Vec16 message{};
    if (block_index() == 0) {
      memcpy(&message.word[0], &in[t - 1], 4);
      message.word[3] = t;
      store_relaxed(forth, message);
      while (load_relaxed(back).word[3] != t) pause();
    } else {
      while ((message = load_relaxed(forth)).word[3] != t) pause();
      memcpy(&out[t - 1], &message.word[0], 4);
      store_relaxed(back, message);
    }
  }
}

// out [16, 8] = a [16, 16] b [16, 8], a and b as bf16 pairs in in: first a by rows, then b by columns.
__global__ void mma_kernel(const uint32_t* in, float* out) {
  const unsigned g = lane_index() / 4, q = lane_index() % 4;
  const uint32_t* b_in = in + 16 * 8;
  const uint32_t a[4] = {in[g * 8 + q], in[(g + 8) * 8 + q], in[g * 8 + q + 4], in[(g + 8) * 8 + q + 4]};
  const uint32_t b[2] = {b_in[g * 8 + q], b_in[g * 8 + q + 4]};
  float d[4] = {};
  mma<bf16>(d, a, b);
  for (unsigned i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

}  // namespace

void selftest(int which, const float* in, float* out, void* scratch, int n, Stream stream) {
  auto* floats = static_cast<float*>(scratch);
  auto* counter = static_cast<uint32_t*>(scratch);
  const Grid grid{unsigned(n)}, together{unsigned(n), 1, true}, pair{2, 1, true};
  switch (which) {
    case 0:
      return launch(shuffle_kernel, Grid{1}, 32, 1, 0, stream, in, out);
    case 1:
      return launch(reduce_kernel, grid, 64, 1, 256, stream, in, out, floats + 1, counter);
    case 2:
      return launch(rotate_kernel, together, 32, 1, 0, stream, in, out, floats);
    case 3:
      return launch(peers_kernel, grid, 32, 4, 0, stream, in, out);
    case 4:
      return launch(pipe_kernel, Grid{2}, 32, 2, 0, stream, in, out, n);
    case 5:
      return launch(mailbox_kernel, pair, 32, 1, 0, stream, in, out, static_cast<Vec16*>(scratch), n);
    case 6:
      return launch(mma_kernel, Grid{1}, 32, 1, 0, stream, reinterpret_cast<const uint32_t*>(in), out);
  }
}

}  // namespace lrcn::cuda
