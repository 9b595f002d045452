#include "core/formats/group_codes.hpp"

#include <cstring>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/fp16.hpp"
#include "core/formats/fp8.hpp"
#include "core/formats/int_codes.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__BMI2__)
#include <immintrin.h>
#define KV_WIDE_CODES 1
#else
#define KV_WIDE_CODES 0
#endif

namespace kvatlas::num {

namespace {

constexpr float kLargestHalf = 65504.0F;

/// Values of one group, and its bytes; groups are in memory one after the other.
struct GroupSize {
  std::size_t values, bytes;
};
GroupSize group_size(std::size_t values, std::size_t groups, int bits, std::size_t bytes, std::size_t zeros) {
  KV_ASSERT(bits == 2 || bits == 4 || bits == 8, "codes of a group have 2, 4 or 8 bits");
  KV_ASSERT(groups > 0 && groups == zeros && values % groups == 0, "a scale and a zero for each group");
  const GroupSize size{.values = values / groups, .bytes = values / groups * static_cast<std::size_t>(bits) / 8};
  KV_ASSERT(size.values > 0 && size.bytes * 8 == size.values * static_cast<std::size_t>(bits) && size.bytes * groups == bytes, "a group fills whole bytes");
  return size;
}

float to_half(float x) { return decode_fp16(encode_fp16(x)); }

/// One group whose values lie `stride` apart.
void encode_group(const float* values, std::size_t n, std::size_t stride, int bits, std::byte* codes, std::uint16_t& scale_bits, std::uint16_t& zero_bits) {
  const auto input = [&](std::size_t i) { return to_half(clamp(values[i * stride], -kLargestHalf, kLargestHalf)); };
  const float top = static_cast<float>((1 << bits) - 1);
  float low = input(0), high = low;
  for (std::size_t i = 1; i < n; ++i) {
    low = min(low, input(i));
    high = max(high, input(i));
  }
  float scale = to_half(to_half(high - low) / top);
  if (!is_finite(scale) || scale == 0) scale = 0;
  scale_bits = encode_fp16(scale);
  zero_bits = encode_fp16(low);
  std::memset(codes, 0, n * static_cast<std::size_t>(bits) / 8);
  if (scale == 0) return;
  const auto per_byte = static_cast<std::size_t>(8 / bits);
  for (std::size_t i = 0; i < n; ++i) {
    const auto code = static_cast<unsigned>(rint(clamp(to_half(to_half(input(i) - low) / scale), 0.0F, top)));
    codes[i / per_byte] |= static_cast<std::byte>(code << (static_cast<unsigned>(bits) * static_cast<unsigned>(i % per_byte)));
  }
}

void decode_group(const std::byte* codes, std::size_t n, std::size_t stride, int bits, std::uint16_t scale_bits, std::uint16_t zero_bits, float* values) {
  const float scale = decode_fp16(scale_bits), zero = decode_fp16(zero_bits);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t code = code_at(reinterpret_cast<const std::uint8_t*>(codes), static_cast<std::int64_t>(i), bits);
    values[i * stride] = scale == 0 ? zero : fma(static_cast<float>(code), scale, zero);
  }
}

}  // namespace

