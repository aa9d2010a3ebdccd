// What it costs to get blocks together, and a value from one to the others: n rounds of each way in one
// launch. Timed by gpu_micro.py, as the difference between launches with more and fewer rounds.
#include <exception>
#include <string>

#include "../csrc/cuda/device.cuh"
#include "../csrc/cuda/launch.h"

namespace lrcn::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;

// All threads of the grid, by the hardware's own means.
__global__ void grid_sync_kernel(int n) {
  for (int i = 0; i < n; ++i) sync_grid();
}

// The same by a counter in global memory, zero at first.
__global__ void counter_kernel(uint32_t* counter, int n) {
  for (int i = 1; i <= n; ++i) {
    sync_block();
    if (thread_index() == 0) {
      add_release(counter, 1);
      while (load_acquire(counter) < i * grid_blocks()) pause();
    }
    sync_block();
  }
}

// Each block publishes a piece of 16 bytes and every warp gets its share of everybody's, as lstm_grid.cu
// does: pieces [2][blocks], zeros at first; word 0 is the round.
__global__ void in_band_kernel(Vec16* pieces, int n) {
  const unsigned blocks = grid_blocks();
  for (int i = 1; i <= n; ++i) {
    Vec16* const round = pieces + i % 2 * blocks;
    if (thread_index() == 0) {
      Vec16 piece{};
      piece.word[0] = i;
      store_relaxed(round + block_index(), piece);
    }
    for (unsigned b = thread_index(); b < blocks; b += kThreads)
      while (load_relaxed(round + b).word[0] != static_cast<uint32_t>(i)) pause();
    sync_block();  // nobody publishes round i + 1 before all of the block have read round i
  }
}

// All threads of a cluster.
__global__ void cluster_sync_kernel(int n) {
  for (int i = 0; i < n; ++i) sync_cluster();
}

// Each of the first `words` threads of a block sends 4 bytes to every block of the cluster, which waits for
// all of them, as lstm_cluster.cu does.
struct Mailbox {
  uint32_t word[2][16][kThreads];
  Mbarrier full[2];
};
__global__ void push_kernel(uint32_t* out, unsigned blocks, unsigned words, int n) {
  auto& mailbox = shared<Mailbox>();
  const unsigned rank = cluster_rank(), bytes = blocks * words * 4;
  if (thread_index() == 0)
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&mailbox.full[i], 1);
      mbarrier_arrive_expect(&mailbox.full[i], bytes);
    }
  sync_cluster();
  uint32_t value = 0;
  for (int i = 0; i < n; ++i) {
    const int slot = i % 2;
    if (thread_index() < words)
      for (unsigned to = 0; to < blocks; ++to)
        store_async(&mailbox.word[slot][rank][thread_index()], value + 1, &mailbox.full[slot], to);
    mbarrier_wait(&mailbox.full[slot], i / 2 % 2);
    if (thread_index() < words) value = mailbox.word[slot][(rank + 1) % blocks][thread_index()];
    sync_block();  // all have read it, and seen the phase end
    if (thread_index() == 0) mbarrier_arrive_expect(&mailbox.full[slot], bytes);
  }
  if (thread_index() < words) out[block_index() * words + thread_index()] = value;
}

// Every block reads the same `pieces` of 16 bytes, n times.
__global__ void broadcast_kernel(const Vec16* from, uint32_t* out, unsigned pieces, int n) {
  uint32_t sum = 0;
  for (int i = 0; i < n; ++i)
#pragma unroll 4
    for (unsigned p = thread_index(); p < pieces; p += kThreads) sum += load_l2(from + p).word[i % 4];
  out[block_index() * kThreads + thread_index()] = sum;
}

}  // namespace
}  // namespace lrcn::cuda

using namespace lrcn::cuda;

// which: the kernels above in their order. size: words of push, pieces of broadcast. scratch: 16 MiB, 16-byte
// aligned, of zeros. Returns nullptr, or what went wrong.
extern "C" __attribute__((visibility("default"))) const char* micro(int which, unsigned blocks,
                                                                    unsigned cluster, unsigned size, int n,
                                                                    void* scratch) {
  static std::string message;
  auto* const words = static_cast<uint32_t*>(scratch);
  auto* const pieces = static_cast<Vec16*>(scratch);
  const Grid grid{blocks}, together{blocks, 1, true};
  try {
    switch (which) {
      case 0:
        launch(grid_sync_kernel, together, kThreads, 1, 0, nullptr, n);
        break;
      case 1:
        launch(counter_kernel, together, kThreads, 1, 0, nullptr, words, n);
        break;
      case 2:
        launch(in_band_kernel, together, kThreads, 1, 0, nullptr, pieces, n);
        break;
      case 3:
        launch(cluster_sync_kernel, grid, kThreads, cluster, 0, nullptr, n);
        break;
      case 4:
        launch(push_kernel, grid, kThreads, cluster, 0, nullptr, words, cluster, size, n);
        break;
      case 5:
        launch(broadcast_kernel, grid, kThreads, 1, 0, nullptr, pieces, words + (2 << 20), size, n);
        break;
    }
    return nullptr;
  } catch (const std::exception& e) {
    message = e.what();
    return message.c_str();
  }
}
