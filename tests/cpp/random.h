// Seeded inputs for the C++ tests: the same numbers on every machine.
#pragma once

#include <cstdint>
#include <vector>

namespace lrcn::test {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}

  // Uniform in [-1, 1), 24 bits.
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int64_t>(state_ >> 40) - (1 << 23)) / (1 << 23);
  }

  std::vector<float> values(int64_t n, float scale = 1.0f) {
    std::vector<float> v(n);
    for (float& x : v) x = next() * scale;
    return v;
  }

 private:
  uint64_t state_;
};

// One pointer per row of a [rows, width] matrix.
template <typename T>
std::vector<T*> rows_of(T* data, int64_t rows, int64_t width) {
  std::vector<T*> pointers(rows);
  for (int64_t r = 0; r < rows; ++r) pointers[r] = data + r * width;
  return pointers;
}

}  // namespace lrcn::test
