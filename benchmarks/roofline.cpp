// What this CPU can do at most, to hold a kernel against: reading memory, and multiply-adds in registers.
// roofline.py compiles it for the machine it runs on.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

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
typedef int32_t VecI __attribute__((vector_size(kBytes)));

volatile float sink;

template <typename V, int kN>
void keep(const V (&sums)[kN]) {
  V all = {};
#pragma GCC unroll 32
  for (int i = 0; i < kN; ++i) all += sums[i];
  sink = static_cast<float>(all[0]);
}

// sum + a * b, one product a lane.
struct Float32 {
  using Sum = Vec;
  static constexpr int kProducts = 1;
  static Vec add(Vec sum, Vec a, Vec b) { return sum * a + b; }
};

// Bytes, four products a lane, or pairs of 16-bit integers where no instruction multiplies bytes.
struct Int8 {
  using Sum = VecI;
#if defined(__AVX2__)
  static constexpr int kProducts = 4;
#else
  static constexpr int kProducts = 2;
#endif
  static VecI add(VecI sum, Vec a, Vec b) {
#if defined(__AVX512VNNI__)
    return (VecI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)b);
    return sum + (VecI)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
    return sum + (VecI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__SSE2__) && !defined(__AVX__)
    return sum + (VecI)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const VecI x = (VecI)a, y = (VecI)b;
    return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
  }
};

// Pairs of bfloat16 where the CPU multiplies those.
#if defined(__AVX512BF16__)
struct BFloat16 {
  using Sum = Vec;
  static constexpr int kProducts = 2;
  static Vec add(Vec sum, Vec a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#else
using BFloat16 = Float32;
#endif

// Makes `count` multiply-adds, all in registers, enough of them independent of each other.
template <typename Type>
void multiply_add(int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    typename Type::Sum sums[kSums] = {};
    Vec a = {}, b = {};
    for (int lane = 0; lane < kLanes; ++lane) a[lane] = 0.5f, b[lane] = 0.25f + thread;
    const int64_t rounds = count / threads / (kSums * kLanes * Type::kProducts);
    for (int64_t n = 0; n < rounds; ++n)
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) {
        auto sum = Type::add(sums[i], a, b);
        asm volatile("" : "+x"(sum), "+x"(a));  // or the compiler sees that all of them are equal
        sums[i] = sum;
      }
    keep(sums);
  }
}

}  // namespace

// Reads `bytes` bytes at `data`, `times` times over; each thread reads its own part, in four streams: one
// alone is half as fast where the data come from memory. By turns from the first byte and from the last, also
// from call to call, so that what a cache still holds is read first.
extern "C" void roofline_read(const float* data, int64_t bytes, int64_t times, int threads) {
  constexpr int kStreams = 4;
  static int64_t passes = 0;
  const int64_t length = bytes / kBytes / threads / kStreams / 2 * 2, first = passes;
  passes += times;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    const Vec* part = reinterpret_cast<const Vec*>(data) + thread * kStreams * length;
    Vec sums[2 * kStreams] = {};
    for (int64_t n = 0; n < times; ++n) {
      const bool falls = (first + n) % 2 == 1;
      for (int64_t k = 0; k < length; k += 2) {
        const int64_t i = falls ? length - 2 - k : k;
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
          sums[2 * s] += part[s * length + i];
          sums[2 * s + 1] += part[s * length + i + 1];
        }
      }
    }
    keep(sums);
  }
}

// `count` multiply-adds as weights of a type take part in them.
extern "C" void roofline_multiply_add_float32(int64_t count, int threads) {
  multiply_add<Float32>(count, threads);
}

extern "C" void roofline_multiply_add_bfloat16(int64_t count, int threads) {
  multiply_add<BFloat16>(count, threads);
}

extern "C" void roofline_multiply_add_int8(int64_t count, int threads) {
  multiply_add<Int8>(count, threads);
}

// Starts `times` parallel sections that do nothing.
extern "C" void roofline_fork(int64_t times, int threads) {
  for (int64_t n = 0; n < times; ++n) {
#pragma omp parallel num_threads(threads)
    asm volatile("" ::: "memory");
  }
}