namespace scalar {

void encode_groups(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  for (std::size_t g = 0; g < scales.size(); ++g)
    encode_group(values.data() + g * size.values, size.values, 1, bits, codes.data() + g * size.bytes, scales[g], zeros[g]);
}

void decode_groups(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  for (std::size_t g = 0; g < scales.size(); ++g)
    decode_group(codes.data() + g * size.bytes, size.values, 1, bits, scales[g], zeros[g], values.data() + g * size.values);
}

void encode_columns(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  for (std::size_t c = 0; c < scales.size(); ++c)
    encode_group(values.data() + c, size.values, scales.size(), bits, codes.data() + c * size.bytes, scales[c], zeros[c]);
}

void decode_columns(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  for (std::size_t c = 0; c < scales.size(); ++c)
    decode_group(codes.data() + c * size.bytes, size.values, scales.size(), bits, scales[c], zeros[c], values.data() + c);
}

void encode_e4m3_row(std::span<const float> values, float scale, std::span<std::byte> codes) {
  KV_ASSERT(values.size() == codes.size(), "a byte a value");
  for (std::size_t i = 0; i < values.size(); ++i) codes[i] = static_cast<std::byte>(encode_e4m3(values[i] / scale));
}

void decode_e4m3_row(std::span<const std::byte> codes, float scale, std::span<float> values) {
  KV_ASSERT(values.size() == codes.size(), "a byte a value");
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = decode_e4m3(std::to_integer<std::uint8_t>(codes[i])) * scale;
}

}  // namespace scalar

#if KV_WIDE_CODES

namespace {

__m256 to_half(__m256 x) { return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
void store_halves(__m256 x, std::uint16_t* out) {
  const __m128i bits = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(out, &bits, sizeof bits);
}

/// Scales and zeros of eight groups.
struct EightGroups {
  __m256 zero, scale, inverse;
  bool plain;  // no zero among the zeros, whose sign is the first one's; nothing beyond fp16; scales large enough: else the definition does it
  bool exact;  // rounding the values to fp16 first changes no code
};

/// From the extremes of the values: rounding keeps their order, so the extremes of rounded values are the rounded extremes.
/// `bits_seen` holds every bit that is set in a value. Values whose last 13 bits are 0 are fp16 numbers unless they are below 2^-14,
/// and such a one, rounded or not, leaves x - zero nearest to the same fp16 number where |zero| is at least 1/2.
template <int Bits>
EightGroups eight_groups(__m256 low, __m256 high, __m256i bits_seen, __m256 top) {
  const __m256 bound = _mm256_set1_ps(kLargestHalf), none = _mm256_setzero_ps();
  EightGroups g{.zero = to_half(low), .scale = {}, .inverse = {}, .plain = false, .exact = false};
  high = to_half(high);
  g.scale = to_half(_mm256_div_ps(to_half(_mm256_sub_ps(high, g.zero)), top));
  const __m256 inside = _mm256_and_ps(_mm256_cmp_ps(g.zero, _mm256_sub_ps(none, bound), _CMP_GE_OQ), _mm256_cmp_ps(high, bound, _CMP_LE_OQ));
  g.inverse = _mm256_div_ps(_mm256_set1_ps(1.0F), g.scale);
  // With a normal scale (off by 2^-11 at most) no quotient of up to 4 bits reaches half a code above the largest, so none is clamped.
  const __m256 least = _mm256_set1_ps(Bits == 8 ? 0x1p-24F : 0x1p-14F);
  const __m256 usable = _mm256_and_ps(_mm256_cmp_ps(g.scale, least, _CMP_GE_OQ), _mm256_cmp_ps(g.scale, _mm256_set1_ps(infinity()), _CMP_LT_OQ));
  g.plain = _mm256_movemask_ps(_mm256_and_ps(_mm256_and_ps(inside, usable), _mm256_cmp_ps(g.zero, none, _CMP_NEQ_OQ))) == 0xFF;
  const __m256 far = _mm256_cmp_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0F), g.zero), _mm256_set1_ps(0.5F), _CMP_GE_OQ);
  g.exact = _mm256_movemask_ps(far) == 0xFF && _mm256_testz_si256(bits_seen, _mm256_set1_epi32(0x1FFF)) != 0;
  return g;
}

/// r(x / scale) of two fp16 numbers, by the float32 inverse of the scale and Veltkamp's splitting, which rounds to the nearest number of 11
/// bits. The middle m of two such numbers has 12 bits, the last one 1: m * scale is no fp16 number, so the quotient is no middle, and is
/// off one by more than 1 / (m * scale) > 2^-23 of itself, the product by less. Below 2^-14, where fp16 has fewer bits, the code is 0 anyway.
__m256 quotient_to_half(__m256 x, __m256 inverse) {
  const __m256 q = _mm256_mul_ps(x, inverse), c = _mm256_mul_ps(q, _mm256_set1_ps(8193.0F));
  return _mm256_sub_ps(c, _mm256_sub_ps(c, q));
}

