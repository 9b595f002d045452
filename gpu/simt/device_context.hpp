// The context of a kernel on a GPU: each operation is an instruction or two. Compiled by nvcc alone.
#pragma once

#if !defined(__CUDACC__)
#error "gpu/simt/device_context.hpp is for nvcc; the CPU includes gpu/simt/sim_context.hpp"
#endif

#include <cstdint>
#include <type_traits>

#include "gpu/simt/site.hpp"

#define KV_DEVICE __device__ __forceinline__

namespace kvatlas::gpu {

class DeviceCtx {
 public:
  template <class T>
  using Global = T*;
  template <class T>
  using Shared = T*;

  KV_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  KV_DEVICE int threads() const { return static_cast<int>(blockDim.x); }
  KV_DEVICE int lane() const { return static_cast<int>(threadIdx.x % 32); }
  KV_DEVICE int warp() const { return static_cast<int>(threadIdx.x / 32); }
  KV_DEVICE int warps() const { return static_cast<int>(blockDim.x / 32); }
  KV_DEVICE std::int64_t block_x() const { return blockIdx.x; }
  KV_DEVICE std::int64_t block_y() const { return blockIdx.y; }
  KV_DEVICE std::int64_t block_z() const { return blockIdx.z; }
  KV_DEVICE std::int64_t grid_x() const { return gridDim.x; }

  template <class T>
  KV_DEVICE std::remove_const_t<T> ld(T* p, std::int64_t i = 0, Site = {}) {
    return unwrap<std::remove_const_t<T>>(*reinterpret_cast<const Word<T>*>(p + i));
  }
  template <class T>
  KV_DEVICE std::remove_const_t<T> ld_nc(T* p, std::int64_t i = 0, Site = {}) {
    return unwrap<std::remove_const_t<T>>(__ldg(reinterpret_cast<const Word<T>*>(p + i)));
  }
  template <class T>
  KV_DEVICE void st(T* p, std::int64_t i, const std::type_identity_t<T>& value, Site = {}) {
    *reinterpret_cast<Word<T>*>(p + i) = wrap(value);
  }
  template <class U, class T>
  KV_DEVICE static U* global_as(T* p) {
    return reinterpret_cast<U*>(p);
  }

  template <class T>
  KV_DEVICE T* shared(std::int64_t count, Site = {}) {
    extern __shared__ __align__(16) unsigned char kv_shared_memory[];
    const unsigned at = (taken_ + 15U) / 16U * 16U;
    taken_ = at + static_cast<unsigned>(count) * static_cast<unsigned>(sizeof(T));
    return reinterpret_cast<T*>(kv_shared_memory + at);
  }
  template <class T>
  KV_DEVICE T ld_shared(T* p, std::int64_t i = 0, Site = {}) {
    return unwrap<T>(*reinterpret_cast<const Word<T>*>(p + i));
  }
  template <class T>
  KV_DEVICE void st_shared(T* p, std::int64_t i, const std::type_identity_t<T>& value, Site = {}) {
    *reinterpret_cast<Word<T>*>(p + i) = wrap(value);
  }
  template <class U, class T>
  KV_DEVICE static U* shared_as(T* p) {
    return reinterpret_cast<U*>(p);
  }

  KV_DEVICE void sync_block(Site = {}) { __syncthreads(); }
  KV_DEVICE void sync_warp(std::uint32_t mask = kFullMask, Site = {}) { __syncwarp(mask); }

  template <class T>
  KV_DEVICE T shfl(std::uint32_t mask, T value, int source, int width = 32, Site = {}) {
    return __shfl_sync(mask, value, source, width);
  }
  template <class T>
  KV_DEVICE T shfl_xor(std::uint32_t mask, T value, int distance, int width = 32, Site = {}) {
    return __shfl_xor_sync(mask, value, distance, width);
  }
  template <class T>
  KV_DEVICE T shfl_up(std::uint32_t mask, T value, int distance, int width = 32, Site = {}) {
    return __shfl_up_sync(mask, value, static_cast<unsigned>(distance), width);
  }
  template <class T>
  KV_DEVICE T shfl_down(std::uint32_t mask, T value, int distance, int width = 32, Site = {}) {
    return __shfl_down_sync(mask, value, static_cast<unsigned>(distance), width);
  }
  KV_DEVICE std::uint32_t ballot(std::uint32_t mask, bool predicate, Site = {}) { return __ballot_sync(mask, predicate); }
  KV_DEVICE bool any(std::uint32_t mask, bool predicate, Site = {}) { return __any_sync(mask, predicate) != 0; }
  KV_DEVICE bool all(std::uint32_t mask, bool predicate, Site = {}) { return __all_sync(mask, predicate) != 0; }
  template <class T>
  KV_DEVICE std::uint32_t match_any(std::uint32_t mask, T value, Site = {}) {
    return __match_any_sync(mask, value);
  }

