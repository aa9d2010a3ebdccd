#include "pack.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace lrcn {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Round to nearest even; a NaN keeps its quiet bit, which rounding could carry away.
uint32_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  if (std::isnan(value)) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// What an absent row reads, with a stride of 0.
constexpr float kZero = 0.0f;

// 16 outputs of one part: the columns of one group.
struct Columns {
  const float* row[kGroupColumns];
  int64_t stride[kGroupColumns];

  Columns(const PackPart& part, int64_t first) {
    for (int64_t j = 0; j < kGroupColumns; ++j) {
      const float* start = part.rows[first + j];
      row[j] = start == nullptr ? &kZero : start;
      stride[j] = start == nullptr ? 0 : part.stride;
    }
  }

  float at(int64_t j, int64_t k) const { return row[j][k * stride[j]]; }

  // A weight as it is: each output's values of k are in a row.
  bool rows() const {
    for (int64_t j = 0; j < kGroupColumns; ++j)
      if (stride[j] != 1) return false;
    return true;
  }
};

#if defined(__SSE2__)
// 4 x 4 values of a weight as it is: those of outputs [j, j + 4) from k on.
void transpose(const Columns& columns, int64_t j, int64_t k, float* out) {
  __m128 a = _mm_loadu_ps(columns.row[j] + k), b = _mm_loadu_ps(columns.row[j + 1] + k);
  __m128 c = _mm_loadu_ps(columns.row[j + 2] + k), d = _mm_loadu_ps(columns.row[j + 3] + k);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a), _mm_storeu_ps(out + kGroupColumns, b);
  _mm_storeu_ps(out + 2 * kGroupColumns, c), _mm_storeu_ps(out + 3 * kGroupColumns, d);
}
#endif

// Every training step packs its weights.
char* pack_float32(const Columns& columns, int64_t K, char* out) {
  int64_t k = 0;
#if defined(__SSE2__)
  // A cache line of four outputs, then of the next four: lines of rows that are 4 KB apart (H = 1024) share a
  // set of the cache, which does not hold 16 of them.
  constexpr int64_t kLine = 16;
  const int64_t whole = columns.rows() ? K / 4 * 4 : 0;
  for (int64_t end; k < whole; k = end) {
    end = std::min(k + kLine, whole);
    for (int64_t j = 0; j < kGroupColumns; j += 4)
      for (int64_t i = k; i < end; i += 4)
        transpose(columns, j, i, reinterpret_cast<float*>(out) + i * kGroupColumns + j);
  }
  out += k * kGroupColumns * static_cast<int64_t>(sizeof(float));
#endif
  for (; k < K; ++k, out += kGroupColumns * sizeof(float)) {
    float words[kGroupColumns];
    for (int64_t j = 0; j < kGroupColumns; ++j) words[j] = columns.at(j, k);
    std::memcpy(out, words, sizeof words);
  }
  return out;
}

// How many outputs of a transposed weight the panel holds, of which one k is up to 256 bytes in a row; 0 when
// the weight is none.
int64_t adjacent_outputs(const PackPart& part) {
  int64_t n = 0;
  while (n < kPanelColumns && part.rows[n] != nullptr && part.rows[n] == part.rows[0] + n) ++n;
  const bool alone =
      std::all_of(part.rows + n, part.rows + kPanelColumns, [](auto row) { return row == nullptr; });
  return alone ? n : 0;
}

void pack_adjacent(const PackPart& part, int64_t outputs, float* out) {
  for (int64_t k = 0; k < part.k; ++k)
    for (int64_t first = 0; first < kPanelColumns; first += kGroupColumns) {
      const float* from = part.rows[0] + k * part.stride + first;
      float* to = out + first * part.k + k * kGroupColumns;
      if (first + kGroupColumns <= outputs)
        std::memcpy(to, from, kGroupColumns * sizeof(float));
      else
        for (int64_t j = 0; j < kGroupColumns; ++j) to[j] = first + j < outputs ? from[j] : 0.0f;
    }
}

// `encode(value, j)` is what one value becomes, in the low bits.
template <int kValues, typename Encode>
char* pack_words(const Columns& columns, int64_t K, char* out, Encode encode) {
  for (int64_t k = 0; k < K; k += kValues) {
    uint32_t words[kGroupColumns] = {};
    for (int64_t v = 0; v < kValues && k + v < K; ++v)
      for (int64_t j = 0; j < kGroupColumns; ++j)
        words[j] |= encode(columns.at(j, k + v), j) << (32 / kValues * v);
    std::memcpy(out, words, sizeof words);
    out += sizeof words;
  }
  return out;
}

}  // namespace

void pack_panel(const char* what, const PackPart* parts, int count, WeightType type, void* panel) {
  char* out = static_cast<char*>(panel);
  float inverse[kPanelColumns] = {};
  if (type == WeightType::kInt8) {
    float scales[kPanelColumns] = {};
    for (int64_t j = 0; j < kPanelColumns; ++j) {
      float largest = 0.0f;
      for (int i = 0; i < count; ++i)
        for (int64_t k = 0; parts[i].rows[j] != nullptr && k < parts[i].k; ++k) {
          const float value = parts[i].rows[j][k * parts[i].stride];
          LRCN_CHECK(std::isfinite(value), what, " must be finite to be stored as int8, got ", value);
          largest = std::max(largest, std::fabs(value));
        }
      if (largest < 1e-30f) continue;  // such a row becomes zero: 127 / largest could overflow
      inverse[j] = 127.0f / largest;
      scales[j] = largest / 127.0f;
    }
    std::memcpy(out, scales, sizeof scales);
    out += sizeof scales;
  }

  if (type == WeightType::kFloat32 && count == 1) {
    const int64_t outputs = adjacent_outputs(parts[0]);
    if (outputs > 0) return pack_adjacent(parts[0], outputs, static_cast<float*>(panel));
  }
  for (int64_t group = 0; group < kPanelColumns; group += kGroupColumns)
    for (int i = 0; i < count; ++i) {
      const Columns columns(parts[i], group);
      const int64_t K = parts[i].k;
      if (type == WeightType::kFloat32) {
        out = pack_float32(columns, K, out);
      } else if (type == WeightType::kBFloat16) {
        out = pack_words<2>(columns, K, out, [](float value, int64_t) { return to_bfloat16(value); });
      } else {
        out = pack_words<4>(columns, K, out, [&](float value, int64_t j) {
          return static_cast<uint32_t>(std::lrintf(value * inverse[group + j]) + 128);
        });
      }
    }
}

}  // namespace lrcn