/// Codes of values of plain groups; none is below 0, and the conversion to an integer rounds to nearest even, as rint does.
template <int Bits, bool Exact>
__m256i codes_of(__m256 values, __m256 zero, __m256 inverse, __m256 top) {
  const __m256 steps = quotient_to_half(to_half(_mm256_sub_ps(Exact ? values : to_half(values), zero)), inverse);
  return _mm256_cvtps_epi32(Bits == 8 ? _mm256_min_ps(steps, top) : steps);
}

/// 32 codes, four vectors in order, as bytes.
__m256i bytes_of(const __m256i* codes) {
  const __m256i words = _mm256_packus_epi16(_mm256_packus_epi32(codes[0], codes[1]), _mm256_packus_epi32(codes[2], codes[3]));
  return _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/// 32 codes of a byte each as a stream of 4 * Bits bytes: neighbours meet in a word of two, then of four.
template <int Bits>
void store_packed(__m256i bytes, std::byte* to) {
  if constexpr (Bits == 8) {
    std::memcpy(to, &bytes, sizeof bytes);
  } else if constexpr (Bits == 4) {
    const __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
    std::memcpy(to, &packed, 16);
  } else {
    const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0401)), _mm256_set1_epi32(0x00100001));
    const __m256i words = _mm256_packus_epi32(fours, fours), packed = _mm256_packus_epi16(words, words);
    const std::uint64_t eight = static_cast<std::uint32_t>(_mm256_extract_epi32(packed, 0)) | static_cast<std::uint64_t>(static_cast<std::uint32_t>(_mm256_extract_epi32(packed, 4))) << 32;
    std::memcpy(to, &eight, sizeof eight);
  }
}

/// Eight codes from `Bits` bytes, as floats.
template <int Bits>
__m256 unpacked_eight(const std::byte* packed) {
  constexpr std::uint64_t kMask = 0x0101010101010101ULL * ((1U << Bits) - 1U);
  std::uint64_t bits = 0;
  std::memcpy(&bits, packed, Bits);
  const std::uint64_t bytes = Bits == 8 ? bits : _pdep_u64(bits, kMask);
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes))));
}

