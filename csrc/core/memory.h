// Memory for packed weights.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace lrcn {

// Asks for large pages under [p, p + bytes), before its first write. A step reads all its weights, and 16 MB
// are 4000 small pages, more than the address translation holds: 3 to 4 % of an LSTM (H=1000, B=5, Zen 3).
// Does nothing where the system has no such request, or where no whole large page fits.
void prefer_large_pages(void* p, int64_t bytes);

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using PackedBuffer = std::unique_ptr<char, Free>;

// Uninitialised, on a cache line, with large pages where they help. Throws std::bad_alloc.
PackedBuffer allocate_packed(int64_t bytes);

}  // namespace lrcn
