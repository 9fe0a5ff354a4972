// One look at the gradients of all rows, before they become halves: which rows have any (lit_rows.h), the largest of them
// (scale.h), and their sums.
#include "export.h"
#include "launch.h"
#include "mlp_shape.h"
#include "warp.h"

namespace {

constexpr int WARPS = THREADS / LANES, BATCH = 4;  // rows of a thread that are on their way at a time

// Zeros for rows beyond n and columns beyond n_outputs.
__device__ __forceinline__ void load_row_of(const float* grads, int64_t row, int64_t n, int n_outputs,
                                            float (&row_of)[MAX_OUTPUTS]) {
#pragma unroll
  for (int o = 0; o < MAX_OUTPUTS; ++o) row_of[o] = 0.0f;
  if (row >= n) return;
  if (n_outputs == 4) {
    const float4 four = __ldg(reinterpret_cast<const float4*>(grads) + row);
    row_of[0] = four.x, row_of[1] = four.y, row_of[2] = four.z, row_of[3] = four.w;
    return;
  }
#pragma unroll
  for (int o = 0; o < MAX_OUTPUTS; ++o)
    if (o < n_outputs) row_of[o] = __ldg(grads + row * n_outputs + o);
}

// The largest absolute value is kept as bits: those of positive floats are ordered as the floats are, not-a-number above all.
__global__ void survey(const float* __restrict__ grads, uint32_t* lit, uint32_t* largest, float* sums, int64_t n, int n_outputs,
                       int64_t stride) {
  __shared__ float of_warp[WARPS][MAX_OUTPUTS];
  const int warp = int(threadIdx.x) / LANES;
  const int64_t step = int64_t(gridDim.x) * THREADS;
  float sum[MAX_OUTPUTS] = {};
  uint32_t most = 0;
  for (int64_t begin = thread_index() - lane_index(); begin < n; begin += BATCH * step) {  // the same for all lanes
    float grad[BATCH][MAX_OUTPUTS];
#pragma unroll
    for (int b = 0; b < BATCH; ++b) load_row_of(grads, begin + b * step + lane_index(), n, n_outputs, grad[b]);
#pragma unroll
    for (int b = 0; b < BATCH; ++b) {
      bool counts = false;
#pragma unroll
      for (int o = 0; o < MAX_OUTPUTS; ++o) {
        counts |= grad[b][o] != 0.0f;
        sum[o] += grad[b][o];
        most = max(most, __float_as_uint(grad[b][o]) & 0x7fffffffu);
      }
      const unsigned word = __ballot_sync(ALL_LANES, counts);
      if (lane_index() == 0 && begin + b * step < n) lit[(begin + b * step) / LANES] = word;
    }
  }
  most = warp_max(most);
  if (lane_index() == 0) atomicMax(largest, most);
#pragma unroll
  for (int o = 0; o < MAX_OUTPUTS; ++o) {
    const float total = warp_sum(sum[o]);
    if (lane_index() == 0) of_warp[warp][o] = total;
  }
  __syncthreads();
  const int o = int(threadIdx.x);
  if (o >= n_outputs) return;
  float total = 0.0f;
  for (int w = 0; w < WARPS; ++w) total += of_warp[w][o];
  sums[(blockIdx.x + int64_t(1)) * stride - n_outputs + o] = total;
}

}  // namespace

// grads [n, n_outputs], n_outputs up to 8, at a multiple of 16 bytes; lit [ceil(n / 32)]; largest [1], 0 before; sums
// [n_blocks, stride]: the last n_outputs of each row become the sums of a share of the rows.
NB_EXPORT int lit_rows_f32(const float* grads, uint32_t* lit, uint32_t* largest, float* sums, int64_t n, int64_t n_outputs,
                           int64_t n_blocks, int64_t stride, cudaStream_t stream) {
  if (n_outputs > MAX_OUTPUTS) return NB_UNKNOWN_OPTION;
  if (n == 0) return NB_OK;
  survey<<<unsigned(n_blocks), THREADS, 0, stream>>>(grads, lit, largest, sums, n, int(n_outputs), stride);
  return launched();
}