/// Lane l of the result is `pick` over all lanes of x[l].
template <class Pick>
__m256 reduced(const __m256* x, Pick pick) {
  __m256 two[4], four[2];
  for (int i = 0; i < 4; ++i) two[i] = pick(_mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    four[i] = pick(_mm256_shuffle_ps(two[2 * i], two[2 * i + 1], 0x44), _mm256_shuffle_ps(two[2 * i], two[2 * i + 1], 0xEE));
  return pick(_mm256_permute2f128_ps(four[0], four[1], 0x20), _mm256_permute2f128_ps(four[0], four[1], 0x31));
}

/// The codes of one group of whole 32 values.
template <int Bits, bool Exact>
void encode_one(const float* values, std::size_t n, __m256 zero, __m256 inverse, __m256 top, std::byte* to) {
  for (std::size_t i = 0; i < n; i += 32, to += 4 * Bits) {
    __m256i code[4];
    for (std::size_t v = 0; v < 4; ++v) code[v] = codes_of<Bits, Exact>(_mm256_loadu_ps(values + i + 8 * v), zero, inverse, top);
    store_packed<Bits>(bytes_of(code), to);
  }
}

/// Eight groups at a time, so that no result is waited for.
template <int Bits>
void encode_groups_wide(const float* values, GroupSize size, std::size_t groups, std::byte* codes, std::uint16_t* scales, std::uint16_t* zeros) {
  const __m256 top = _mm256_set1_ps(static_cast<float>((1 << Bits) - 1));
  for (std::size_t g = 0; g < groups; g += 8, values += 8 * size.values) {
    __m256 low[8], high[8];
    __m256i seen = _mm256_setzero_si256();
    for (std::size_t l = 0; l < 8; ++l) {
      const float* group = values + l * size.values;
      low[l] = high[l] = _mm256_loadu_ps(group);
      for (std::size_t i = 0; i < size.values; i += 8) {
        const __m256 x = _mm256_loadu_ps(group + i);
        low[l] = _mm256_min_ps(x, low[l]);
        high[l] = _mm256_max_ps(x, high[l]);
        seen = _mm256_or_si256(seen, _mm256_castps_si256(x));
      }
    }
    const EightGroups eight = eight_groups<Bits>(reduced(low, [](__m256 a, __m256 b) { return _mm256_min_ps(a, b); }),
                                                 reduced(high, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); }), seen, top);
    if (!eight.plain) {
      for (std::size_t l = 0; l < 8; ++l) encode_group(values + l * size.values, size.values, 1, Bits, codes + (g + l) * size.bytes, scales[g + l], zeros[g + l]);
      continue;
    }
    store_halves(eight.scale, scales + g);
    store_halves(eight.zero, zeros + g);
    alignas(32) float inverse[8], zero[8];
    _mm256_store_ps(inverse, eight.inverse);
    _mm256_store_ps(zero, eight.zero);
    const auto encode = eight.exact ? encode_one<Bits, true> : encode_one<Bits, false>;
    for (std::size_t l = 0; l < 8; ++l)
      encode(values + l * size.values, size.values, _mm256_broadcast_ss(zero + l), _mm256_broadcast_ss(inverse + l), top, codes + (g + l) * size.bytes);
  }
}

template <int Bits>
void decode_groups_wide(const std::byte* codes, GroupSize size, std::size_t groups, const std::uint16_t* scales, const std::uint16_t* zeros, float* values) {
  for (std::size_t g = 0; g < groups; ++g) {
    const __m256 scale = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(scales[g]))), zero = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(zeros[g])));
    const __m256 constant = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_EQ_OQ);
    for (std::size_t i = 0; i < size.values; i += 8, codes += Bits, values += 8)
      _mm256_storeu_ps(values, _mm256_blendv_ps(_mm256_fmadd_ps(unpacked_eight<Bits>(codes), scale, zero), zero, constant));
  }
}

/// The codes of eight channels of a block, gathered in 32-bit words.
template <int Bits, bool Exact>
void encode_eight_columns(const float* values, GroupSize size, std::size_t channels, const EightGroups& g, __m256 top, std::byte* codes) {
  constexpr std::size_t kCodes = 32 / Bits;
  alignas(32) std::uint32_t words[8];
  for (std::size_t first = 0; first < size.values; first += kCodes) {
    __m256i word = _mm256_setzero_si256();
    for (std::size_t j = 0; j < kCodes; ++j)
      word = _mm256_or_si256(word, _mm256_slli_epi32(codes_of<Bits, Exact>(_mm256_loadu_ps(values + (first + j) * channels), g.zero, g.inverse, top), static_cast<int>(j) * Bits));
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), word);
    for (std::size_t l = 0; l < 8; ++l) std::memcpy(codes + l * size.bytes + first * Bits / 8, &words[l], sizeof words[l]);
  }
}

