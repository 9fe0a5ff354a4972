// Tensor-core products of one warp: m16n8k16 and m16n8k8 on half-precision operands with float sums (PTX ISA, "mma").
//
// They need compute capability 8.0; the Python side asks for it. With g = lane / 4 and t = lane % 4, a lane holds of
//   A [16, 16]: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..), two neighbours in a register;
//   B [16, 8]: (2t.., g), (2t + 8.., g);    C [16, 8]: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

__device__ __forceinline__ void mma_k8(float c[4], uint32_t a0, uint32_t a1, uint32_t b) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
#else
  __trap();
#endif
}

// Four 8x8 matrices out of shared memory; lane 8 m + r gives the address of row r of matrix m, a multiple of 16 bytes.
__device__ __forceinline__ void load_matrices(uint32_t to[4], const __half* row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#else
  __trap();
#endif
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t to[4], const __half* row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#else
  __trap();
#endif
}

__device__ __forceinline__ uint32_t as_pair(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
