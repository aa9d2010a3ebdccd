// device.h on top of the engine. Each function says to the engine what it does to memory, to the order of
// things and to the schedule; what the functions mean is written in csrc/cuda/device.cuh.
#include "../../csrc/cuda/device.cuh"

#include <algorithm>
#include <cstring>

#include "engine.h"

#define PC __builtin_return_address(0)

namespace lrcn::cuda {
namespace {

using simt::engine;
using simt::kAtomic;
using simt::kRead;
using simt::kWrite;

float widen(uint32_t bits) {
  bits <<= 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void aligned(const void* p, unsigned bytes, const char* what, const void* pc) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    engine->fail(std::string(what) + ": address not aligned to " + std::to_string(bytes) + " bytes", pc);
}

}  // namespace

// --- numbers and places --------------------------------------------------------------------------

float to_float(bf16 x) {
  return widen(x.bits);
}

bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return bf16{uint16_t{0x7fff}};
  return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float to_float(f16 x) {
  _Float16 half;
  std::memcpy(&half, &x, sizeof half);
  return static_cast<float>(half);
}

f16 to_f16(float x) {
  const auto half = static_cast<_Float16>(x);
  f16 result;
  std::memcpy(&result.bits, &half, sizeof half);
  return result;
}

template <>
uint32_t pack<bf16>(float low, float high) {
  return to_bf16(low).bits | uint32_t{to_bf16(high).bits} << 16;
}

template <>
uint32_t pack<f16>(float low, float high) {
  return to_f16(low).bits | uint32_t{to_f16(high).bits} << 16;
}

unsigned thread_index() {
  return engine->self->thread;
}
unsigned block_threads() {
  return engine->launch.block;
}
unsigned lane_index() {
  return engine->self->thread % 32;
}
unsigned warp_index() {
  return engine->self->thread / 32;
}
unsigned block_index() {
  return engine->self->block->x;
}
unsigned block_index_y() {
  return engine->self->block->y;
}
unsigned grid_blocks() {
  return engine->launch.grid.x;
}
unsigned cluster_rank() {
  return engine->self->block->x % engine->launch.cluster;
}

void* shared_object(const std::type_info& type, size_t bytes, size_t alignment) {
  return engine->shared_object(type, bytes, alignment);
}

unsigned char* shared_dynamic() {
  if (engine->launch.dynamic_shared == 0) engine->fail("shared_dynamic in a launch without any", PC);
  return engine->self->block->arena + 2 * simt::Memory::kRedzone;
}

void* peer_address(void* own, unsigned rank) {
  const simt::Block& block = *engine->self->block;
  if (rank >= engine->launch.cluster || !engine->memory.in_shared(own) || &engine->block_at(own) != &block)
    engine->fail("a peer's shared memory: rank too large, or not the address of an own shared object", PC);
  const long blocks = static_cast<long>(rank) - cluster_rank();
  return static_cast<char*>(own) + blocks * static_cast<long>(simt::Arenas::kStride);
}

// --- barriers ------------------------------------------------------------------------------------

void sync_block() {
  simt::Block& block = *engine->self->block;
  if (block.live < engine->launch.block)
    engine->fail("sync_block after a thread of the block has returned", PC);
  engine->arrive(block.barrier, engine->launch.block, {"sync_block", nullptr, PC});
}

void sync_cluster() {
  const simt::Launch& launch = engine->launch;
  engine->arrive(*engine->self->block->cluster_barrier, launch.cluster * launch.block,
                 {"sync_cluster", nullptr, PC});
}

void sync_grid() {
  const simt::Launch& launch = engine->launch;
  if (!launch.grid.cooperative) engine->fail("sync_grid in a launch that is not cooperative", PC);
  engine->arrive(engine->grid_barrier, launch.grid.x * launch.grid.y * launch.block,
                 {"sync_grid", nullptr, PC});
}

// --- warps ---------------------------------------------------------------------------------------

void sync_warp(unsigned mask) {
  engine->collective("sync_warp", mask, nullptr, nullptr, true, PC);
}

namespace {

struct ShuffleLane {
  uint64_t bits, result;
  Shuffle kind;
  int operand;
};

void combine_shuffle(void** lanes, unsigned mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& to = *static_cast<ShuffleLane*>(lanes[lane]);
    unsigned from = to.operand & 31;
    if (to.kind == Shuffle::bitwise_xor) from ^= lane;
    if (to.kind == Shuffle::down) from = to.operand + lane < 32 ? to.operand + lane : lane;
    if (!(mask >> from & 1))
      engine->fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
                   ", which is not in the mask");
    to.result = static_cast<ShuffleLane*>(lanes[from])->bits;
  }
}

