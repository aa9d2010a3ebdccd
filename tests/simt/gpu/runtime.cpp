// What emulator.cpp is to the emulator, for a GPU: memory for the arrays of a call, and the wait at its end.
#include <cuda_runtime.h>

#include "../../../csrc/cuda/launch.h"
#include "../bindings.h"

void finish() {
  lrcn::cuda::check(cudaDeviceSynchronize(), "kernel");
}

void copy(void* to, const void* from, int64_t bytes) {
  lrcn::cuda::check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault), "copy");
}
void clear(void* p, int64_t bytes) {
  lrcn::cuda::check(cudaMemset(p, 0, static_cast<size_t>(bytes)), "clear");
}

void forget_buffer(const void*) {}
void add_buffer(const char*, void*, int64_t) {}

// Exactly `bytes`, so that compute-sanitizer sees an access past the end. nullptr when there is no memory.
SIMT_API void* gpu_allocate(size_t bytes) {
  void* p = nullptr;
  return cudaMalloc(&p, bytes) == cudaSuccess ? p : nullptr;
}
SIMT_API void gpu_free(void* p) {
  cudaFree(p);
}
SIMT_API int gpu_copy(void* to, const void* from, size_t bytes) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
