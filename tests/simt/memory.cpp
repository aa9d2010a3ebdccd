#include "memory.h"

#include <cstdlib>
#include <cstring>

#include "engine.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[],
    _end[];  // this library, from the linker

namespace simt {

std::vector<Region> buffers;
Arenas arenas;

namespace {

uint32_t offset_of(const void* pc) {
  return static_cast<uint32_t>(static_cast<const char*>(pc) - __ehdr_start);
}

Pages all_cells;
uint32_t last_era = 0;

}  // namespace

void Memory::open(std::vector<Region> the_buffers, size_t blocks) {
  regions_ = std::move(the_buffers);
  era_ = ++last_era;
  slot_era_.resize(blocks);
  arenas.reserve(blocks);
  shared_.begin = reinterpret_cast<uintptr_t>(arenas.at(0));
  shared_.end = shared_.begin + blocks * Arenas::kStride;
  size_t count = blocks * Arenas::kStride;
  for (const Region& region : regions_) count += region.end - region.begin;
  all_cells.reserve(count * sizeof(Cell));
  shared_.cells = reinterpret_cast<Cell*>(all_cells.base());
  Cell* next = shared_.cells + blocks * Arenas::kStride;
  for (Region& region : regions_) {
    region.cells = next;
    next += region.end - region.begin;
  }
}

void Memory::poison(unsigned slot, size_t from, size_t to) {
  std::memset(arenas.at(slot) + from, 0xff, to - from);  // NaN as float and as bf16
}

void Memory::start_block(unsigned slot, size_t bytes) {
  poison(slot, 0, bytes);
  slot_era_[slot] = ++last_era;
}

// --- one access ----------------------------------------------------------------------------------

Cell* Memory::cells(uintptr_t p, size_t bytes, unsigned kind, const void* pc, bool* shared) {
  const auto of_era = [&](Cell* first, uint32_t era) {
    for (Cell* cell = first; cell < first + bytes; ++cell)
      if (cell->era != era) *cell = {{}, {}, era, 0};
    return first;
  };
  *shared = p - shared_.begin < shared_.end - shared_.begin;
  if (*shared) {
    if (engine->block_at(reinterpret_cast<void*>(p)).live == 0)
      engine->fail("access to the shared memory of a block that has returned", pc);
    const size_t at = p - shared_.begin, offset = at % Arenas::kStride;
    for (const Object& object : objects_)
      if (offset - object.offset < object.bytes && offset + bytes <= object.offset + object.bytes)
        return of_era(shared_.cells + at, slot_era_[at / Arenas::kStride]);
  } else {
    if (last_ < regions_.size() && p - regions_[last_].begin >= regions_[last_].end - regions_[last_].begin)
      last_ = regions_.size();
    for (size_t i = 0; i < regions_.size() && last_ == regions_.size(); ++i)
      if (p - regions_[i].begin < regions_[i].end - regions_[i].begin) last_ = i;
    if (last_ < regions_.size() && p + bytes <= regions_[last_].end)
      return of_era(regions_[last_].cells + (p - regions_[last_].begin), era_);
    if (p - reinterpret_cast<uintptr_t>(__ehdr_start) < static_cast<size_t>(_end - __ehdr_start))
      return nullptr;  // a constant of the kernel
  }
  engine->fail("out of bounds: " + std::to_string(bytes) + " bytes " +
                   (kind & kWrite ? "written to " : "read from ") + place(p),
               pc);
}

std::string Memory::place(uintptr_t p) const {
  if (p - shared_.begin < shared_.end - shared_.begin) {
    const size_t offset = (p - shared_.begin) % Arenas::kStride;
    const Object* near = nullptr;  // the object it is in, or runs over the end of
    for (const Object& object : objects_)
      if (offset >= object.offset && (near == nullptr || object.offset > near->offset)) near = &object;
    const unsigned block = engine->block_at(reinterpret_cast<void*>(p)).x;
    return (near == nullptr ? "the start"
                            : near->name + " +" + std::to_string(offset - near->offset) + " (of " +
                                  std::to_string(near->bytes) + ")") +
           " in shared memory of block " + std::to_string(block);
  }
  const Region* best = nullptr;  // the buffer it is in, or runs over the end of
  for (const Region& region : regions_)
    if (p >= region.begin && (best == nullptr || region.begin > best->begin)) best = &region;
  if (best == nullptr) return "unregistered memory";
  return best->name + " +" + std::to_string(p - best->begin) + " (of " +
         std::to_string(best->end - best->begin) + ")";
}

void Memory::access(const void* address, size_t bytes, unsigned kind, const void* pc) {
  access(address, bytes, kind, pc, engine->self->id, engine->self->now());
}

void Memory::access(const void* address, size_t bytes, unsigned kind, const void* pc, unsigned component,
                    int time) {
  const auto p = reinterpret_cast<uintptr_t>(address);
  bool shared = false;
  Cell* cell = cells(p, bytes, kind, pc, &shared);
  if (cell == nullptr) return;
  const Clock& clock = engine->self->clock;
  const Moment now{time, static_cast<uint16_t>(component + 1), static_cast<uint16_t>(kind & kAtomic),
                   offset_of(pc)};
  const auto unordered = [&](const Moment& before, const std::vector<int>& known) {
    return before.who != 0 && before.time > known[before.who - 1] && !(before.atomic && now.atomic);
  };
  for (size_t i = 0; i < bytes; ++i, ++cell) {
    if (cell->in_flight)
      engine->fail("access to " + place(p + i) + ", where a cp.async has not been waited for", pc);
    // An asynchronous store that somebody has seen land may be overwritten like something read.
    const bool over_async = !(kind & kRead) && engine->is_async(cell->write.who - 1);
    if (unordered(cell->write, over_async ? clock.reads : clock.all))
      race(p + i, kind, cell->write, "written", pc, component);
    if (kind & kRead) {
      if (shared && cell->write.who == 0)
        engine->fail("read of " + place(p + i) + ", which nobody has written", pc);
      // Two reads are kept. One that is ordered before this one is covered by it; of unordered ones a random
      // one goes, so that over many seeds no reader escapes.
      const auto covered = [&](const Moment& m) {
        return m.who == 0 || m.who == now.who || m.time <= clock.all[m.who - 1];
      };
      cell->read[covered(cell->read[0]) ? 0 : covered(cell->read[1]) ? 1 : engine->rng.below(2)] = now;
    }
    if (kind & kWrite) {
      for (const Moment& read : cell->read)
        if (read.who != now.who && unordered(read, clock.reads))
          race(p + i, kind, read, "read", pc, component);
      cell->write = now;
      cell->read[0] = cell->read[1] = {};
    }
  }
}

void Memory::set_in_flight(const void* address, size_t bytes, bool on) {
  const auto p = reinterpret_cast<uintptr_t>(address);
  bool shared = false;
  Cell* cell = cells(p, bytes, kWrite, nullptr, &shared);
  for (size_t i = 0; i < bytes; ++i) cell[i].in_flight = on;
}

void Memory::race(uintptr_t p, unsigned kind, const Moment& before, const char* verb, const void* pc,
                  unsigned component) {
  const auto line = [&](const char* what, const void* at, unsigned by) {
    return std::string("\n  ") + what + " at " + engine->source(at) + " by " + engine->describe(by);
  };
  engine->fail("race on " + place(p) +
               ", nothing orders these two:" + line(kind & kWrite ? "written" : "read", pc, component) +
               line(verb, __ehdr_start + before.pc, before.who - 1));
}

}  // namespace simt