template <int Bits>
void encode_columns_wide(const float* values, GroupSize size, std::size_t channels, std::byte* codes, std::uint16_t* scales, std::uint16_t* zeros) {
  const __m256 top = _mm256_set1_ps(static_cast<float>((1 << Bits) - 1));
  for (std::size_t c = 0; c < channels; c += 8) {
    __m256 low = _mm256_loadu_ps(values + c), high = low;
    __m256i seen = _mm256_castps_si256(low);
    for (std::size_t t = 1; t < size.values; ++t) {
      const __m256 x = _mm256_loadu_ps(values + t * channels + c);
      low = _mm256_min_ps(x, low);
      high = _mm256_max_ps(x, high);
      seen = _mm256_or_si256(seen, _mm256_castps_si256(x));
    }
    const EightGroups eight = eight_groups<Bits>(low, high, seen, top);
    if (!eight.plain) {
      for (std::size_t l = c; l < c + 8; ++l) encode_group(values + l, size.values, channels, Bits, codes + l * size.bytes, scales[l], zeros[l]);
      continue;
    }
    store_halves(eight.scale, scales + c);
    store_halves(eight.zero, zeros + c);
    (eight.exact ? encode_eight_columns<Bits, true> : encode_eight_columns<Bits, false>)(values + c, size, channels, eight, top, codes + c * size.bytes);
  }
}

template <int Bits>
void decode_columns_wide(const std::byte* codes, GroupSize size, std::size_t channels, const std::uint16_t* scales, const std::uint16_t* zeros, float* values) {
  constexpr std::size_t kCodes = 32 / Bits;
  const __m256i mask = _mm256_set1_epi32((1 << Bits) - 1);
  alignas(32) std::uint32_t words[8];
  for (std::size_t c = 0; c < channels; c += 8) {
    __m128i half;
    std::memcpy(&half, scales + c, sizeof half);
    const __m256 scale = _mm256_cvtph_ps(half);
    std::memcpy(&half, zeros + c, sizeof half);
    const __m256 zero = _mm256_cvtph_ps(half), constant = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_EQ_OQ);
    for (std::size_t first = 0; first < size.values; first += kCodes) {
      for (std::size_t l = 0; l < 8; ++l) std::memcpy(&words[l], codes + (c + l) * size.bytes + first * Bits / 8, sizeof words[l]);
      const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(words));
      for (std::size_t j = 0; j < kCodes; ++j) {
        const __m256 code = _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(word, static_cast<int>(j) * Bits), mask));
        _mm256_storeu_ps(values + (first + j) * channels + c, _mm256_blendv_ps(_mm256_fmadd_ps(code, scale, zero), zero, constant));
      }
    }
  }
}

}  // namespace

void encode_groups(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  const std::size_t wide = size.values % 32 == 0 ? scales.size() / 8 * 8 : 0, rest = scales.size() - wide;
  const auto encode = bits == 2 ? encode_groups_wide<2> : bits == 4 ? encode_groups_wide<4> : encode_groups_wide<8>;
  if (wide > 0) encode(values.data(), size, wide, codes.data(), scales.data(), zeros.data());
  if (rest > 0) scalar::encode_groups(values.subspan(wide * size.values), bits, codes.subspan(wide * size.bytes), scales.subspan(wide), zeros.subspan(wide));
}

void decode_groups(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  if (size.values % 8 != 0) return scalar::decode_groups(codes, bits, scales, zeros, values);
  const auto decode = bits == 2 ? decode_groups_wide<2> : bits == 4 ? decode_groups_wide<4> : decode_groups_wide<8>;
  decode(codes.data(), size, scales.size(), scales.data(), zeros.data(), values.data());
}

void encode_columns(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  if (scales.size() % 8 != 0 || size.bytes % 4 != 0) return scalar::encode_columns(values, bits, codes, scales, zeros);
  const auto encode = bits == 2 ? encode_columns_wide<2> : bits == 4 ? encode_columns_wide<4> : encode_columns_wide<8>;
  encode(values.data(), size, scales.size(), codes.data(), scales.data(), zeros.data());
}

void decode_columns(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  const GroupSize size = group_size(values.size(), scales.size(), bits, codes.size(), zeros.size());
  if (scales.size() % 8 != 0 || size.bytes % 4 != 0) return scalar::decode_columns(codes, bits, scales, zeros, values);
  const auto decode = bits == 2 ? decode_columns_wide<2> : bits == 4 ? decode_columns_wide<4> : decode_columns_wide<8>;
  decode(codes.data(), size, scales.size(), scales.data(), zeros.data(), values.data());
}

