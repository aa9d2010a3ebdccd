// Everything a kernel takes from the hardware beyond plain C++, as small named functions.
//
// Two implementations: inline PTX below, and tests/simt/device.h (-DLRCN_SIMT), which runs the same
// kernel on the CPU with its threads as fibers. The comment above a function is the contract of both.
//
// Conventions: blocks are one-dimensional and a multiple of 32 threads; grids have x and y; clusters
// lie along x. "ordered before" means: visible to, and not racing with, what follows on the other side.
#pragma once

#include <cstdint>

namespace lrcn::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

struct alignas(16) Vec16 {  // 16 bytes that move in one instruction
  uint32_t word[4];
};

struct alignas(8) Mbarrier {  // lives in shared memory; only mbarrier_* functions may touch it
  uint64_t bits;
};

}  // namespace lrcn::cuda

#ifdef LRCN_SIMT
#include "simt/device.h"
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define LRCN_DEVICE __device__ __forceinline__

// Clusters, transaction barriers and st.async need sm_90. In an sm_80 build their functions compile
// to a trap, so that one source serves every architecture; launchers never start them there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define LRCN_SM90(...) __VA_ARGS__
#else
#define LRCN_SM90(...) __trap()
#endif

namespace lrcn::cuda {

// --- numbers -----------------------------------------------------------------------------------

using bf16 = __nv_bfloat16;
using f16 = __half;

LRCN_DEVICE float to_float(bf16 x) {
  return __bfloat162float(x);
}
LRCN_DEVICE float to_float(f16 x) {
  return __half2float(x);
}
// To the nearest, ties to even.
LRCN_DEVICE bf16 to_bf16(float x) {
  return __float2bfloat16_rn(x);
}
LRCN_DEVICE f16 to_f16(float x) {
  return __float2half_rn(x);
}

// Two numbers of a half type in one register, `low` at the lower address, rounded to the nearest: the operand
// format of mma. A NaN stays one.
template <typename T>
LRCN_DEVICE uint32_t pack(float low, float high);
template <>
LRCN_DEVICE uint32_t pack<bf16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
LRCN_DEVICE uint32_t pack<f16>(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// --- where am I --------------------------------------------------------------------------------

LRCN_DEVICE unsigned thread_index() {
  return threadIdx.x;
}
LRCN_DEVICE unsigned block_threads() {
  return blockDim.x;
}
LRCN_DEVICE unsigned lane_index() {
  return threadIdx.x % 32;
}
LRCN_DEVICE unsigned warp_index() {
  return threadIdx.x / 32;
}
LRCN_DEVICE unsigned block_index() {
  return blockIdx.x;
}
LRCN_DEVICE unsigned block_index_y() {
  return blockIdx.y;
}
LRCN_DEVICE unsigned grid_blocks() {
  return gridDim.x;
}

// --- shared memory -----------------------------------------------------------------------------

// The block's one object of type T, uninitialised. Kernels declare a struct and take it from here.
template <typename T>
LRCN_DEVICE T& shared() {
  __shared__ T object;
  return object;
}

// The launch's dynamic shared memory, 128-byte aligned.
LRCN_DEVICE unsigned char* shared_dynamic() {
  extern __shared__ __align__(128) unsigned char lrcn_dynamic_shared[];
  return lrcn_dynamic_shared;
}

// The 32-bit address PTX wants for the block's own shared memory.
LRCN_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- barriers ----------------------------------------------------------------------------------

// All threads of the block must come, none may have returned. Orders all memory among them.
LRCN_DEVICE void sync_block() {
  __syncthreads();
}

// The lanes of `mask`, each in its own mask. Orders their memory.
LRCN_DEVICE void sync_warp(unsigned mask = kFullWarp) {
  __syncwarp(mask);
}

// All threads of the grid; cooperative launches only. Slow: microseconds.
LRCN_DEVICE void sync_grid() {
  cooperative_groups::this_grid().sync();
}

// --- warp exchange -----------------------------------------------------------------------------

// The lanes of `mask` come together and swap registers; they order no memory. T has 4 or 8 bytes. The
// lane read from must be in the mask; past the end of the warp a lane gets its own value.
template <typename T>
LRCN_DEVICE T shuffle(T value, int lane, unsigned mask = kFullWarp) {
  return __shfl_sync(mask, value, lane);
}
template <typename T>
LRCN_DEVICE T shuffle_xor(T value, int bits, unsigned mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, bits);
}
template <typename T>
LRCN_DEVICE T shuffle_down(T value, int distance, unsigned mask = kFullWarp) {
  return __shfl_down_sync(mask, value, distance);
}

// --- global memory between blocks ----------------------------------------------------------------
//
// GPU scope. What a thread did (or learned through a barrier) before a release is ordered before what
// follows an acquire that read the released value. Relaxed ones are atomic and order nothing else.

LRCN_DEVICE uint32_t load_relaxed(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
LRCN_DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
LRCN_DEVICE void store_relaxed(uint32_t* p, uint32_t value) {
  asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
LRCN_DEVICE void store_release(uint32_t* p, uint32_t value) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
// Atomic additions; they return the value before.
LRCN_DEVICE uint32_t add_relaxed(uint32_t* p, uint32_t value) {
  uint32_t old;
  asm volatile("atom.relaxed.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}
LRCN_DEVICE uint32_t add_acquire(uint32_t* p, uint32_t value) {
  uint32_t old;
  asm volatile("atom.acquire.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}
LRCN_DEVICE uint32_t add_release(uint32_t* p, uint32_t value) {
  uint32_t old;
  asm volatile("atom.release.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}
LRCN_DEVICE uint32_t add_acq_rel(uint32_t* p, uint32_t value) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}

// Plain 16-byte accesses that go to L2 and leave L1 alone: for data another block wrote or will read.
// Not atomic, so a release/acquire pair must order the two sides.
LRCN_DEVICE Vec16 load_l2(const void* p) {
  Vec16 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
}
LRCN_DEVICE void store_l2(void* p, Vec16 v) {
  asm volatile("st.global.cg.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]),
               "r"(v.word[2]), "r"(v.word[3])
               : "memory");
}

// 16 bytes, relaxed and atomic as a whole: for in-band exchange, where the poll is the load.
LRCN_DEVICE Vec16 load_relaxed(const Vec16* p) {
  union {
    uint64_t half[2];
    Vec16 v;
  };
  asm volatile("{ .reg .b128 r; ld.relaxed.gpu.global.b128 r, [%2]; mov.b128 {%0, %1}, r; }"
               : "=l"(half[0]), "=l"(half[1])
               : "l"(p)
               : "memory");
  return v;
}
LRCN_DEVICE void store_relaxed(Vec16* p, Vec16 value) {
  union {
    Vec16 v;
    uint64_t half[2];
  };
  v = value;
  asm volatile("{ .reg .b128 r; mov.b128 r, {%1, %2}; st.relaxed.gpu.global.b128 [%0], r; }" ::"l"(p),
               "l"(half[0]), "l"(half[1])
               : "memory");
}

// In every polling loop, once per round: the emulator schedules others there. Free on the GPU, where one
// polling thread per block needs no back-off.
LRCN_DEVICE void pause() {}

// --- asynchronous copies into shared memory ------------------------------------------------------

// 16 bytes, global to shared, both aligned. Copies since the last commit form a group; cp_async_wait<N>
// returns when all but this thread's last N groups have landed. Until then nobody may touch `to`;
// after it only this thread sees the data: others need a barrier as well.
LRCN_DEVICE void cp_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
LRCN_DEVICE void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
LRCN_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- tensor cores ------------------------------------------------------------------------------

// d += a b on a 16x16 by 16x8 tile, a whole warp, bf16 or f16 in and float out. g = lane / 4, q = lane % 4:
//   a[0], a[1]  rows g and g + 8 of a, columns 2q, 2q + 1     a[2], a[3]  the same, columns + 8
//   b[0], b[1]  rows 2q, 2q + 1 (and + 8) of b, column g
//   d[0..1]     row g, columns 2q, 2q + 1                     d[2..3]     row g + 8
template <typename T>
LRCN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
LRCN_DEVICE void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
LRCN_DEVICE void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- clusters (sm_90) ----------------------------------------------------------------------------

LRCN_DEVICE unsigned cluster_rank() {
  unsigned rank = 0;
  LRCN_SM90(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
  return rank;
}

// All threads of the cluster. Orders all memory among them, distributed shared memory included. A
// block must not exit while a peer may still touch its shared memory: this is how to make sure.
LRCN_DEVICE void sync_cluster() {
  LRCN_SM90(asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" :: : "memory"));
}

// Where the object at `own` lies in block `rank` of the cluster: plain loads and stores may use it.
template <typename T>
LRCN_DEVICE T* peer_shared(T* own, unsigned rank) {
  uint64_t peer = 0;
  LRCN_SM90(asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(own), "r"(rank)));
  return reinterpret_cast<T*>(peer);
}

// --- mbarrier (sm_90) ----------------------------------------------------------------------------
//
// A phase completes when `count` arrivals have come and every expected byte has been stored; the next
// one starts at once, with the same count. Phases alternate parity, beginning with 0.
//
// Block scope: an arrival releases to its own block only. With cluster scope, nvcc 13 puts a MEMBAR.ALL.GPU
// before every arrival and an L1 invalidation after every wait, on the path of each step. From peers a wait
// gets the values of store_async, and that they have done their reads; plain stores to a peer's shared
// memory need sync_cluster.

// By one thread; everyone else needs a barrier (sync_cluster for peers) before the first use.
LRCN_DEVICE void mbarrier_init(Mbarrier* barrier, unsigned count) {
  LRCN_SM90(
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\nfence.mbarrier_init.release.cluster;" ::"r"(
                       shared_address(barrier)),
                   "r"(count) : "memory"));
}

// One arrival at the barrier of block `rank` of the cluster. To a peer it says: I have read, you may
// overwrite.
LRCN_DEVICE void mbarrier_arrive(Mbarrier* own, unsigned rank) {
  LRCN_SM90(
      asm volatile("{ .reg .b32 peer; mapa.shared::cluster.u32 peer, %0, %1;\n"
                   "mbarrier.arrive.shared::cluster.b64 _, [peer]; }" ::"r"(shared_address(own)),
                   "r"(rank) : "memory"));
}

// One arrival at the block's own barrier which adds `bytes` to what its current phase waits for.
LRCN_DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
  LRCN_SM90(
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                   "r"(bytes) : "memory"));
}

// Returns once the current phase has a parity other than `parity`, so when the latest phase of that
// parity is over. Who may fall two phases behind waits for the wrong one.
LRCN_DEVICE void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  LRCN_SM90(uint32_t done;
            do asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                            "selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(shared_address(barrier)),
                            "r"(parity) : "memory");
            while (!done));
}

// Stores `value` to where `own` lies in block `rank`, later, and then counts 4 bytes off that block's
// `barrier`. A wait on that phase sees the value. Nothing else this thread wrote is released.
LRCN_DEVICE void store_async(uint32_t* own, uint32_t value, Mbarrier* barrier, unsigned rank) {
  LRCN_SM90(asm volatile(
      "{ .reg .b32 to, bar; mapa.shared::cluster.u32 to, %0, %3; mapa.shared::cluster.u32 bar, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [to], %1, [bar]; }" ::"r"(
          shared_address(own)),
      "r"(value), "r"(shared_address(barrier)), "r"(rank) : "memory"));
}

}  // namespace lrcn::cuda

#endif  // LRCN_SIMT