  template <class T>
  KV_DEVICE T atomic_add(T* p, std::int64_t i, T value, Site = {}) {
    return static_cast<T>(atomicAdd(native(p + i), static_cast<Native<T>>(value)));
  }
  template <class T>
  KV_DEVICE T atomic_max(T* p, std::int64_t i, T value, Site = {}) {
    return static_cast<T>(atomicMax(native(p + i), static_cast<Native<T>>(value)));
  }
  template <class T>
  KV_DEVICE T atomic_min(T* p, std::int64_t i, T value, Site = {}) {
    return static_cast<T>(atomicMin(native(p + i), static_cast<Native<T>>(value)));
  }
  template <class T>
  KV_DEVICE T atomic_cas(T* p, std::int64_t i, T expected, T value, Site = {}) {
    return static_cast<T>(atomicCAS(native(p + i), static_cast<Native<T>>(expected), static_cast<Native<T>>(value)));
  }

  template <class T, class S>
  KV_DEVICE void async_copy16(T* to, const S* from, Site = {}) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))), "l"(__cvta_generic_to_global(from)) : "memory");
  }
  KV_DEVICE void async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
  template <int GroupsLeft>
  KV_DEVICE void async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(GroupsLeft) : "memory");
  }

  template <bool SignedA, bool SignedB>
  KV_DEVICE void mma(std::int32_t (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const std::int32_t (&c)[4], Site = {}) {
#define KV_MMA(TYPES)                                                                                                             \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." TYPES ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n" \
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]))
    if constexpr (SignedA && SignedB) KV_MMA("s8.s8");
    else if constexpr (SignedA) KV_MMA("s8.u8");
    else if constexpr (SignedB) KV_MMA("u8.s8");
    else KV_MMA("u8.u8");
#undef KV_MMA
  }

  KV_DEVICE static float half_to_float(std::uint16_t bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
  KV_DEVICE static std::uint16_t float_to_half(float x) {
    std::uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
  }

  KV_DEVICE void trap(Site = {}) { __trap(); }

 private:
  template <int Bytes>
  struct WordOf;
  template <class T>
  using Word = typename WordOf<static_cast<int>(sizeof(T))>::type;
  /// CUDA's atomics know int, unsigned and unsigned long long.
  template <class T>
  using Native = std::conditional_t<sizeof(T) == 8, unsigned long long, std::conditional_t<std::is_signed_v<T>, int, unsigned>>;
  template <class T>
  KV_DEVICE static Native<T>* native(T* p) {
    return reinterpret_cast<Native<T>*>(p);
  }
  template <class T, class W>
  KV_DEVICE static T unwrap(const W& word) {
    static_assert(sizeof(T) == sizeof(W));
    T value;
    __builtin_memcpy(&value, &word, sizeof value);
    return value;
  }
  template <class T>
  KV_DEVICE static Word<T> wrap(const T& value) {
    Word<T> word;
    __builtin_memcpy(&word, &value, sizeof word);
    return word;
  }

  unsigned taken_ = 0;
};

template <>
struct DeviceCtx::WordOf<1> {
  using type = unsigned char;
};
template <>
struct DeviceCtx::WordOf<2> {
  using type = unsigned short;
};
template <>
struct DeviceCtx::WordOf<4> {
  using type = unsigned;
};
template <>
struct DeviceCtx::WordOf<8> {
  using type = uint2;
};
template <>
struct DeviceCtx::WordOf<16> {
  using type = uint4;
};

}  // namespace kvatlas::gpu
