// csrc/cuda/device.cuh for the host compiler. Contracts are written there; this file only declares the
// same names, and primitives.cpp implements them on the engine.
//
// Nothing here touches memory inline: with -fsanitize=thread the compiler would instrument it as if it
// were the kernel's own access.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <typeinfo>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define LRCN_DEVICE inline
#define SIMT_INLINE inline __attribute__((always_inline))  // so that a report finds the caller's line

namespace lrcn::cuda {

// 16 bits. Copies are written out, because GCC's sanitizer reports no load of an aggregate that is passed on
// as an argument.
struct Bits16 {
  uint16_t bits;
  Bits16() = default;
  SIMT_INLINE explicit Bits16(uint16_t b) : bits(b) {}
  SIMT_INLINE Bits16(const Bits16& other) : bits(other.bits) {}
  SIMT_INLINE Bits16& operator=(const Bits16& other) {
    bits = other.bits;
    return *this;
  }
};
struct bf16 : Bits16 {
  using Bits16::Bits16;
};
float to_float(bf16 x);
bf16 to_bf16(float x);
struct f16 : Bits16 {
  using Bits16::Bits16;
};
float to_float(f16 x);
f16 to_f16(float x);
template <typename T>
uint32_t pack(float low, float high);
template <>
uint32_t pack<bf16>(float low, float high);
template <>
uint32_t pack<f16>(float low, float high);

unsigned thread_index();
unsigned block_threads();
unsigned lane_index();
unsigned warp_index();
unsigned block_index();
unsigned block_index_y();
unsigned grid_blocks();

// Every block finds the object of a type at the same offset of its own memory.
void* shared_object(const std::type_info& type, size_t bytes, size_t alignment);
template <typename T>
SIMT_INLINE T& shared() {
  return *static_cast<T*>(shared_object(typeid(T), sizeof(T), alignof(T)));
}
unsigned char* shared_dynamic();

void sync_block();
void sync_warp(unsigned mask = kFullWarp);
void sync_grid();

enum class Shuffle { index, bitwise_xor, down };
uint64_t shuffle_bits(Shuffle kind, uint64_t bits, int operand, unsigned mask);
template <typename T>
SIMT_INLINE T shuffle_as(Shuffle kind, T value, int operand, unsigned mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffle: T must have 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(kind, bits, operand, mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <typename T>
SIMT_INLINE T shuffle(T value, int lane, unsigned mask = kFullWarp) {
  return shuffle_as(Shuffle::index, value, lane, mask);
}
template <typename T>
SIMT_INLINE T shuffle_xor(T value, int bits, unsigned mask = kFullWarp) {
  return shuffle_as(Shuffle::bitwise_xor, value, bits, mask);
}
template <typename T>
SIMT_INLINE T shuffle_down(T value, int distance, unsigned mask = kFullWarp) {
  return shuffle_as(Shuffle::down, value, distance, mask);
}

uint32_t load_relaxed(const uint32_t* p);
uint32_t load_acquire(const uint32_t* p);
void store_relaxed(uint32_t* p, uint32_t value);
void store_release(uint32_t* p, uint32_t value);
uint32_t add_relaxed(uint32_t* p, uint32_t value);
uint32_t add_acquire(uint32_t* p, uint32_t value);
uint32_t add_release(uint32_t* p, uint32_t value);
uint32_t add_acq_rel(uint32_t* p, uint32_t value);
Vec16 load_l2(const void* p);
void store_l2(void* p, Vec16 v);
Vec16 load_relaxed(const Vec16* p);
void store_relaxed(Vec16* p, Vec16 value);
void pause();

void cp_async(void* to, const void* from);
void cp_async_commit();
void cp_async_wait_all_but(int pending);
template <int kPending>
SIMT_INLINE void cp_async_wait() {
  cp_async_wait_all_but(kPending);
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

unsigned cluster_rank();
void sync_cluster();
void* peer_address(void* own, unsigned rank);
template <typename T>
SIMT_INLINE T* peer_shared(T* own, unsigned rank) {
  return static_cast<T*>(peer_address(own, rank));
}

void mbarrier_init(Mbarrier* barrier, unsigned count);
void mbarrier_arrive(Mbarrier* own, unsigned rank);
void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes);
void mbarrier_wait(Mbarrier* barrier, unsigned parity);
void store_async(uint32_t* own, uint32_t value, Mbarrier* barrier, unsigned rank);

}  // namespace lrcn::cuda
