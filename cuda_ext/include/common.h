// What every kernel header shares: host + device functions and the one fused operation.
#pragma once
#include <cmath>
#include <cstdint>

using std::exp;  // each in the precision of its argument
using std::expm1;
using std::log1p;
using std::sqrt;

#ifdef __CUDACC__
#define NB_HD __host__ __device__ __forceinline__
#else
#define NB_HD inline __attribute__((always_inline))
#endif

// Status of a kernel: 0 is done; the CPU's others are these two, CUDA's are cudaError_t.
constexpr int NB_OK = 0, NB_UNKNOWN_OPTION = 1, NB_OUT_OF_RANGE = 2;

// a * b + c, rounded once where the hardware can. Only where the result need not be the same to the last bit everywhere.
NB_HD float mul_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
NB_HD double mul_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}
