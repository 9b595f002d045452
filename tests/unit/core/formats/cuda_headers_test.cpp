// Compares our conversions with the host versions of those in the CUDA toolkit's headers. CMake puts the toolkit's include
// folder on this file's path when it finds one, and says so when it does not; then this file is empty.
#if __has_include(<cuda_fp16.h>) && __has_include(<cuda_bf16.h>) && __has_include(<cuda_fp8.h>) && __has_include(<cuda_fp4.h>)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>

#include "core/formats/bf16.hpp"
#include "core/formats/e8m0.hpp"
#include "core/formats/fp16.hpp"
#include "core/formats/fp4.hpp"
#include "core/formats/fp8.hpp"
#include "tests/catch.hpp"
#include "tests/unit/core/formats/float_oracle.hpp"

namespace num = kvatlas::num;

namespace {

float float_of_half(__half_raw raw) { return __half2float(__half(raw)); }

/// Same bits, or both NaN: the toolkit's host code and the hardware differ in the payloads that they keep.
bool same(float a, float b) { return (std::isnan(a) && std::isnan(b)) || oracle::bits(a) == oracle::bits(b); }

/// A dense sample of all float32 patterns but NaN: 2^32 / 2053 is two million.
template <class Check>
int count_wrong(Check check) {
  int wrong = 0;
  for (std::uint64_t u = 0; u < 0x100000000ULL; u += 2053) {
    const float x = oracle::from_bits(static_cast<std::uint32_t>(u));
    if (!std::isnan(x)) wrong += !check(x);
  }
  return wrong;
}

}  // namespace

TEST_CASE("every 16-bit pattern decodes as in the CUDA headers", "[unit][cuda_headers]") {
  int wrong = 0;
  for (std::uint32_t code = 0; code < 0x10000U; ++code) {
    __half_raw fp16;
    fp16.x = static_cast<unsigned short>(code);
    __nv_bfloat16_raw bf16;
    bf16.x = static_cast<unsigned short>(code);
    wrong += !same(num::decode_fp16(fp16.x), float_of_half(fp16));
    wrong += !same(num::decode_bf16(bf16.x), __bfloat162float(__nv_bfloat16(bf16)));
  }
  REQUIRE(wrong == 0);
}

TEST_CASE("every code of 8 and 4 bits decodes as in the CUDA headers", "[unit][cuda_headers]") {
  for (unsigned code = 0; code < 256; ++code) {
    CAPTURE(code);
    const auto byte = static_cast<unsigned char>(code);
    CHECK(same(num::decode_e4m3(byte), float_of_half(__nv_cvt_fp8_to_halfraw(byte, __NV_E4M3))));
    CHECK(same(num::decode_e5m2(byte), float_of_half(__nv_cvt_fp8_to_halfraw(byte, __NV_E5M2))));
    CHECK(same(num::decode_e8m0(byte), __bfloat162float(__nv_bfloat16(__nv_cvt_e8m0_to_bf16raw(byte)))));
    if (code < 16) CHECK(same(num::decode_e2m1(byte), float_of_half(__nv_cvt_fp4_to_halfraw(byte, __NV_E2M1))));
  }
}

TEST_CASE("a dense sample of floats and every hard case encode as in the CUDA headers", "[unit][cuda_headers]") {
  const auto fp16 = [](float x) { return num::encode_fp16(x) == __half_raw(__float2half_rn(x)).x; };
  const auto bf16 = [](float x) { return num::encode_bf16(x) == __nv_bfloat16_raw(__float2bfloat16_rn(x)).x; };
  const auto e4m3 = [](float x) { return num::encode_e4m3(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); };
  const auto e5m2 = [](float x) { return num::encode_e5m2(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2); };
  const auto e2m1 = [](float x) {
    return num::encode_e2m1(x) == (__nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest) & 0xF);
  };
  CHECK(count_wrong(fp16) == 0);
  CHECK(count_wrong(bf16) == 0);
  CHECK(count_wrong(e4m3) == 0);
  CHECK(count_wrong(e5m2) == 0);
  CHECK(count_wrong(e2m1) == 0);

  int wrong = 0;
  for (const float x : oracle::hard_floats(oracle::Encoder({.mantissa_bits = 10, .bias = 15, .largest = 0x7BFF, .saturates = false})))
    wrong += !fp16(x);
  for (const float x : oracle::hard_floats(oracle::Encoder({.mantissa_bits = 7, .bias = 127, .largest = 0x7F7F, .saturates = false})))
    if (!std::isnan(x)) wrong += !bf16(x);
  for (const float x : oracle::hard_floats(oracle::Encoder({.mantissa_bits = 3, .bias = 7, .largest = 0x7E, .saturates = true})))
    wrong += !e4m3(x) || !e2m1(x);
  for (const float x : oracle::hard_floats(oracle::Encoder({.mantissa_bits = 2, .bias = 15, .largest = 0x7B, .saturates = true})))
    wrong += !e5m2(x) || !e2m1(x);
  CHECK(wrong == 0);
}

TEST_CASE("NaN encodes as in the CUDA headers where a format has one NaN or none", "[unit][cuda_headers]") {
  for (const float x : {oracle::from_bits(0x7FC00000U), oracle::from_bits(0xFFC00000U), oracle::from_bits(0x7F800001U)}) {
    CHECK(num::encode_e4m3(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3));
    CHECK(num::encode_e5m2(x) == __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2));
    CHECK(num::encode_e2m1(x) == (__nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest) & 0xF));
  }
}

TEST_CASE("E8M0 scale rules over an element maximum of 1 are the CUDA headers' two roundings", "[unit][cuda_headers]") {
  const int wrong = count_wrong([](float x) {
    if (!(x > 0.0F) || std::isinf(x)) return true;
    return num::e8m0_scale_floor(x, 1.0F) == __nv_cvt_float_to_e8m0(x, __NV_SATFINITE, cudaRoundZero) &&
           num::e8m0_scale_round_up(x, 1.0F) == __nv_cvt_float_to_e8m0(x, __NV_SATFINITE, cudaRoundPosInf);
  });
  CHECK(wrong == 0);
}

#endif
