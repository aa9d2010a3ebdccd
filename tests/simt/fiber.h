// Fibers: stacks and the switch between them. x86-64 saves six registers by hand (about 2 ns); other
// machines, or -DSIMT_UCONTEXT, take ucontext, which makes a system call per switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#endif
#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

#ifdef SIMT_UCONTEXT

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) {
  swapcontext(&from, &to);
}

inline void start_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}

#else

struct Context {
  void* stack_pointer;
};

// The ABI's callee-saved registers live on the stack of whoever is not running.
asm(R"(
.text
.local simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  pop %rcx
  jmp *%rcx
.size simt_switch_stack, .-simt_switch_stack
)");
extern "C" void simt_switch_stack(void** from, void* to);

inline void switch_context(Context& from, Context& to) {
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
}

inline void start_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  // Six registers, then the address the switch returns to; entry must find rsp = 8 mod 16.
  void** top = reinterpret_cast<void**>(stack + bytes) - 1;
  top[-1] = reinterpret_cast<void*>(entry);
  for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
  top[0] = nullptr;
  context.stack_pointer = top - 7;
}

#endif

// Equal stacks side by side, each with an unmapped page below it. Untouched pages cost nothing.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 << 10, kGuard = 4096;

  ~Stacks() { release(); }
  void reserve(size_t count) {
    if (count <= count_) return;
    release();
    void* p = mmap(nullptr, count * kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(p);
    count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * kBytes, kGuard, PROT_NONE);
  }
  char* stack(size_t i) const { return base_ + i * kBytes + kGuard; }
  bool contains(uintptr_t p) const { return p - reinterpret_cast<uintptr_t>(base_) < count_ * kBytes; }

 private:
  void release() {
    if (base_ != nullptr) munmap(base_, count_ * kBytes);
    base_ = nullptr;
    count_ = 0;
  }
  char* base_ = nullptr;
  size_t count_ = 0;
};

}  // namespace simt
