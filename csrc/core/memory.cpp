#include "memory.h"

#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lrcn {
namespace {

constexpr uintptr_t kLine = 64, kLargePage = uintptr_t{2} << 20;

constexpr uintptr_t round_up(uintptr_t n, uintptr_t unit) {
  return (n + unit - 1) / unit * unit;
}

}  // namespace

void prefer_large_pages([[maybe_unused]] void* p, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(p), kLargePage);
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)) / kLargePage * kLargePage;
  // A refusal is no error: the pages stay small.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

PackedBuffer allocate_packed(int64_t bytes) {
  const uintptr_t size = static_cast<uintptr_t>(bytes), unit = size < 2 * kLargePage ? kLine : kLargePage;
  PackedBuffer buffer(static_cast<char*>(std::aligned_alloc(unit, round_up(size, unit))));
  if (buffer == nullptr && bytes > 0) throw std::bad_alloc();
  prefer_large_pages(buffer.get(), bytes);
  return buffer;
}

namespace {

constexpr size_t kMostKept = 16;

struct Kept {
  PackedBuffer buffer;
  int64_t bytes;
};
thread_local std::vector<Kept> kept;  // the oldest first

}  // namespace

Scratch allocate_scratch(int64_t bytes) {
  kept.reserve(kMostKept);  // so that giving back cannot fail
  auto best = kept.end();
  for (auto k = kept.begin(); k != kept.end(); ++k)
    if (k->bytes >= bytes && (best == kept.end() || k->bytes < best->bytes)) best = k;
  if (best == kept.end()) return Scratch(allocate_packed(bytes).release(), Keep{bytes});
  Scratch scratch(best->buffer.release(), Keep{best->bytes});
  kept.erase(best);
  return scratch;
}

void Keep::operator()(char* p) const {
  PackedBuffer buffer(p);
  int64_t total = bytes;
  for (const Kept& k : kept) total += k.bytes;
  for (; !kept.empty() && (total > kKeptBytes || kept.size() == kMostKept); kept.erase(kept.begin()))
    total -= kept.front().bytes;
  if (total <= kKeptBytes) kept.push_back({std::move(buffer), bytes});
}

}  // namespace lrcn
