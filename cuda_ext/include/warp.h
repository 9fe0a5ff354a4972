// What the 32 lanes of a warp do together. All lanes must take part.
#pragma once
#include <cstdint>

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int LANES = 32;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) & (LANES - 1); }
__device__ __forceinline__ unsigned lanes_before() { return (1u << lane_index()) - 1u; }

// Sum over this lane and all before it.
__device__ __forceinline__ float prefix_sum(float value) {
#pragma unroll
  for (int offset = 1; offset < LANES; offset *= 2) {
    const float other = __shfl_up_sync(ALL_LANES, value, offset);
    if (lane_index() >= offset) value += other;
  }
  return value;
}

// Sum over this lane and all after it.
__device__ __forceinline__ float suffix_sum(float value) {
#pragma unroll
  for (int offset = 1; offset < LANES; offset *= 2) {
    const float other = __shfl_down_sync(ALL_LANES, value, offset);
    if (lane_index() + offset < LANES) value += other;
  }
  return value;
}

// Sum over all lanes, known to all of them.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
}

// The largest over all lanes, known to all of them.
__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#pragma unroll
  for (int offset = LANES / 2; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(ALL_LANES, value, offset));
  return value;
}
