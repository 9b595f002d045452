// How the stored values of one side of a cache are coded: what a kernel must unpack and what its scales weigh.
#pragma once

#include <cstdint>
#include <string>

#include "core/layer_graph.hpp"
#include "core/units.hpp"

namespace kvatlas {

enum class CodeKind : std::uint8_t {
  plain,      // the cache's dtype
  fp8,        // e4m3 or e5m2
  integer,    // uniform codes with a scale and perhaps a zero point
  fp4,        // e2m1 with block scales
  table,      // codes that index a codebook
};
/// Along which axis the values of one scale lie.
enum class GroupAxis : std::uint8_t { none, channels, tokens };

/// Code width and metadata of one side (keys or values).
struct CodeFormat {
  CodeKind kind = CodeKind::plain;
  int bits = 16;                 // bits of one code
  GroupAxis axis = GroupAxis::none;
  int group_size = 0;            // values that share one scale; 0 = no stored scale
  int group_bits = 0;            // bits of metadata (scale and zero point) of one group
  friend bool operator==(const CodeFormat&, const CodeFormat&) = default;

  static constexpr CodeFormat plain(Dtype t) { return {.kind = CodeKind::plain, .bits = 8 * bytes_of(t)}; }
  /// Bits per value with metadata.
  constexpr double bits_per_value() const {
    return bits + (group_size > 0 ? static_cast<double>(group_bits) / group_size : 0.0);
  }
  /// Bytes of `rows` rows of `dim` values, metadata included; codes and metadata end on whole bytes.
  constexpr Bytes bytes(std::int64_t rows, std::int64_t dim) const {
    const std::int64_t values = rows * dim;
    Bytes total = to_bytes_ceil(Bits(values * bits));
    if (group_size > 0) total += to_bytes_ceil(Bits(ceil_div(values, group_size) * group_bits));
    return total;
  }
};

/// "bf16", "fp8", "int2/32t", "int4/64c": bits, group size and axis.
std::string name_of(const CodeFormat& format);

}  // namespace kvatlas