struct MmaLane {
  float* d;
  const uint32_t *a, *b;
};

// Sums in double and rounds once; the hardware's own order and rounding are not documented.
template <typename T>
float half_of(uint32_t word, unsigned i) {
  return to_float(T{static_cast<uint16_t>(word >> 16 * i)});
}

template <typename T>
void combine_mma(void** lanes, unsigned) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<MmaLane*>(lanes[lane]);
    const unsigned g = lane / 4, q = lane % 4;
    for (unsigned half = 0; half < 2; ++half)
      for (unsigned i = 0; i < 2; ++i) {
        a[g][2 * q + i + 8 * half] = half_of<T>(in.a[2 * half], i);
        a[g + 8][2 * q + i + 8 * half] = half_of<T>(in.a[2 * half + 1], i);
        b[2 * q + i + 8 * half][g] = half_of<T>(in.b[half], i);
      }
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
      float& d = static_cast<MmaLane*>(lanes[lane])->d[i];
      double sum = d;
      for (unsigned k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][column];
      d = static_cast<float>(sum);
    }
}

}  // namespace

uint64_t shuffle_bits(Shuffle kind, uint64_t bits, int operand, unsigned mask) {
  static const char* const names[] = {"shuffle", "shuffle_xor", "shuffle_down"};
  ShuffleLane lane{bits, 0, kind, operand};
  engine->collective(names[static_cast<int>(kind)], mask, &lane, combine_shuffle, false, PC);
  return lane.result;
}

template <>
void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane lane{d, a, b};
  engine->collective("mma", kFullWarp, &lane, combine_mma<bf16>, false, PC);
}

template <>
void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane lane{d, a, b};
  engine->collective("mma", kFullWarp, &lane, combine_mma<f16>, false, PC);
}

// --- global memory between blocks ------------------------------------------------------------------

namespace {

uint32_t load(const uint32_t* p, bool acquire, const void* pc) {
  simt::Fiber& self = *engine->self;
  engine->point();
  engine->memory.access(p, 4, kRead | kAtomic, pc);
  self.bare_polls = self.polled == p ? self.bare_polls + 1 : 0;
  self.polled = p;
  if (self.bare_polls > 100) engine->fail("a polling loop without pause()", pc);
  const auto released = engine->released.find(p);
  if (acquire && released != engine->released.end()) self.clock.join(released->second);
  return *p;
}

// A store ends what earlier releases of that address passed on; an atomic addition carries it along.
void publish(const void* p, bool release, bool keep) {
  simt::Clock& clock = engine->released[p];
  if (!keep) clock = {};
  if (release) {
    clock.join(engine->self->clock);
    engine->self->tick();
  }
  engine->progress();
}

void store(uint32_t* p, uint32_t value, bool release, const void* pc) {
  engine->point();
  engine->memory.access(p, 4, kWrite | kAtomic, pc);
  *p = value;
  publish(p, release, false);
}

uint32_t add(uint32_t* p, uint32_t value, bool acquire, bool release, const void* pc) {
  engine->point();
  engine->memory.access(p, 4, kRead | kWrite | kAtomic, pc);
  if (acquire) engine->self->clock.join(engine->released[p]);
  const uint32_t old = *p;
  *p = old + value;
  publish(p, release, true);
  return old;
}

Vec16 load16(const void* p, unsigned kind, const void* pc) {
  engine->point();
  aligned(p, 16, "16-byte load", pc);
  engine->memory.access(p, 16, kRead | kind, pc);
  return *static_cast<const Vec16*>(p);
}

void store16(void* p, Vec16 value, unsigned kind, const void* pc) {
  engine->point();
  aligned(p, 16, "16-byte store", pc);
  engine->memory.access(p, 16, kWrite | kind, pc);
  *static_cast<Vec16*>(p) = value;
  engine->progress();
}

}  // namespace