// --- what the compiler calls -----------------------------------------------------------------------

namespace {

inline void hook(const void* p, size_t bytes, unsigned kind, const void* pc) {
  simt::Engine* engine = simt::engine;
  if (engine == nullptr || engine->self == nullptr || simt::stacks.contains(reinterpret_cast<uintptr_t>(p)))
    return;
  engine->point();
  engine->memory.access(p, bytes, kind, pc);
}

struct UbsanPlace {  // what every report of -fsanitize=undefined begins with
  const char* file;
  uint32_t line, column;
};

void undefined(const void* data, const char* what) {
  const auto* place = static_cast<const UbsanPlace*>(data);
  const char* slash = std::strrchr(place->file, '/');
  const std::string text = std::string(what) + " at " + (slash == nullptr ? place->file : slash + 1) + ":" +
                           std::to_string(place->line);
  if (simt::engine == nullptr || simt::engine->self == nullptr) throw simt::Failure(text);
  simt::engine->fail(text);
}

}  // namespace

extern "C" {

#define SIMT_HOOKS(bytes)                                      \
  void __tsan_read##bytes(void* p) {                           \
    hook(p, bytes, simt::kRead, __builtin_return_address(0));  \
  }                                                            \
  void __tsan_write##bytes(void* p) {                          \
    hook(p, bytes, simt::kWrite, __builtin_return_address(0)); \
  }                                                            \
  void __tsan_volatile_read##bytes(void* p) {                  \
    hook(p, bytes, simt::kRead, __builtin_return_address(0));  \
  }                                                            \
  void __tsan_volatile_write##bytes(void* p) {                 \
    hook(p, bytes, simt::kWrite, __builtin_return_address(0)); \
  }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) {
  hook(p, bytes, simt::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  hook(p, bytes, simt::kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

void __ubsan_handle_out_of_bounds(void* data, uintptr_t) {
  undefined(data, "out of bounds: array index");
}
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t) {
  undefined(data, "misaligned access");
}
}
