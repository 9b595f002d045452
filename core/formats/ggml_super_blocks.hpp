// Super-blocks of ggml ("K quants"): 256 values in sub-blocks whose scales are coded too, as GGUF files hold weights.
// Decoding only, bit for bit as the `gguf` Python package does it; fields are little-endian, any bytes are legal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvatlas::num {

///   q4_k  fp16 d; fp16 dmin; 12 bytes of 6-bit scales s and minima m; 128 bytes     x = (d s) q - (dmin m), 8 sub-blocks of 32
///   q5_k  as q4_k with 32 bytes of fifth bits before the codes                      the same
///   q6_k  128 bytes of low bits; 64 of high bits; 16 signed scales; fp16 d          x = (d s) (q - 32), 16 sub-blocks of 16
/// Every product is rounded by itself.
enum class GgmlSuperType : std::uint8_t { q4_k, q5_k, q6_k };

constexpr int kGgmlSuperValues = 256;
constexpr int super_block_bytes(GgmlSuperType type) {
  return type == GgmlSuperType::q4_k ? 144 : type == GgmlSuperType::q5_k ? 176 : 210;
}

/// Decodes whole super-blocks.
void decode_ggml_super(GgmlSuperType type, std::span<const std::byte> blocks, std::span<float> x);

}  // namespace kvatlas::num