uint32_t load_relaxed(const uint32_t* p) {
  return load(p, false, PC);
}
uint32_t load_acquire(const uint32_t* p) {
  return load(p, true, PC);
}
void store_relaxed(uint32_t* p, uint32_t value) {
  store(p, value, false, PC);
}
void store_release(uint32_t* p, uint32_t value) {
  store(p, value, true, PC);
}
uint32_t add_relaxed(uint32_t* p, uint32_t value) {
  return add(p, value, false, false, PC);
}
uint32_t add_acquire(uint32_t* p, uint32_t value) {
  return add(p, value, true, false, PC);
}
uint32_t add_release(uint32_t* p, uint32_t value) {
  return add(p, value, false, true, PC);
}
uint32_t add_acq_rel(uint32_t* p, uint32_t value) {
  return add(p, value, true, true, PC);
}
Vec16 load_l2(const void* p) {
  return load16(p, 0, PC);
}
void store_l2(void* p, Vec16 v) {
  store16(p, v, 0, PC);
}
Vec16 load_relaxed(const Vec16* p) {
  return load16(p, kAtomic, PC);
}
void store_relaxed(Vec16* p, Vec16 value) {
  store16(p, value, kAtomic, PC);
}
void pause() {
  engine->pause(PC);
}

// --- asynchronous copies -------------------------------------------------------------------------

void cp_async(void* to, const void* from) {
  engine->point();
  aligned(to, 16, "cp_async", PC);
  aligned(from, 16, "cp_async", PC);
  engine->memory.access(from, 16, kRead, PC);
  engine->memory.access(to, 16, kWrite, PC);
  engine->memory.set_in_flight(to, 16, true);
  const bool landed = engine->rng.below(4) == 0;  // most land as late as they may
  if (landed) std::memcpy(to, from, 16);
  simt::Fiber& self = *engine->self;
  self.copies.push_back({to, from, self.copy_group, landed});
}

void cp_async_commit() {
  ++engine->self->copy_group;
}

void cp_async_wait_all_but(int pending) {
  engine->point();
  simt::Fiber& self = *engine->self;
  const auto due = std::stable_partition(self.copies.begin(), self.copies.end(), [&](const simt::Copy& copy) {
    return copy.group >= self.copy_group - pending;
  });
  for (auto copy = due; copy != self.copies.end(); ++copy) {
    if (!copy->landed) std::memcpy(copy->to, copy->from, 16);
    engine->memory.set_in_flight(copy->to, 16, false);
    engine->memory.access(copy->to, 16, kWrite, PC);
  }
  self.copies.erase(due, self.copies.end());
}

// --- mbarriers -----------------------------------------------------------------------------------

void mbarrier_init(Mbarrier* barrier, unsigned count) {
  engine->point();
  if (!engine->memory.in_shared(barrier)) engine->fail("an mbarrier must lie in shared memory", PC);
  engine->memory.access(barrier, sizeof *barrier, kWrite, PC);
  simt::MbarrierState state{};
  state.count = state.pending = count;
  if (!engine->self->block->mbarriers.try_emplace(barrier, state).second)
    engine->fail("mbarrier_init on a barrier in use", PC);
}

namespace {

void arrive(Mbarrier* barrier, unsigned bytes, const void* pc) {
  engine->point();
  simt::MbarrierState& state = engine->mbarrier(barrier, pc);
  const simt::Clock& clock = engine->self->clock;
  if (&engine->block_at(barrier) == engine->self->block) {
    state.arriving.join(clock);
  } else {
    state.arriving.join_reads(clock.reads);
  }
  engine->self->tick();
  engine->mbarrier_update(state, 1, bytes, pc);
}

}  // namespace

void mbarrier_arrive(Mbarrier* own, unsigned rank) {
  arrive(peer_shared(own, rank), 0, PC);
}
void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
  arrive(barrier, bytes, PC);
}

void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  engine->point();
  simt::MbarrierState& state = engine->mbarrier(barrier, PC);
  while ((state.phase & 1) == (parity & 1)) {  // like the hardware's poll, it may come late and miss a phase
    state.waiting.push_back(engine->self);
    engine->block_on({"mbarrier_wait", barrier, PC});
  }
  engine->self->clock.join(state.done);
}

void store_async(uint32_t* own, uint32_t value, Mbarrier* barrier, unsigned rank) {
  engine->point();
  simt::Fiber& self = *engine->self;
  simt::Flight flight{peer_shared(own, rank), value, peer_shared(barrier, rank), 0, 0, {}, PC};
  if (engine->launch.cluster > 1) {
    flight.component = engine->components / 2 + self.id;
    flight.time = ++self.async_time;
  } else {
    engine->fail("store_async needs a cluster launch", PC);
  }
  engine->mbarrier(flight.barrier, PC);
  engine->memory.access(flight.to, 4, kWrite, PC, flight.component, flight.time);
  flight.reads = self.clock.reads;
  self.tick();
  engine->send(std::move(flight));
}

}  // namespace lrcn::cuda
