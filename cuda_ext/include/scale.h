// Gradients while they are halves: multiplied by a power of two, so that the largest neither overflows nor the rest is lost.
#pragma once
#include <cstdint>

constexpr int LARGEST_EXPONENT = 5;  // the largest gradient becomes less than 2^6; the sums over it stay far below 65504

// The power of two, given the bits of the largest absolute value as a float; not finite and zero values change nothing that
// matters: the gradients are so themselves.
__device__ __forceinline__ float gradient_scale(uint32_t largest_bits) {
  const int exponent = int(largest_bits >> 23) - 127;
  return exp2f(float(max(-100, min(100, LARGEST_EXPONENT - exponent))));
}
