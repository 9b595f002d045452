// What names an instruction of a kernel (file and line of the call), and small vectors that one access moves.
#pragma once

#include <cstdint>

#include "core/kv_fn.hpp"

/// Before a loop over an array that a GPU keeps in registers: nvcc must unroll it, other compilers may do as they like.
/// KV_KERNEL marks what only kernels call: device code for nvcc.
#if defined(__CUDACC__)
#define KV_UNROLL _Pragma("unroll")
#define KV_KERNEL __device__
#else
#define KV_UNROLL
#define KV_KERNEL
#endif

namespace kvatlas::gpu {

/// Where a kernel calls an operation of its context. On a GPU it is empty and costs nothing. One counted access a line:
/// two accesses of one kind and width on one line count as one site.
struct Site {
#if defined(__CUDACC__)
  KV_FN static constexpr Site here() { return {}; }
#else
  const char* file = "";
  int line = 0;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  friend constexpr bool operator==(const Site& a, const Site& b) { return a.line == b.line && a.file == b.file; }
#endif
};

/// N values that one load or store moves; aligned to its size, as vector accesses of a GPU must be.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

inline constexpr std::uint32_t kFullMask = 0xFFFFFFFFU;

}  // namespace kvatlas::gpu
