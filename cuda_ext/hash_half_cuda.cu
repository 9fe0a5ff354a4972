// Hash encoding on the GPU with features in half precision, sums in float: what the field is trained with.
//
// One thread a point and level, level by level (blockIdx.y), so that one level's table fills the caches at a time; features
// lie level by level too, [n_levels, n, F], so that a warp reads and writes them side by side.
//
// The table's gradient is summed with float atomics. Neighbouring points of a ray share cells of the coarse levels: runs of
// lanes in one cell are summed within the warp first, and only the first lane of a run goes to memory.
#include <cuda_fp16.h>

#include "export.h"
#include "hash_encoding.h"
#include "launch.h"
#include "scale.h"
#include "warp.h"

namespace {

constexpr int MERGE_BELOW = 29;  // runs in a warp from which on summing them first does not pay

template <int F>
__device__ __forceinline__ Row<float, F> load_half_row(const __half* from) {
  Row<float, F> row;
  __half2 pairs[F / 2];
  if constexpr (F == 2) *reinterpret_cast<uint32_t*>(pairs) = __ldg(reinterpret_cast<const uint32_t*>(from));
  if constexpr (F == 4) *reinterpret_cast<uint2*>(pairs) = __ldg(reinterpret_cast<const uint2*>(from));
  if constexpr (F == 8) *reinterpret_cast<uint4*>(pairs) = __ldg(reinterpret_cast<const uint4*>(from));
#pragma unroll
  for (int f = 0; f < F; f += 2) {
    const float2 pair = __half22float2(pairs[f / 2]);
    row.v[f] = pair.x, row.v[f + 1] = pair.y;
  }
  return row;
}

template <int F>
__device__ __forceinline__ void store_half_row(__half* to, const Row<float, F>& row) {
  __half2 pairs[F / 2];
#pragma unroll
  for (int f = 0; f < F; f += 2) pairs[f / 2] = __floats2half2_rn(row.v[f], row.v[f + 1]);
  if constexpr (F == 2) *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<uint32_t*>(pairs);
  if constexpr (F == 4) *reinterpret_cast<uint2*>(to) = *reinterpret_cast<uint2*>(pairs);
  if constexpr (F == 8) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(pairs);
}

template <int F>
__global__ void fwd(const float* __restrict__ points, const __half* __restrict__ table, const Level* __restrict__ levels,
                    __half* __restrict__ features, int64_t n) {
  const int64_t i = thread_index(), l = blockIdx.y;
  if (i >= n) return;
  const Level level = levels[l];
  const float point[3] = {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
  const Cell<float> cell = locate(point, level.resolution);
  uint32_t entry[8];
  float weight[8];
  corner_entries(cell, level, entry);
  corner_weights<float>(cell, nullptr, float(level.resolution), weight);
  const __half* rows = table + level.offset * F;
  Row<float, F> corner[8], sum;
#pragma unroll
  for (int c = 0; c < 8; ++c) corner[c] = load_half_row<F>(rows + int64_t(entry[c]) * F);
  sum.clear();
#pragma unroll
  for (int c = 0; c < 8; ++c) sum.add(weight[c], corner[c]);
  store_half_row<F>(features + (l * n + i) * F, sum);
}

// The lane after the last one of this lane's run, given which lanes begin one.
__device__ __forceinline__ int run_end(unsigned heads) {
  const unsigned later = heads & ~(lanes_before() | 1u << lane_index());
  return later ? __ffs(later) - 1 : LANES;
}

// Leaves in the first lane of each run the sums of its values. All lanes take part.
template <int N>
__device__ __forceinline__ void sum_runs(float (&value)[N], int end) {
  for (int offset = 1; offset < LANES; offset *= 2) {
    const bool more = lane_index() + offset < end;
    if (!__any_sync(ALL_LANES, more)) return;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float other = __shfl_down_sync(ALL_LANES, value[k], offset);
      value[k] += more ? other : 0.0f;
    }
  }
}

template <int F>
__device__ __forceinline__ void add_row(float* row, const float* value) {
#if __CUDA_ARCH__ >= 900
  if constexpr (F == 2) {
    atomicAdd(reinterpret_cast<float2*>(row), make_float2(value[0], value[1]));
  } else {
#pragma unroll
    for (int f = 0; f < F; f += 4)
      atomicAdd(reinterpret_cast<float4*>(row + f), make_float4(value[f], value[f + 1], value[f + 2], value[f + 3]));
  }
#else
#pragma unroll
  for (int f = 0; f < F; ++f) atomicAdd(row + f, value[f]);
#endif
}

// Adds to two corners that are neighbours along x: with one atomic where they make an aligned pair.
template <int F>
__device__ __forceinline__ void add_two_rows(float* table, uint32_t a, uint32_t b, const float* value) {
#if __CUDA_ARCH__ >= 900
  if constexpr (F == 2) {
    if ((a ^ b) == 1) {
      const bool swapped = a & 1;
      atomicAdd(reinterpret_cast<float4*>(table + int64_t(a & ~1u) * F),
                swapped ? make_float4(value[2], value[3], value[0], value[1])
                        : make_float4(value[0], value[1], value[2], value[3]));
      return;
    }
  }
#endif
  add_row<F>(table + int64_t(a) * F, value);
  add_row<F>(table + int64_t(b) * F, value + F);
}

// grad_features are scaled as scale.h says. The offset of every level is even, so that pairs stay aligned.
template <int F>
__global__ void bwd(const float* __restrict__ points, const __half* __restrict__ grad_features,
                    const Level* __restrict__ levels, const uint32_t* __restrict__ largest,
                    float* __restrict__ grad_table,
                    int64_t n) {
  const int64_t i = thread_index(), l = blockIdx.y;
  const bool mine = i < n;
  const Level level = levels[l];
  const int64_t at = mine ? i : n - 1;
  const float point[3] = {points[3 * at], points[3 * at + 1], points[3 * at + 2]};
  const Cell<float> cell = locate(point, level.resolution);
  const Row<float, F> grad = load_half_row<F>(grad_features + (l * n + at) * F);
  bool counts = false;
#pragma unroll
  for (int f = 0; f < F; ++f) counts |= grad.v[f] != 0.0f;
  if (!__any_sync(ALL_LANES, counts)) return;
  uint32_t entry[8];
  float weight[8], value[8 * F];
  corner_entries(cell, level, entry);
  corner_weights<float>(cell, nullptr, float(level.resolution), weight);
  const float unit = mine ? 1.0f / gradient_scale(*largest) : 0.0f;
#pragma unroll
  for (int c = 0; c < 8; ++c)
#pragma unroll
    for (int f = 0; f < F; ++f) value[c * F + f] = weight[c] * (grad.v[f] * unit);

  const uint32_t xy = cell.low[0] | cell.low[1] << 16, z = cell.low[2];
  const uint32_t xy_before = __shfl_up_sync(ALL_LANES, xy, 1), z_before = __shfl_up_sync(ALL_LANES, z, 1);
  const unsigned heads = __ballot_sync(ALL_LANES, lane_index() == 0 || xy != xy_before || z != z_before);
  bool writes = mine && counts;
  if (__popc(heads) < MERGE_BELOW) {
    sum_runs(value, run_end(heads));
    writes = mine && (heads >> lane_index() & 1);
  }
  if (!writes) return;
  float* rows = grad_table + level.offset * F;
#pragma unroll
  for (int c = 0; c < 8; c += 2) add_two_rows<F>(rows, entry[c], entry[c + 1], value + c * F);
}

// The largest absolute value, as bits: those of positive floats are ordered as the floats are, not-a-number above all.
__global__ void find_largest(const float* values, uint32_t* largest, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = thread_index(); i < n; i += int64_t(gridDim.x) * blockDim.x)
    most = max(most, __float_as_uint(values[i]) & 0x7fffffffu);
  most = warp_max(most);
  if (lane_index() == 0) atomicMax(largest, most);
}

