#include "core/formats/ggml_blocks.hpp"

#include <array>
#include <cmath>

#include "core/arith.hpp"
#include "core/arith64.hpp"
#include "core/errors.hpp"
#include "core/formats/fp16.hpp"
#include "core/formats/small_float.hpp"

namespace kvatlas::num {

namespace {

constexpr std::array<float, 16> kIq4Levels{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// Doubled E2M1 values, so that they are integers; the scale is halved to match.
constexpr std::array<float, 16> kFp4Doubled{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

using Codes = std::array<std::uint8_t, 32>;

void store16(float x, std::byte* to) {
  const std::uint16_t code = encode_fp16(x);
  to[0] = static_cast<std::byte>(code & 0xFFU);
  to[1] = static_cast<std::byte>(code >> 8);
}
float load16(const std::byte* from) {
  return decode_fp16(static_cast<std::uint16_t>(static_cast<unsigned>(from[0]) | static_cast<unsigned>(from[1]) << 8));
}

/// 1 / d, 0 where d is 0 or so small that the quotient has no float32.
float inverse(float d) {
  const float id = d == 0.0F ? 0.0F : 1.0F / d;
  return is_finite(id) ? id : 0.0F;
}

std::uint8_t truncated(float x, float highest) { return static_cast<std::uint8_t>(num::clamp(x, 0.0F, highest)); }

/// The low four bits of `half` * 2 codes, codes j and j + half in byte j.
void pack_nibbles(const std::uint8_t* codes, int half, std::byte* to) {
  for (int j = 0; j < half; ++j) to[j] = static_cast<std::byte>((codes[j] & 0xFU) | (codes[j + half] & 0xFU) << 4);
}
void unpack_nibbles(const std::byte* from, int half, std::uint8_t* codes) {
  for (int j = 0; j < half; ++j) {
    codes[j] = static_cast<std::uint8_t>(static_cast<unsigned>(from[j]) & 0xFU);
    codes[j + half] = static_cast<std::uint8_t>(static_cast<unsigned>(from[j]) >> 4);
  }
}

void pack_fifth_bits(const Codes& codes, std::byte* to) {
  std::uint32_t word = 0;
  for (std::size_t i = 0; i < 32; ++i) word |= (static_cast<std::uint32_t>(codes[i]) >> 4 & 1U) << i;
  for (int b = 0; b < 4; ++b) to[b] = static_cast<std::byte>((word >> (8 * b)) & 0xFFU);
}
void unpack_fifth_bits(const std::byte* from, Codes& codes) {
  for (std::size_t i = 0; i < 32; ++i)
    codes[i] = static_cast<std::uint8_t>(codes[i] | ((static_cast<unsigned>(from[i / 8]) >> (i % 8) & 1U) << 4));
}

/// The value of largest magnitude; of equal ones the first.
float extreme_of(const float* x, int n) {
  float largest = 0.0F, extreme = 0.0F;
  for (int i = 0; i < n; ++i)
    if (largest < std::fabs(x[i])) {
      largest = std::fabs(x[i]);
      extreme = x[i];
    }
  return extreme;
}

void encode_q8_0(const float* x, std::byte* to) {
  const float d = std::fabs(extreme_of(x, 32)) / 127.0F, id = inverse(d);
  store16(d, to);
  for (int i = 0; i < 32; ++i) to[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(x[i] * id)));
}

void encode_symmetric(const float* x, int levels, Codes& codes, std::byte* to) {  // q4_0: levels 16, q5_0: 32
  const float half = static_cast<float>(levels) / 2.0F;
  const float d = extreme_of(x, 32) / -half, id = inverse(d);
  store16(d, to);
  for (std::size_t i = 0; i < 32; ++i) codes[i] = truncated(x[i] * id + (half + 0.5F), static_cast<float>(levels - 1));
}

void encode_range(const float* x, int levels, Codes& codes, std::byte* to) {  // q4_1, q5_1
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = num::min(low, x[i]);
    high = num::max(high, x[i]);
  }
  const float d = (high - low) / static_cast<float>(levels - 1), id = inverse(d);
  store16(d, to);
  store16(low, to + 2);
  for (std::size_t i = 0; i < 32; ++i) codes[i] = truncated((x[i] - low) * id + 0.5F, static_cast<float>(levels - 1));
}

std::uint8_t nearest_iq4(float x) {
  if (x <= kIq4Levels[0]) return 0;
  if (x >= kIq4Levels[15]) return 15;
  std::size_t above = 1;
  while (x >= kIq4Levels[above]) ++above;
  return static_cast<std::uint8_t>(x - kIq4Levels[above - 1] < kIq4Levels[above] - x ? above - 1 : above);
}

void encode_iq4_nl(const float* x, std::byte* to) {
  Codes codes{};
  const float extreme = extreme_of(x, 32);
  float d = 0.0F;
  if (std::fabs(extreme) >= 1e-15F) {  // ggml's smallest block
    const float id = 1.0F / (extreme / kIq4Levels[0]);
    float with_x = 0.0F, with_level = 0.0F;  // weights x^2: sums in ascending element, each product rounded
    for (std::size_t i = 0; i < 32; ++i) {
      codes[i] = nearest_iq4(id * x[i]);
      const float level = kIq4Levels[codes[i]], weight = x[i] * x[i];
      with_x += weight * level * x[i];
      with_level += weight * level * level;
    }
    d = with_x / with_level;
    if (!is_finite(d)) d = extreme / kIq4Levels[0];  // the sums left float32: the scale before its refinement
  }
  store16(d, to);
  pack_nibbles(codes.data(), 16, to + 2);
}

std::uint8_t nearest_fp4(float x, float half_scale) {
  std::uint8_t best = 0;
  float least = std::fabs(kFp4Doubled[0] * half_scale - x);
  for (std::uint8_t i = 1; i < 16; ++i) {
    const float error = std::fabs(kFp4Doubled[i] * half_scale - x);
    if (error < least) {
      best = i;
      least = error;
    }
  }
  return best;
}

/// 2^(e - 128): half of what E8M0 means.
float half_e8m0(std::uint32_t e) { return float_of(e < 2 ? 0x00200000U << e : (e - 1) << 23); }

void encode_mxfp4(const float* x, std::byte* to) {
  const float largest = std::fabs(extreme_of(x, 32));
  // ggml floors a float32 logarithm, which rounds up to the power of two just above.
  const float exponent = largest > 0.0F ? std::floor(static_cast<float>(num::log2(static_cast<double>(largest)))) + 125.0F : 0.0F;
  const auto e = static_cast<std::uint32_t>(num::max(exponent, 0.0F));
  to[0] = static_cast<std::byte>(e);
  Codes codes{};
  for (std::size_t i = 0; i < 32; ++i) codes[i] = nearest_fp4(x[i], half_e8m0(e));
  pack_nibbles(codes.data(), 16, to + 1);
}

/// Half of what a block scale means; 0x7F, the NaN of the format, counts as 0.
float half_ue4m3(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7FU;
  return magnitude == 0x7FU ? 0.0F : float_of(detail::widen_magnitude<3, 7>(magnitude)) * 0.5F;
}

void encode_nvfp4(const float* x, std::byte* to) {
  for (int s = 0; s < 4; ++s) {
    const std::uint8_t scale = encode_ggml_ue4m3(std::fabs(extreme_of(x + 16 * s, 16)) / 6.0F);
    to[s] = static_cast<std::byte>(scale);
    std::array<std::uint8_t, 16> codes{};
    for (std::size_t i = 0; i < 16; ++i) codes[i] = nearest_fp4(x[static_cast<std::size_t>(16 * s) + i], half_ue4m3(scale));
    pack_nibbles(codes.data(), 8, to + 4 + 8 * s);
  }
}

void encode_block(GgmlType type, const float* x, std::byte* to) {
  Codes codes{};
  switch (type) {
    case GgmlType::q8_0: encode_q8_0(x, to); break;
    case GgmlType::q5_1:
      encode_range(x, 32, codes, to);
      pack_fifth_bits(codes, to + 4);
      pack_nibbles(codes.data(), 16, to + 8);
      break;
    case GgmlType::q5_0:
      encode_symmetric(x, 32, codes, to);
      pack_fifth_bits(codes, to + 2);
      pack_nibbles(codes.data(), 16, to + 6);
      break;
    case GgmlType::q4_1:
      encode_range(x, 16, codes, to);
      pack_nibbles(codes.data(), 16, to + 4);
      break;
    case GgmlType::q4_0:
      encode_symmetric(x, 16, codes, to);
      pack_nibbles(codes.data(), 16, to + 2);
      break;
    case GgmlType::iq4_nl: encode_iq4_nl(x, to); break;
    case GgmlType::mxfp4: encode_mxfp4(x, to); break;
    case GgmlType::nvfp4: encode_nvfp4(x, to); break;
  }
}

void decode_block(GgmlType type, const std::byte* from, float* x) {
  Codes codes{};
  const auto linear = [&](float d, float offset, float m) {
    for (std::size_t i = 0; i < 32; ++i) x[i] = (static_cast<float>(codes[i]) - offset) * d + m;
  };
  switch (type) {
    case GgmlType::q8_0:
      for (int i = 0; i < 32; ++i) x[i] = static_cast<float>(static_cast<std::int8_t>(from[2 + i])) * load16(from);
      break;
    case GgmlType::q5_1:
      unpack_nibbles(from + 8, 16, codes.data());
      unpack_fifth_bits(from + 4, codes);
      linear(load16(from), 0.0F, load16(from + 2));
      break;
    case GgmlType::q5_0:
      unpack_nibbles(from + 6, 16, codes.data());
      unpack_fifth_bits(from + 2, codes);
      for (std::size_t i = 0; i < 32; ++i) x[i] = (static_cast<float>(codes[i]) - 16.0F) * load16(from);
      break;
    case GgmlType::q4_1:
      unpack_nibbles(from + 4, 16, codes.data());
      linear(load16(from), 0.0F, load16(from + 2));
      break;
    case GgmlType::q4_0:
      unpack_nibbles(from + 2, 16, codes.data());
      for (std::size_t i = 0; i < 32; ++i) x[i] = (static_cast<float>(codes[i]) - 8.0F) * load16(from);
      break;
    case GgmlType::iq4_nl:
      unpack_nibbles(from + 2, 16, codes.data());
      for (std::size_t i = 0; i < 32; ++i) x[i] = load16(from) * kIq4Levels[codes[i]];
      break;
    case GgmlType::mxfp4:
      unpack_nibbles(from + 1, 16, codes.data());
      for (std::size_t i = 0; i < 32; ++i) x[i] = kFp4Doubled[codes[i]] * half_e8m0(static_cast<std::uint32_t>(from[0]));
      break;
    case GgmlType::nvfp4:
      for (int s = 0; s < 4; ++s) {
        std::array<std::uint8_t, 16> part{};
        unpack_nibbles(from + 4 + 8 * s, 8, part.data());
        for (std::size_t i = 0; i < 16; ++i)
          x[static_cast<std::size_t>(16 * s) + i] = kFp4Doubled[part[i]] * half_ue4m3(static_cast<std::uint8_t>(from[s]));
      }
      break;
  }
}

std::size_t check_blocks(GgmlType type, std::size_t values, std::size_t bytes) {
  const GgmlShape shape = ggml_shape(type);
  const std::size_t blocks = values / static_cast<std::size_t>(shape.values);
  KV_ASSERT(blocks * static_cast<std::size_t>(shape.values) == values && blocks * static_cast<std::size_t>(shape.bytes) == bytes,
            "ggml blocks are whole");
  return blocks;
}

}  // namespace

const char* name_of(GgmlType type) {
  constexpr std::array<const char*, 8> kNames{"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4", "nvfp4"};
  return kNames[static_cast<std::size_t>(type)];
}

std::uint8_t encode_ggml_ue4m3(float x) {
  if (!(x > 0.0F)) return 0;
  const std::uint32_t bits = bits_of(x);
  const int exponent = static_cast<int>(bits >> 23) - 120;  // biased by 7
  if (exponent <= 0) {
    const int units = static_cast<int>(x * 512.0F + 0.5F);
    return static_cast<std::uint8_t>(units > 7 ? 7 : units);
  }
  if (exponent >= 15) return 0x7EU;
  const std::uint32_t code = (static_cast<std::uint32_t>(exponent) << 3 | (bits >> 20 & 7U)) + (bits >> 19 & 1U);  // a carry raises the exponent
  return code >= 0x78U ? std::uint8_t{0x7E} : static_cast<std::uint8_t>(code);
}

void encode_ggml(GgmlType type, std::span<const float> x, std::span<std::byte> out) {
  const GgmlShape shape = ggml_shape(type);
  for (std::size_t b = 0; b < check_blocks(type, x.size(), out.size()); ++b)
    encode_block(type, x.data() + b * static_cast<std::size_t>(shape.values), out.data() + b * static_cast<std::size_t>(shape.bytes));
}

void decode_ggml(GgmlType type, std::span<const std::byte> blocks, std::span<float> x) {
  const GgmlShape shape = ggml_shape(type);
  for (std::size_t b = 0; b < check_blocks(type, x.size(), blocks.size()); ++b)
    decode_block(type, blocks.data() + b * static_cast<std::size_t>(shape.bytes), x.data() + b * static_cast<std::size_t>(shape.values));
}

}  // namespace kvatlas::num
