// KV_FN marks a function that kernels may call: nvcc compiles it for host and device, every other compiler for the host.
#pragma once

#if defined(__CUDACC__)
#define KV_FN __host__ __device__
#else
#define KV_FN
#endif