/// Normal results round by an integer addition, subnormal ones (below 2^-6) by adding 2^14, whose last bit is worth 2^-9.
void encode_e4m3_row(std::span<const float> values, float scale, std::span<std::byte> codes) {
  KV_ASSERT(values.size() == codes.size(), "a byte a value");
  const __m256 by = _mm256_set1_ps(scale), magic = _mm256_set1_ps(16384.0F);
  // Half a unit less one, and the difference of the exponents' biases, which leaves at the same addition.
  const __m256i half = _mm256_set1_epi32(0x7FFFF - (120 << 23));
  std::size_t i = 0;
  for (; i + 32 <= values.size(); i += 32) {
    __m256i code[4], largest = _mm256_setzero_si256();
    for (std::size_t v = 0; v < 4; ++v) {
      const __m256i bits = _mm256_castps_si256(_mm256_div_ps(_mm256_loadu_ps(values.data() + i + 8 * v), by)), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
      const __m256i even = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
      const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(magnitude, half), even), 20);
      const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), magic)), _mm256_castps_si256(magic));
      const __m256i is_normal = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32((121 << 23) - 1));
      const __m256i unsigned_code = _mm256_min_epi32(_mm256_blendv_epi8(small, normal, is_normal), _mm256_set1_epi32(0x7E));
      code[v] = _mm256_or_si256(unsigned_code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
      largest = _mm256_max_epi32(largest, magnitude);
    }
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(largest, _mm256_set1_epi32(0x7F800000))) != 0) {  // a NaN among them
      scalar::encode_e4m3_row(values.subspan(i, 32), scale, codes.subspan(i, 32));
      continue;
    }
    const __m256i bytes = bytes_of(code);
    std::memcpy(codes.data() + i, &bytes, sizeof bytes);
  }
  scalar::encode_e4m3_row(values.subspan(i), scale, codes.subspan(i));
}

void decode_e4m3_row(std::span<const std::byte> codes, float scale, std::span<float> values) {
  KV_ASSERT(values.size() == codes.size(), "a byte a value");
  const __m256 by = _mm256_set1_ps(scale), unit = _mm256_set1_ps(1.0F / 512.0F);
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, codes.data() + i, sizeof eight);
    const __m256i code = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(eight))), magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7F));
    const __m256 normal = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23)));
    const __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), unit);
    __m256 x = _mm256_blendv_ps(normal, small, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude)));
    x = _mm256_blendv_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000)), _mm256_castsi256_ps(_mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7F))));
    x = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(0x80)), 24)));
    _mm256_storeu_ps(values.data() + i, _mm256_mul_ps(x, by));
  }
  scalar::decode_e4m3_row(codes.subspan(i), scale, values.subspan(i));
}

#else

void encode_groups(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  scalar::encode_groups(values, bits, codes, scales, zeros);
}
void decode_groups(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  scalar::decode_groups(codes, bits, scales, zeros, values);
}
void encode_columns(std::span<const float> values, int bits, std::span<std::byte> codes, std::span<std::uint16_t> scales, std::span<std::uint16_t> zeros) {
  scalar::encode_columns(values, bits, codes, scales, zeros);
}
void decode_columns(std::span<const std::byte> codes, int bits, std::span<const std::uint16_t> scales, std::span<const std::uint16_t> zeros, std::span<float> values) {
  scalar::decode_columns(codes, bits, scales, zeros, values);
}
void encode_e4m3_row(std::span<const float> values, float scale, std::span<std::byte> codes) { scalar::encode_e4m3_row(values, scale, codes); }
void decode_e4m3_row(std::span<const std::byte> codes, float scale, std::span<float> values) { scalar::decode_e4m3_row(codes, scale, values); }

#endif

}  // namespace kvatlas::num
