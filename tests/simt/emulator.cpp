// The emulator's own C interface: schedules, the memory kernels may touch, and what a switch costs.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "bindings.h"
#include "engine.h"

void simt::keep(const Launch& launch, CUstream_st& stream) {
  const auto* const bytes = static_cast<const unsigned char*>(launch.arguments);
  stream.kept.push_back({launch, {bytes, bytes + launch.argument_bytes}});
  CUstream_st::Kept& kept = stream.kept.back();
  kept.launch.arguments = kept.arguments.data();  // which stays where it is when `kept` grows
}

void finish() {}  // the emulator's launches are over when they return

namespace {

simt::Context bench_main, bench_fiber;
void bench_loop() {
  for (;;) simt::switch_context(bench_fiber, bench_main);
}

}  // namespace

SIMT_API void simt_options(int policy, uint64_t seed) {
  simt::options = {static_cast<simt::Policy>(policy), seed};
}
SIMT_API void simt_clear_buffers() {
  simt::buffers.clear();
}
SIMT_API void simt_add_buffer(const char* name, const void* p, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  simt::buffers.push_back({begin, begin + bytes, name});
}
void forget_buffer(const void* p) {
  const auto begins = [p](const simt::Region& r) { return r.begin == reinterpret_cast<uintptr_t>(p); };
  simt::buffers.erase(std::remove_if(simt::buffers.begin(), simt::buffers.end(), begins),
                      simt::buffers.end());
}
void copy(void* to, const void* from, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}
void clear(void* p, int64_t bytes) {
  std::memset(p, 0, static_cast<size_t>(bytes));
}
void add_buffer(const char* name, void* p, int64_t bytes) {
  simt_add_buffer(name, p, static_cast<size_t>(bytes));
}
SIMT_API uint64_t simt_switches() {
  return simt::last_switches;
}
SIMT_API double simt_switch_ns() {
  static unsigned char stack[16384];
  constexpr int kRounds = 1000000;
  simt::start_context(bench_fiber, stack, sizeof stack, bench_loop);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRounds; ++i) simt::switch_context(bench_main, bench_fiber);
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / (2 * kRounds);
}
