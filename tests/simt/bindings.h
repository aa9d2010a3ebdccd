// What bindings.cpp shares with the machine it runs on.
#pragma once

#define SIMT_API extern "C" __attribute__((visibility("default")))

#include <cstddef>
#include <cstdint>

void finish();  // waits for the launches before, and throws what went wrong in them

// Memory that kernels see, before the next of them is launched.
void copy(void* to, const void* from, int64_t bytes);
void clear(void* p, int64_t bytes);

// The emulator lets kernels touch the parts of a buffer that are added, and no longer the whole of it. On a
// GPU both do nothing.
void forget_buffer(const void* p);
void add_buffer(const char* name, void* p, int64_t bytes);
