#include "core/formats/dtype.hpp"

#include <bit>
#include <cstring>

#if defined(__F16C__) && defined(__AVX__)
#include <immintrin.h>
#define KV_HAS_F16C 1
#else
#define KV_HAS_F16C 0
#endif

#include "core/errors.hpp"

namespace kvatlas::num {

namespace {

static_assert(std::endian::native == std::endian::little, "stored values are little-endian and copied as they lie");

template <std::uint16_t (*Encode)(float)>
void store_each(std::span<const float> values, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t code = Encode(values[i]);
    std::memcpy(out + 2 * i, &code, sizeof code);
  }
}

template <float (*Decode)(std::uint16_t)>
void load_each(const std::byte* stored, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t code = 0;
    std::memcpy(&code, stored + 2 * i, sizeof code);
    values[i] = Decode(code);
  }
}

/// Eight values at a time where the CPU converts them itself; the instruction's bits are those of encode_fp16.
std::size_t store_fp16_wide([[maybe_unused]] std::span<const float> values, [[maybe_unused]] std::byte* out) {
  std::size_t i = 0;
#if KV_HAS_F16C
  for (; i + 8 <= values.size(); i += 8) {
    const __m128i codes = _mm256_cvtps_ph(_mm256_loadu_ps(values.data() + i), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(out + 2 * i, &codes, sizeof codes);
  }
#endif
  return i;
}

std::size_t load_fp16_wide([[maybe_unused]] const std::byte* stored, [[maybe_unused]] std::span<float> values) {
  std::size_t i = 0;
#if KV_HAS_F16C
  for (; i + 8 <= values.size(); i += 8) {
    __m128i codes;
    std::memcpy(&codes, stored + 2 * i, sizeof codes);
    _mm256_storeu_ps(values.data() + i, _mm256_cvtph_ps(codes));
  }
#endif
  return i;
}

void check_bytes(Dtype dtype, std::size_t values, std::size_t bytes) {
  KV_ASSERT(bytes == values * static_cast<std::size_t>(bytes_of(dtype)), "a stored row has exactly the bytes of its values");
}

}  // namespace

void store(Dtype dtype, std::span<const float> values, std::span<std::byte> out) {
  check_bytes(dtype, values.size(), out.size());
  if (values.empty()) return;
  if (dtype == Dtype::f32) {
    std::memcpy(out.data(), values.data(), out.size());
  } else if (dtype == Dtype::bf16) {
    store_each<encode_bf16>(values, out.data());
  } else {
    const std::size_t done = store_fp16_wide(values, out.data());
    store_each<encode_fp16>(values.subspan(done), out.data() + 2 * done);
  }
}

void load(Dtype dtype, std::span<const std::byte> stored, std::span<float> values) {
  check_bytes(dtype, values.size(), stored.size());
  if (values.empty()) return;
  if (dtype == Dtype::f32) {
    std::memcpy(values.data(), stored.data(), stored.size());
  } else if (dtype == Dtype::bf16) {
    load_each<decode_bf16>(stored.data(), values);
  } else {
    const std::size_t done = load_fp16_wide(stored.data(), values);
    load_each<decode_fp16>(stored.data() + 2 * done, values.subspan(done));
  }
}

void round_to(Dtype dtype, std::span<float> values) {
  if (dtype == Dtype::f32) return;
  if (dtype == Dtype::bf16) {
    for (float& x : values) x = decode_bf16(encode_bf16(x));
    return;
  }
  std::size_t i = 0;
#if KV_HAS_F16C
  for (; i + 8 <= values.size(); i += 8) {
    const __m128i codes = _mm256_cvtps_ph(_mm256_loadu_ps(values.data() + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_ps(values.data() + i, _mm256_cvtph_ps(codes));
  }
#endif
  for (; i < values.size(); ++i) values[i] = decode_fp16(encode_fp16(values[i]));
}

}  // namespace kvatlas::num
