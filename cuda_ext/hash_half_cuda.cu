// Hash encoding on the GPU with features in half precision, sums in float: what the field is trained with.
//
// Level by level (blockIdx.y), so that one level's table fills the caches at a time; features lie level by level too,
// [n_levels, n, F], so that neighbouring lanes read and write them side by side. Forward, points are taken as they lie;
// backward in the order of visit.h.
//
// The table's gradient is summed with float atomics. Points of a warp that lie in one cell are summed within the warp first,
// and only one lane of theirs goes to memory. Points without a gradient are left out before anything of theirs is read.
#include <cuda_fp16.h>

#include "export.h"
#include "hash_encoding.h"
#include "launch.h"
#include "lit_rows.h"
#include "scale.h"
#include "visit.h"
#include "warp.h"

namespace {

constexpr int LEAST_SPARED = 4;  // lanes that need not go to memory: for fewer, summing first does not pay

struct Placement {  // the unit cube's coordinates are points * scale + shift, rounded as torch rounds them
  float scale, shift;

  __device__ __forceinline__ Cell<float> locate_in(const float* point, int64_t resolution) const {
    const float place[3] = {point[0] * scale + shift, point[1] * scale + shift, point[2] * scale + shift};
    return locate(place, resolution);
  }
};

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
                    __half* __restrict__ features, int64_t n, Placement placement) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const Level level = levels[blockIdx.y];
  const __half* entries = table + level.offset * F;
  const Cell<float> cell = placement.locate_in(points + 3 * i, level.resolution);
  uint32_t entry[8];
  float weight[8];
  corner_entries(cell, level, entry);
  corner_weights<float>(cell, nullptr, float(level.resolution), weight);
  Row<float, F> corner[8], sum;
#pragma unroll
  for (int c = 0; c < 8; ++c) corner[c] = load_half_row<F>(entries + int64_t(entry[c]) * F);
  sum.clear();
#pragma unroll
  for (int c = 0; c < 8; ++c) sum.add(weight[c], corner[c]);
  store_half_row<F>(features + (blockIdx.y * n + i) * F, sum);
}

// Leaves in the first lane of each group the sums of the group's values; `group` has the bits of this lane's group. In every
// round the lanes of even rank among those that are left take over the next one's sum. All lanes take part.
template <int N>
__device__ __forceinline__ void sum_groups(float (&value)[N], unsigned group) {
  int rank = __popc(group & lanes_before());
  unsigned later = group & ~(lanes_before() | 1u << lane_index());
  while (__any_sync(ALL_LANES, later != 0)) {
    const int next = later ? __ffs(later) - 1 : lane_index();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float other = __shfl_sync(ALL_LANES, value[k], next);
      value[k] += later ? other : 0.0f;
    }
    later &= __ballot_sync(ALL_LANES, rank % 2 == 0);
    rank /= 2;
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
                    const uint32_t* __restrict__ lit, const Level* __restrict__ levels, const uint32_t* __restrict__ largest,
                    float* __restrict__ grad_table, Rows rows, Placement placement) {
  const Level level = levels[blockIdx.y];
  const __half* grads = grad_features + blockIdx.y * rows.n * F;
  float* entries = grad_table + level.offset * F;
  const float unit = 1.0f / gradient_scale(*largest);
  Visit of = rows.visit(thread_index() / LANES);
  for (; __any_sync(ALL_LANES, of.at < of.end); of.at += of.step) {
    const bool counts = of.at < of.end && is_lit(lit, of.at);
    const unsigned counting = __ballot_sync(ALL_LANES, counts);
    if (counting == 0) continue;
    float point[3] = {};
    Row<float, F> grad;
    grad.clear();
    if (counts) {
      for (int j = 0; j < 3; ++j) point[j] = points[3 * of.at + j];
      grad = load_half_row<F>(grads + of.at * F);
    }
    const Cell<float> cell = placement.locate_in(point, level.resolution);
    uint32_t entry[8];
    float weight[8], value[8 * F];
    corner_entries(cell, level, entry);
    corner_weights<float>(cell, nullptr, float(level.resolution), weight);
#pragma unroll
    for (int c = 0; c < 8; ++c)
#pragma unroll
      for (int f = 0; f < F; ++f) value[c * F + f] = weight[c] * (grad.v[f] * unit);

    const uint32_t z = counts ? cell.low[2] : ~0u;  // no cell's: lanes that do not count keep to themselves
    const unsigned group = __match_any_sync(ALL_LANES, cell.low[0] | cell.low[1] << 16) & __match_any_sync(ALL_LANES, z);
    const bool leads = counts && (group & lanes_before()) == 0;
    bool writes = counts;
    if (__popc(counting) - __popc(__ballot_sync(ALL_LANES, leads)) >= LEAST_SPARED) {
      sum_groups(value, group);
      writes = leads;
    }
    if (!writes) continue;
#pragma unroll
    for (int c = 0; c < 8; c += 2) add_two_rows<F>(entries, entry[c], entry[c + 1], value + c * F);
  }
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

dim3 grid_for(const Rows& rows, int64_t n_levels) { return dim3(blocks_for(rows.warps() * LANES), unsigned(n_levels)); }

}  // namespace

// points [n, 3], which scale and shift move into the unit cube; table [n_entries, F] half; levels [n_levels] rows;
// features [n_levels, n, F] half.
NB_EXPORT int hash_half_fwd_f32(const float* points, const __half* table, const Level* levels, __half* features, int64_t n,
                                int64_t n_levels, int64_t n_features, double scale, double shift, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const Placement placement = {float(scale), float(shift)};
  const dim3 grid(blocks_for(n), unsigned(n_levels));
  const int status = with_even_features(n_features, [&](auto f) {
    fwd<decltype(f)::value><<<grid, THREADS, 0, stream>>>(points, table, levels, features, n, placement);
  });
  return status ? status : launched();
}

// packed_info [n_rays, 2] or null, as in visit.h; grad_features [n_levels, n, F] half; largest [1] and lit [ceil(n / 32)] as
// lit_rows_f32 finds them: of rows whose bit is 0, grad_features is not read; grad_table [n_entries, F], added to.
NB_EXPORT int hash_half_bwd_f32(const float* points, const __half* grad_features, const uint32_t* lit, const Level* levels,
                                const int64_t* packed_info, const uint32_t* largest, float* grad_table, int64_t n,
                                int64_t n_rays, int64_t n_levels, int64_t n_features, double scale, double shift,
                                cudaStream_t stream) {
  if (n == 0) return NB_OK;
  const Rows rows = {packed_info, n_rays, n};
  const Placement placement = {float(scale), float(shift)};
  const int status = with_even_features(n_features, [&](auto f) {
    bwd<decltype(f)::value><<<grid_for(rows, n_levels), THREADS, 0, stream>>>(points, grad_features, lit, levels, largest,
                                                                              grad_table, rows, placement);
  });
  return status ? status : launched();
}