template <class Work>
int with_even_features(int64_t n_features, const Work& work) {
  switch (n_features) {
    case 2: work(std::integral_constant<int, 2>()); return NB_OK;
    case 4: work(std::integral_constant<int, 4>()); return NB_OK;
    case 8: work(std::integral_constant<int, 8>()); return NB_OK;
    default: return NB_UNKNOWN_OPTION;
  }
}

dim3 grid_for(int64_t n, int64_t n_levels) { return dim3(blocks_for(n), unsigned(n_levels)); }

}  // namespace

// points [n, 3]; table [n_entries, F] half; levels [n_levels] rows; features, grad_features [n_levels, n, F] half; largest [1] as
// largest_f32 finds it; grad_table [n_entries, F], added to.
NB_EXPORT int hash_half_fwd_f32(const float* points, const __half* table, const Level* levels, __half* features, int64_t n,
                                int64_t n_levels, int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_even_features(n_features, [&](auto f) {
    fwd<decltype(f)::value><<<grid_for(n, n_levels), THREADS, 0, stream>>>(points, table, levels, features, n);
  });
  return status ? status : launched();
}

NB_EXPORT int hash_half_bwd_f32(const float* points, const __half* grad_features, const Level* levels, const uint32_t* largest,
                                float* grad_table, int64_t n, int64_t n_levels, int64_t n_features, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const int status = with_even_features(n_features, [&](auto f) {
    bwd<decltype(f)::value><<<grid_for(n, n_levels), THREADS, 0, stream>>>(points, grad_features, levels, largest, grad_table, n);
  });
  return status ? status : launched();
}

// values [n]; largest [1], 0 before.
NB_EXPORT int largest_f32(const float* values, uint32_t* largest, int64_t n, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  find_largest<<<min(blocks_for(n), 1024u), THREADS, 0, stream>>>(values, largest, n);
  return launched();
}
