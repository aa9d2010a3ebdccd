// What this CPU can do at most, to hold a kernel against: reading memory, and multiply-adds in registers.
// roofline.py compiles it for the machine it runs on.
#include <algorithm>
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kSums = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kSums = 12;
#else
constexpr int kBytes = 16, kSums = 12;
#endif
constexpr int kLanes = kBytes / sizeof(float);
typedef float Vec __attribute__((vector_size(kBytes)));

volatile float sink;

template <int kN>
void keep(const Vec (&sums)[kN]) {
  Vec all = {};
#pragma GCC unroll 32
  for (int i = 0; i < kN; ++i) all += sums[i];
  sink = all[0];
}

}  // namespace

// Reads `bytes` bytes at `data`, `times` times over; each thread reads its own part, in four streams: one alone
// is half as fast where the data come from memory.
extern "C" void roofline_read(const float* data, int64_t bytes, int64_t times, int threads) {
  constexpr int kStreams = 4;
  const int64_t length = bytes / kBytes / threads / kStreams / 2 * 2;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    const Vec* part = reinterpret_cast<const Vec*>(data) + thread * kStreams * length;
    Vec sums[2 * kStreams] = {};
    for (int64_t n = 0; n < times; ++n)
      for (int64_t i = 0; i < length; i += 2)
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
          sums[2 * s] += part[s * length + i];
          sums[2 * s + 1] += part[s * length + i + 1];
        }
    keep(sums);
  }
}

// Makes `count` multiply-adds of float32, all in registers, enough of them independent of each other.
extern "C" void roofline_multiply_add(int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    Vec sums[kSums] = {}, a = {}, b = {};
    for (int lane = 0; lane < kLanes; ++lane) a[lane] = 0.5f, b[lane] = 0.25f + thread;
    const int64_t rounds = count / threads / (kSums * kLanes);
    for (int64_t n = 0; n < rounds; ++n)
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) {
        Vec sum = sums[i] * a + b;
        asm volatile("" : "+x"(sum));  // or the compiler sees that all of them are equal
        sums[i] = sum;
      }
    keep(sums);
  }
}

// Starts `times` parallel sections that do nothing.
extern "C" void roofline_fork(int64_t times, int threads) {
  for (int64_t n = 0; n < times; ++n) {
#pragma omp parallel num_threads(threads)
    asm volatile("" ::: "memory");
  }
}
