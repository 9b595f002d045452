// Block types of ggml: 32 values (nvfp4: 64) with their scale in one struct, as GGUF files and llama.cpp caches hold them.
// Bit for bit the reference functions of ggml-quants.c for every input whose arithmetic stays finite; fields are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvatlas::num {

/// In every type with 4-bit codes byte j of a block of 32 holds codes j and j + 16, not neighbours.
///   q8_0    fp16 d; 32 signed bytes                            code = x / d, half away from zero, d = largest magnitude / 127
///   q5_1    fp16 d; fp16 m; 32 fifth bits; 16 bytes            code = (x - m) / d + 1/2 truncated, d = range / 31
///   q5_0    fp16 d; 32 fifth bits; 16 bytes                    code = x / d + 16.5 truncated, d = extreme / -16
///   q4_1    fp16 d; fp16 m; 16 bytes                           as q5_1 with 15
///   q4_0    fp16 d; 16 bytes                                   as q5_0 with -8 and 8.5
///   iq4_nl  fp16 d; 16 bytes                                   nearest of 16 fixed levels; d by weighted least squares
///   mxfp4   E8M0 exponent; 16 bytes                            nearest E2M1, the first of equals, never -0
///   nvfp4   4 scales of 16 values each; 32 bytes               the same under a scale that ggml rounds in its own way
enum class GgmlType : std::uint8_t { q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl, mxfp4, nvfp4 };

struct GgmlShape {
  int values;  // of one block
  int bytes;
};
constexpr GgmlShape ggml_shape(GgmlType type) {
  switch (type) {
    case GgmlType::q8_0: return {32, 34};
    case GgmlType::q5_1: return {32, 24};
    case GgmlType::q5_0: return {32, 22};
    case GgmlType::q4_1: return {32, 20};
    case GgmlType::q4_0:
    case GgmlType::iq4_nl: return {32, 18};
    case GgmlType::mxfp4: return {32, 17};
    case GgmlType::nvfp4: return {64, 36};
  }
  return {};
}
const char* name_of(GgmlType type);

/// Codes whole blocks. Codes come from the unrounded scale, only the stored one is fp16 (infinite above 65504, as ggml
/// stores it). Where 1 / d overflows, which leaves ggml undefined, d stands for 0.
/// x    [blocks * values]  finite
/// out  [blocks * bytes]
void encode_ggml(GgmlType type, std::span<const float> x, std::span<std::byte> out);
/// Decodes whole blocks; any bytes are legal.
void decode_ggml(GgmlType type, std::span<const std::byte> blocks, std::span<float> x);

/// ggml's own block scale of nvfp4: normals round half up by one bit, 256 and above give 448, subnormals count 1/512.
std::uint8_t encode_ggml_ue4m3(float x);

}  // namespace kvatlas::num
