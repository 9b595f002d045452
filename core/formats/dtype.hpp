// The storage types of an uncompressed cache behind one switch: a value or a row in f32, bf16 or fp16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/arith.hpp"
#include "core/formats/bf16.hpp"
#include "core/formats/fp16.hpp"
#include "core/layer_graph.hpp"

namespace kvatlas::num {

/// The stored bits of one value, in the low bytes_of(dtype) bytes; nearest even, overflow to infinity, NaN stays NaN.
inline std::uint32_t encode(Dtype dtype, float x) {
  switch (dtype) {
    case Dtype::bf16: return encode_bf16(x);
    case Dtype::f16: return encode_fp16(x);
    case Dtype::f32: break;
  }
  return bits_of(x);
}
inline float decode(Dtype dtype, std::uint32_t code) {
  switch (dtype) {
    case Dtype::bf16: return decode_bf16(static_cast<std::uint16_t>(code));
    case Dtype::f16: return decode_fp16(static_cast<std::uint16_t>(code));
    case Dtype::f32: break;
  }
  return float_of(code);
}
/// The float32 that is left of x once it was stored as dtype.
inline float round_to(Dtype dtype, float x) { return dtype == Dtype::f32 ? x : decode(dtype, encode(dtype, x)); }

/// Rounds every value in place.
void round_to(Dtype dtype, std::span<float> values);
/// Stores values little-endian; `out` has exactly values.size() * bytes_of(dtype) bytes. No alignment is needed.
void store(Dtype dtype, std::span<const float> values, std::span<std::byte> out);
/// Loads what store wrote.
void load(Dtype dtype, std::span<const std::byte> stored, std::span<float> values);

}  // namespace kvatlas::num
