// Launching kernels from the C interface: one thread an item, checked.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

constexpr int THREADS = 128;

inline unsigned blocks_for(int64_t n) { return unsigned((n + THREADS - 1) / THREADS); }

__device__ __forceinline__ int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// What a C function returns after its launch: 0, or the error that the launch met.
inline int launched() { return int(cudaGetLastError()); }
