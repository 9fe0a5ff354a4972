// Hash encoding on the GPU: one thread a point and level (forward, table gradient) or a point (point gradient).
#include "export.h"
#include "hash_encoding.h"
#include "launch.h"

namespace {

template <int F>
__global__ void fwd(const float* points, const float* tangents, const float* table, const Level* levels, float* out, int64_t n,
                    int64_t n_levels) {
  const int64_t i = thread_index(), l = blockIdx.y;
  if (i >= n) return;
  const Level level = levels[l];
  encode_point<float, F>(points + 3 * i, tangents ? tangents + 3 * i : nullptr, level, table + level.offset * F,
                         out + (i * n_levels + l) * F);
}

// Float atomics: the order of the sums, and with it the last bits, changes from run to run.
template <int F>
__device__ void add_row(float* row, float weight, const Row<float, F>& grad) {
#if __CUDA_ARCH__ >= 900
  if constexpr (F % 4 == 0) {
    for (int f = 0; f < F; f += 4)
      atomicAdd(reinterpret_cast<float4*>(row + f),
                make_float4(weight * grad.v[f], weight * grad.v[f + 1], weight * grad.v[f + 2], weight * grad.v[f + 3]));
    return;
  }
  if constexpr (F % 4 != 0 && F % 2 == 0) {
    for (int f = 0; f < F; f += 2)
      atomicAdd(reinterpret_cast<float2*>(row + f), make_float2(weight * grad.v[f], weight * grad.v[f + 1]));
    return;
  }
#endif
  for (int f = 0; f < F; ++f) atomicAdd(row + f, weight * grad.v[f]);
}

// 64-bit integers add up the same in any order.
template <int F>
__device__ void add_row_fixed(int64_t* row, float weight, const Row<float, F>& grad, double scale) {
  for (int f = 0; f < F; ++f)
    atomicAdd(reinterpret_cast<unsigned long long*>(row + f),
              static_cast<unsigned long long>(__double2ll_rn(double(weight * grad.v[f]) * scale)));
}

// Sums into grad_table, or when `scale` is not null into fixed_sums, in units of 1 / scale.
template <int F>
__global__ void bwd_table(const float* points, const float* tangents, const float* grad_out, const Level* levels,
                          float* grad_table, const float* scale, int64_t* fixed_sums, int64_t n, int64_t n_levels) {
  const int64_t i = thread_index(), l = blockIdx.y;
  if (i >= n) return;
  const Level level = levels[l];
  const Cell<float> cell = locate(points + 3 * i, level.resolution);
  uint32_t entry[8];
  float weight[8];
  corner_entries(cell, level, entry);
  corner_weights(cell, tangents ? tangents + 3 * i : nullptr, float(level.resolution), weight);
  const Row<float, F> grad = load_row<float, F>(grad_out + (i * n_levels + l) * F);
  for (int c = 0; c < 8; ++c) {
    const int64_t at = (level.offset + entry[c]) * F;
    if (scale == nullptr)
      add_row<F>(grad_table + at, weight[c], grad);
    else
      add_row_fixed<F>(fixed_sums + at, weight[c], grad, double(*scale));
  }
}

template <int F>
__global__ void bwd_points(const float* points, const float* tangents, const float* table, const float* grad_out,
                           const Level* levels, float* grad_points, int64_t n, int64_t n_levels) {
  const int64_t i = thread_index();
  if (i >= n) return;
  float grad[3] = {0.0f, 0.0f, 0.0f};
  for (int64_t l = 0; l < n_levels; ++l)
    encode_point_bwd_point<float, F>(points + 3 * i, tangents ? tangents + 3 * i : nullptr, levels[l],
                                     table + levels[l].offset * F, grad_out + (i * n_levels + l) * F, grad);
  for (int j = 0; j < 3; ++j) grad_points[3 * i + j] = grad[j];
}

dim3 grid_for(int64_t n, int64_t n_levels) { return dim3(blocks_for(n), unsigned(n_levels)); }

}  // namespace

// Shapes as in hash_encoding_cpu.cpp; scale [1], fixed_sums [n_entries, F] as zeros.
NB_EXPORT int hash_encode_fwd_f32(const float* points, const float* tangents, const float* table, const Level* levels,
                                  float* out, int64_t n, int64_t n_levels, int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_features(n_features, [&](auto f) {
    fwd<decltype(f)::value><<<grid_for(n, n_levels), THREADS, 0, stream>>>(points, tangents, table, levels, out, n, n_levels);
  });
  return status ? status : launched();
}

NB_EXPORT int hash_encode_bwd_table_f32(const float* points, const float* tangents, const float* grad_out,
                                        const Level* levels, float* grad_table, int64_t n, int64_t n_levels,
                                        int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_features(n_features, [&](auto f) {
    bwd_table<decltype(f)::value><<<grid_for(n, n_levels), THREADS, 0, stream>>>(points, tangents, grad_out, levels, grad_table,
                                                                                 nullptr, nullptr, n, n_levels);
  });
  return status ? status : launched();
}

NB_EXPORT int hash_encode_bwd_table_fixed_f32(const float* points, const float* tangents, const float* grad_out,
                                              const Level* levels, const float* scale, int64_t* fixed_sums, int64_t n,
                                              int64_t n_levels, int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_features(n_features, [&](auto f) {
    bwd_table<decltype(f)::value><<<grid_for(n, n_levels), THREADS, 0, stream>>>(points, tangents, grad_out, levels, nullptr,
                                                                                 scale, fixed_sums, n, n_levels);
  });
  return status ? status : launched();
}

NB_EXPORT int hash_encode_bwd_points_f32(const float* points, const float* tangents, const float* table,
                                         const float* grad_out, const Level* levels, float* grad_points, int64_t n,
                                         int64_t n_levels, int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_features(n_features, [&](auto f) {
    bwd_points<decltype(f)::value>
        <<<blocks_for(n), THREADS, 0, stream>>>(points, tangents, table, grad_out, levels, grad_points, n, n_levels);
  });
  return status ? status : launched();
}

NB_EXPORT const char* nerf_bridge_error_text(int64_t status) { return cudaGetErrorString(cudaError_t(status)); }
