// Adam on the GPU, four numbers a thread: where none of them has a gradient, only the gradients are read.
#include "adam.h"
#include "export.h"
#include "launch.h"

namespace {

__global__ void update(const float* __restrict__ gradients, float* values, float* means, float* squares, int64_t n,
                       AdamStep<float> step) {
  const int64_t first = 4 * thread_index();
  if (first >= n) return;
  if (first + 4 > n) {
    for (int64_t i = first; i < n; ++i) adam_number(step, gradients[i], values[i], means[i], squares[i]);
    return;
  }
  const float4 gradient = *reinterpret_cast<const float4*>(gradients + first);
  if (step.skip && gradient.x == 0.0f && gradient.y == 0.0f && gradient.z == 0.0f && gradient.w == 0.0f) return;
  float4 value = *reinterpret_cast<float4*>(values + first), mean = *reinterpret_cast<float4*>(means + first),
         square = *reinterpret_cast<float4*>(squares + first);
  adam_number(step, gradient.x, value.x, mean.x, square.x);
  adam_number(step, gradient.y, value.y, mean.y, square.y);
  adam_number(step, gradient.z, value.z, mean.z, square.z);
  adam_number(step, gradient.w, value.w, mean.w, square.w);
  *reinterpret_cast<float4*>(values + first) = value;
  *reinterpret_cast<float4*>(means + first) = mean;
  *reinterpret_cast<float4*>(squares + first) = square;
}

}  // namespace

// Shapes as in adam_cpu.cpp; all four at multiples of 16 bytes.
NB_EXPORT int adam_f32(const float* gradients, float* values, float* means, float* squares, int64_t n, double rate, double root,
                       double keep, double beta1, double beta2, double eps, int64_t skip, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const AdamStep<float> step = {float(rate), float(root), float(keep), float(beta1), float(beta2), float(eps), skip != 0};
  update<<<blocks_for((n + 3) / 4), THREADS, 0, stream>>>(gradients, values, means, squares, n, step);
  return launched();
}
