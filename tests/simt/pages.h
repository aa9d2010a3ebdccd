// Memory of the emulator that is kept from launch to launch: to map it anew for each costs more than many a
// launch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace simt {

// All zero at first; untouched pages cost nothing.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  ~Pages() { release(); }
  // Room for so many bytes. Whether the memory is new: what was in it is gone then.
  bool reserve(size_t bytes) {
    if (bytes <= bytes_) return false;
    release();
    void* p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(p);
    bytes_ = bytes;
    return true;
  }
  unsigned char* base() const { return base_; }
  bool contains(uintptr_t p) const { return p - reinterpret_cast<uintptr_t>(base_) < bytes_; }

 private:
  void release() {
    if (base_ != nullptr) munmap(base_, bytes_);
    base_ = nullptr;
    bytes_ = 0;
  }
  unsigned char* base_ = nullptr;
  size_t bytes_ = 0;
};

// Equal pieces side by side, with an unmapped page below each and above the last.
template <size_t kBytes>
class Slots {
 public:
  static constexpr size_t kGuard = 4096, kStride = kBytes + kGuard;

  void reserve(size_t count) {
    if (!pages_.reserve(count * kStride + kGuard)) return;
    for (size_t i = 0; i <= count; ++i) mprotect(pages_.base() + i * kStride, kGuard, PROT_NONE);
  }
  unsigned char* at(size_t i) const { return pages_.base() + kGuard + i * kStride; }
  bool contains(uintptr_t p) const { return pages_.contains(p); }

 private:
  Pages pages_;
};

}  // namespace simt
