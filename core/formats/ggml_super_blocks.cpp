#include "core/formats/ggml_super_blocks.hpp"

#include <array>

#include "core/errors.hpp"
#include "core/formats/fp16.hpp"

namespace kvatlas::num {

namespace {

unsigned at(const std::byte* p, int i) { return static_cast<unsigned>(p[i]); }
float half_at(const std::byte* p) { return decode_fp16(static_cast<std::uint16_t>(at(p, 0) | at(p, 1) << 8)); }

struct SubScales {
  std::array<float, 8> scale{}, minimum{};  // already times d and dmin
};

/// Six-bit scales and minima: the first four of each whole, the last four with their upper bits in the first four.
SubScales sub_scales(const std::byte* block) {
  const float d = half_at(block), dmin = half_at(block + 2);
  const std::byte* packed = block + 4;
  SubScales out;
  for (int j = 0; j < 8; ++j) {
    const unsigned s = j < 4 ? at(packed, j) & 63U : (at(packed, j + 4) & 15U) | at(packed, j - 4) >> 6 << 4;
    const unsigned m = j < 4 ? at(packed, j + 4) & 63U : at(packed, j + 4) >> 4 | at(packed, j) >> 6 << 4;
    out.scale[static_cast<std::size_t>(j)] = d * static_cast<float>(s);
    out.minimum[static_cast<std::size_t>(j)] = dmin * static_cast<float>(m);
  }
  return out;
}

/// Sub-block 2g lies in the low nibbles of the 32 bytes of group g, 2g + 1 in the high ones; bit j of fifth[l] belongs to sub-block j.
void decode_scaled(const std::byte* block, const std::byte* fifth, const std::byte* nibbles, float* x) {
  const SubScales scales = sub_scales(block);
  for (int j = 0; j < 8; ++j) {
    const float scale = scales.scale[static_cast<std::size_t>(j)], minimum = scales.minimum[static_cast<std::size_t>(j)];
    const std::byte* group = nibbles + 32 * (j / 2);
    std::array<float, 32> values{};  // a local array: bytes may alias x, this may not
    for (int l = 0; l < 32; ++l) {
      unsigned q = at(group, l) >> (4 * (j % 2)) & 15U;
      if (fifth != nullptr) q |= (at(fifth, l) >> j & 1U) << 4;
      values[static_cast<std::size_t>(l)] = scale * static_cast<float>(static_cast<int>(q)) - minimum;
    }
    for (int l = 0; l < 32; ++l) x[32 * j + l] = values[static_cast<std::size_t>(l)];
  }
}

void decode_q6_k(const std::byte* block, float* x) {
  const float d = half_at(block + 208);
  for (int n = 0; n < 2; ++n) {
    const std::byte *low = block + 64 * n, *high = block + 128 + 32 * n, *scales = block + 192 + 8 * n;
    for (int part = 0; part < 4; ++part) {  // 32 values: parts 0 and 1 in low nibbles, 2 and 3 in high ones
      std::array<float, 32> values{};
      for (int l = 0; l < 32; ++l) {
        const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[2 * part + l / 16]));
        const unsigned q = (at(low, 32 * (part % 2) + l) >> (4 * (part / 2)) & 15U) | (at(high, l) >> (2 * part) & 3U) << 4;
        values[static_cast<std::size_t>(l)] = scale * static_cast<float>(static_cast<int>(q) - 32);
      }
      for (int l = 0; l < 32; ++l) x[128 * n + 32 * part + l] = values[static_cast<std::size_t>(l)];
    }
  }
}

}  // namespace

void decode_ggml_super(GgmlSuperType type, std::span<const std::byte> blocks, std::span<float> x) {
  const auto size = static_cast<std::size_t>(super_block_bytes(type));
  const std::size_t count = blocks.size() / size;
  KV_ASSERT(count * size == blocks.size() && count * kGgmlSuperValues == x.size(), "ggml super-blocks are whole");
  for (std::size_t b = 0; b < count; ++b) {
    const std::byte* block = blocks.data() + b * size;
    float* to = x.data() + b * kGgmlSuperValues;
    switch (type) {
      case GgmlSuperType::q4_k: decode_scaled(block, nullptr, block + 16, to); break;
      case GgmlSuperType::q5_k: decode_scaled(block, block + 16, block + 48, to); break;
      case GgmlSuperType::q6_k: decode_q6_k(block, to); break;
    }
  }
}

}  // namespace kvatlas::num
