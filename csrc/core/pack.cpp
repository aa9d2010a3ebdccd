#include "pack.h"

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
      // The kernels compute with q * 2^24, so the scale that is stored undoes that. A row of weights under
      // 1e-28 would make it subnormal: such a row becomes zero.
      if (largest < 1e-28f) continue;
      inverse[j] = 127.0f / largest;
      scales[j] = largest / 127.0f / 16777216.0f;
    }
    std::memcpy(out, scales, sizeof scales);
    out += sizeof scales;
  }

  const int64_t per_word = values_per_word(type);
  for (int64_t group = 0; group < kPanelColumns; group += kGroupColumns)
    for (int i = 0; i < count; ++i) {
      const PackPart& part = parts[i];
      for (int64_t k = 0; k < part.k; k += per_word) {
        uint32_t words[kGroupColumns] = {};
        for (int64_t j = 0; j < kGroupColumns; ++j) {
          const float* row = part.rows[group + j];
          if (row == nullptr) continue;
          if (type == WeightType::kFloat32) {
            words[j] = bits_of(row[k * part.stride]);
            continue;
          }
          for (int64_t v = 0; v < per_word && k + v < part.k; ++v) {
            const float value = row[(k + v) * part.stride];
            words[j] |= type == WeightType::kBFloat16
                            ? to_bfloat16(value) << (16 * v)
                            : (static_cast<uint32_t>(std::lrintf(value * inverse[group + j])) & 0xffu)
                                  << (8 * v);
          }
        }
        std::memcpy(out, words, sizeof words);
        out += sizeof words;
      }
    }
}

}  // namespace lrcn
