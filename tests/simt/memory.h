// What the kernels' loads and stores mean: bounds, initialisation and happens-before, per byte.
//
// Kernels are compiled with -fsanitize=thread, but linked with the hooks of memory.cpp instead of the
// sanitizer's own library, so the emulator sees every access in program order without touching the source.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "pages.h"

namespace simt {

enum Access : unsigned { kRead = 1, kWrite = 2, kAtomic = 4 };

struct Moment {  // component `who - 1` at its local time
  int time;
  uint16_t who;  // 0: never
  uint16_t atomic;
  uint32_t pc;  // offset in this library
};

struct Cell {  // one byte
  Moment write, read[2];
  uint32_t era : 31;       // it is as if never touched, unless its memory is still in this era
  uint32_t in_flight : 1;  // an unfinished cp.async owns it
};

struct Object {  // in every block's shared memory
  size_t offset, bytes;
  std::string name;
};

struct Region {
  uintptr_t begin, end;
  std::string name;
  Cell* cells = nullptr;
};

class Memory {
 public:
  static constexpr size_t kRedzone = 64;

  // Global memory, and shared memory of `blocks` resident blocks.
  void open(std::vector<Region> buffers, size_t blocks);
  // A block moves in: its arena's first bytes are poisoned, none is written.
  void start_block(unsigned slot, size_t bytes);
  void poison(unsigned slot, size_t from, size_t to);
  void add_shared(const Object& object) { objects_.push_back(object); }
  bool in_shared(const void* p) const {
    return reinterpret_cast<uintptr_t>(p) - shared_.begin < shared_.end - shared_.begin;
  }
  const std::vector<Object>& objects() const { return objects_; }

  // One access by the current thread, checked and then recorded. `component` is the thread's own, or
  // that of its asynchronous stores; what came before is judged by the thread's clock either way.
  void access(const void* p, size_t bytes, unsigned kind, const void* pc, unsigned component, int time);
  void access(const void* p, size_t bytes, unsigned kind, const void* pc);
  void set_in_flight(const void* p, size_t bytes, bool on);

 private:
  Cell* cells(uintptr_t p, size_t bytes, unsigned kind, const void* pc, bool* shared);
  std::string place(uintptr_t p) const;
  [[noreturn]] void race(uintptr_t p, unsigned kind, const Moment& before, const char* verb, const void* pc,
                         unsigned component);

  std::vector<Region> regions_;
  Region shared_{};
  std::vector<Object> objects_;
  uint32_t era_ = 0;                // of global memory
  std::vector<uint32_t> slot_era_;  // of each slot's shared memory
  size_t last_ = 0;
};

extern std::vector<Region> buffers;  // global memory the next launches may touch
using Arenas = Slots<256 << 10>;     // blocks' shared memory
extern Arenas arenas;

}  // namespace simt
