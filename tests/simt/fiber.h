// Fibers: the switch between them. x86-64 saves six registers by hand (about 2 ns); other
// machines, or -DSIMT_UCONTEXT, take ucontext, which makes a system call per switch.
#pragma once

#include <cstddef>
#include <cstdint>

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

inline void start_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
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

inline void start_context(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  // Six registers, then the address the switch returns to; entry must find rsp = 8 mod 16.
  void** top = reinterpret_cast<void**>(stack + bytes) - 1;
  top[-1] = reinterpret_cast<void*>(entry);
  for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
  top[0] = nullptr;
  context.stack_pointer = top - 7;
}

#endif

}  // namespace simt
