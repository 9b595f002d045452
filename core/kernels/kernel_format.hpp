// Code formats of kernels as data: how one side of a cache lies in memory, to the byte. Kernels are instantiated for a format
// and branch on nothing else; traffic formulas and launchers read the same fields.
#pragma once

#include <cstdint>

#include "core/code_format.hpp"
#include "core/kv_fn.hpp"

namespace kvatlas::kernels {

enum class CodeScheme : std::uint8_t {
  plain,      // 16-bit values of the cache's dtype
  e4m3,       // e4m3 code times a float32 scale of the head
  affine,     // fma(code, scale, zero); scale and zero of a group as fp16
  absmax,     // two's complement code times a float32 scale of the group
  table,      // fma(table[code], scale, zero); scale and zero of a group as fp16
  mxfp4,      // e2m1 code times 2^e, one e8m0 byte a group
  nvfp4,      // e2m1 code times an e4m3 byte of the group times a float32 scale of the head
};

/// Order of codes of a block of tokens that share groups along the token axis. Both take the same bytes.
///   rows    token by token, channel by channel: neighbouring channels are one wide load of a kernel
///   groups  channel by channel, the group's tokens next to each other: the released order of KIVI
enum class CodeLayout : std::uint8_t { rows, groups };

struct KernelFormat {
  CodeScheme scheme = CodeScheme::plain;
  int bits = 16;
  GroupAxis axis = GroupAxis::none;
  int group_size = 0;
  int scale_bytes = 0;  // of one group; 0 = no stored scale
  int zero_bytes = 0;
  CodeLayout layout = CodeLayout::rows;
  friend bool operator==(const KernelFormat&, const KernelFormat&) = default;

  KV_FN constexpr bool along_tokens() const { return axis == GroupAxis::tokens; }
  /// A float32 scale for each head lies beside the cache.
  KV_FN constexpr bool head_scale() const { return scheme == CodeScheme::e4m3 || scheme == CodeScheme::nvfp4; }
  /// Tokens that are coded together.
  KV_FN constexpr int block_rows() const { return along_tokens() ? group_size : 1; }
  KV_FN constexpr std::int64_t code_bytes_of(std::int64_t rows, int dim) const { return rows * dim * bits / 8; }
  KV_FN constexpr std::int64_t groups_of(std::int64_t rows, int dim) const { return group_size == 0 ? 0 : rows * dim / group_size; }
  KV_FN constexpr std::int64_t scale_bytes_of(std::int64_t rows, int dim) const { return groups_of(rows, dim) * scale_bytes; }
  KV_FN constexpr std::int64_t zero_bytes_of(std::int64_t rows, int dim) const { return groups_of(rows, dim) * zero_bytes; }
  KV_FN constexpr std::int64_t bytes_of(std::int64_t rows, int dim) const {
    return code_bytes_of(rows, dim) + scale_bytes_of(rows, dim) + zero_bytes_of(rows, dim);
  }
  /// What plans say about this format.
  constexpr CodeFormat code_format() const {
    const CodeKind kind = scheme == CodeScheme::plain   ? CodeKind::plain
                          : scheme == CodeScheme::e4m3  ? CodeKind::fp8
                          : scheme == CodeScheme::table ? CodeKind::table
                          : scheme == CodeScheme::mxfp4 || scheme == CodeScheme::nvfp4 ? CodeKind::fp4
                                                                                       : CodeKind::integer;
    return {.kind = kind, .bits = bits, .axis = axis, .group_size = group_size, .group_bits = 8 * (scale_bytes + zero_bytes)};
  }
};

inline constexpr KernelFormat kPlain{};
inline constexpr KernelFormat kE4m3{.scheme = CodeScheme::e4m3, .bits = 8};
inline constexpr KernelFormat kMxfp4{.scheme = CodeScheme::mxfp4, .bits = 4, .axis = GroupAxis::channels, .group_size = 32, .scale_bytes = 1};
inline constexpr KernelFormat kNvfp4{.scheme = CodeScheme::nvfp4, .bits = 4, .axis = GroupAxis::channels, .group_size = 16, .scale_bytes = 1};
/// One scale a token and head.
constexpr KernelFormat int8_token(int dim) {
  return {.scheme = CodeScheme::absmax, .bits = 8, .axis = GroupAxis::channels, .group_size = dim, .scale_bytes = 4};
}
/// Keys per channel over groups of tokens, values per token over groups of channels.
constexpr KernelFormat key_channels(int bits, CodeLayout layout, int group_size = 32) {
  return {.scheme = CodeScheme::affine, .bits = bits, .axis = GroupAxis::tokens, .group_size = group_size, .scale_bytes = 2, .zero_bytes = 2, .layout = layout};
}
constexpr KernelFormat value_tokens(int bits, int group_size = 32) {
  return {.scheme = CodeScheme::affine, .bits = bits, .axis = GroupAxis::channels, .group_size = group_size, .scale_bytes = 2, .zero_bytes = 2};
}
constexpr KernelFormat table_tokens(int bits, int group_size = 32) {
  return {.scheme = CodeScheme::table, .bits = bits, .axis = GroupAxis::channels, .group_size = group_size, .scale_bytes = 2, .zero_bytes = 2};
}

}  // namespace kvatlas::kernels
