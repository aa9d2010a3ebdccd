// Memory for packed weights, and for the length of a call.
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

// The same for what a call needs while it runs. The thread keeps it for its later calls, the last kKeptBytes
// of it: new pages are zeroed by the system before the first write, which was up to 40 % of a training step
// (H=256, B=1). Not under AddressSanitizer, which could not tell the end of a smaller request.
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t kKeptBytes = 0;
#else
constexpr int64_t kKeptBytes = int64_t{64} << 20;
#endif

struct Keep {
  int64_t bytes = 0;
  void operator()(char* p) const;
};
using Scratch = std::unique_ptr<char, Keep>;
Scratch allocate_scratch(int64_t bytes);

}  // namespace lrcn
