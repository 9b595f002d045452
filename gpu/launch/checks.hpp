// What the launchers check before they launch, and the launch itself. Compiled by nvcc alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/errors.hpp"

namespace kvatlas::gpu {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw DeviceError(cat(what, ": ", cudaGetErrorString(error)));
}
#define KV_CUDA(call) check((call), #call)

inline void require(bool holds, const char* sentence) {
  if (!holds) throw InvalidArgument(sentence);
}

/// Addresses that the kernels read or write by so many bytes at once; buffers that a format lacks are null.
inline void require_aligned(std::size_t bytes, std::initializer_list<const void*> pointers, const char* sentence) {
  for (const void* p : pointers) require(reinterpret_cast<std::uintptr_t>(p) % bytes == 0, sentence);
}

/// Blocks along x, of which CUDA starts at most 2^31 - 1.
inline unsigned blocks_of(std::int64_t count) {
  require(count > 0 && count <= 2147483647, "blocks of a grid must lie between 1 and 2147483647");
  return static_cast<unsigned>(count);
}

template <class Kernel, class Args>
void start(Kernel kernel, dim3 grid, int threads, std::int64_t shared_bytes, const Args& args, void* stream) {
  if (shared_bytes > (48 << 10)) KV_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes), static_cast<cudaStream_t>(stream)>>>(args);
  KV_CUDA(cudaGetLastError());
}

}  // namespace kvatlas::gpu
