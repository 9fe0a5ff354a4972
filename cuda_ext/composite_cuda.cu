// Volume rendering on the GPU, one warp a ray, 32 samples at a time: reads and writes lie side by side, transmittance is a
// scan over the lanes. No atomics; the same sums in the same order every time.
#include <type_traits>

#include "composite.h"
#include "export.h"
#include "launch.h"
#include "warp.h"

namespace {

template <int C>
__global__ void fwd(const float* __restrict__ sigmas, const float* __restrict__ features, const float* __restrict__ t_starts,
                    const float* __restrict__ t_ends, const int64_t* __restrict__ packed_info, float* features_out,
                    float* opacity, float* depth, float* weights, int64_t n_rays) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = packed_info[2 * ray], stop = start + packed_info[2 * ray + 1];
  float thickness = 0.0f, sum_depth = 0.0f, sum[C > 0 ? C : 1] = {};  // optical, of the samples so far
  for (int64_t first = start; first < stop; first += LANES) {
    const int64_t i = first + lane_index();
    const bool mine = i < stop;
    const float near = mine ? t_starts[i] : 0.0f, far = mine ? t_ends[i] : 0.0f;
    const float x = mine ? sigmas[i] * (far - near) : 0.0f;
    const float through = prefix_sum(x), before = __shfl_up_sync(ALL_LANES, through, 1);
    const float weight = __expf(-(thickness + (lane_index() == 0 ? 0.0f : before))) * -expm1f(-x);
    thickness += __shfl_sync(ALL_LANES, through, LANES - 1);
    if (!mine) continue;
    weights[i] = weight;
    sum_depth = fmaf(weight, (near + far) * 0.5f, sum_depth);
#pragma unroll
    for (int k = 0; k < C; ++k) sum[k] = fmaf(weight, features[i * C + k], sum[k]);
  }
  sum_depth = warp_sum(sum_depth);
#pragma unroll
  for (int k = 0; k < C; ++k) sum[k] = warp_sum(sum[k]);
  if (lane_index() != 0) return;
  opacity[ray] = -expm1f(-thickness);
  depth[ray] = sum_depth;
#pragma unroll
  for (int k = 0; k < C; ++k) features_out[ray * C + k] = sum[k];
}

template <int C>
__global__ void bwd(const float* __restrict__ features, const float* __restrict__ t_starts, const float* __restrict__ t_ends,
                    const int64_t* __restrict__ packed_info, const float* __restrict__ weights,
                    const float* __restrict__ opacity, const float* __restrict__ grad_features_out,
                    const float* __restrict__ grad_opacity, const float* __restrict__ grad_depth,
                    const float* __restrict__ grad_weights, float* grad_sigmas, float* grad_features, int64_t n_rays) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = packed_info[2 * ray], stop = start + packed_info[2 * ray + 1];
  float transmittance = 1.0f - opacity[ray], later = 0.0f, grad_out[C > 0 ? C : 1];
#pragma unroll
  for (int k = 0; k < C; ++k) grad_out[k] = grad_features_out[ray * C + k];
  const float over_opacity = grad_opacity[ray], over_depth = grad_depth[ray];
  for (int64_t last = stop; last > start; last -= LANES) {  // from the back, lane 31 on the latest sample
    const int64_t i = last - LANES + lane_index();
    const bool mine = i >= start;
    const float near = mine ? t_starts[i] : 0.0f, far = mine ? t_ends[i] : 0.0f, weight = mine ? weights[i] : 0.0f;
    float own[C > 0 ? C : 1];
#pragma unroll
    for (int k = 0; k < C; ++k) own[k] = mine ? features[i * C + k] : 0.0f;
    float g = weight_gradient<float>(own, C, (near + far) * 0.5f, grad_out, over_opacity, over_depth);
    if (grad_weights != nullptr && mine) g += grad_weights[i];
    const float from_here = suffix_sum(weight), through = suffix_sum(weight * g);
    const float after = __shfl_down_sync(ALL_LANES, from_here, 1), through_after = __shfl_down_sync(ALL_LANES, through, 1);
    const bool latest = lane_index() == LANES - 1;
    if (mine) {
      grad_sigmas[i] = sigma_gradient<float>(far - near, transmittance + (latest ? 0.0f : after), g,
                                             later + (latest ? 0.0f : through_after));
#pragma unroll
      for (int k = 0; k < C; ++k) grad_features[i * C + k] = weight * grad_out[k];
    }
    transmittance += __shfl_sync(ALL_LANES, from_here, 0);
    later += __shfl_sync(ALL_LANES, through, 0);
  }
}

// Calls work(std::integral_constant<int, c>) for 0 to MAX_CHANNELS channels.
template <class Work, int C = MAX_CHANNELS>
int with_channels(int64_t c, const Work& work) {
  if (c == C) {
    work(std::integral_constant<int, C>());
    return NB_OK;
  }
  if constexpr (C > 0) return with_channels<Work, C - 1>(c, work);
  return NB_UNKNOWN_OPTION;
}

}  // namespace

// Shapes as in composite_cpu.cpp; `n`, the number of samples, is not needed here.
NB_EXPORT int composite_fwd_f32(const float* sigmas, const float* features, const float* t_starts, const float* t_ends,
                                const int64_t* packed_info, float* features_out, float* opacity, float* depth, float* weights,
                                int64_t n_rays, int64_t, int64_t c, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  const int status = with_channels(c, [&](auto channels) {
    fwd<decltype(channels)::value><<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(
        sigmas, features, t_starts, t_ends, packed_info, features_out, opacity, depth, weights, n_rays);
  });
  return status ? status : launched();
}

NB_EXPORT int composite_bwd_f32(const float* features, const float* t_starts, const float* t_ends, const int64_t* packed_info,
                                const float* weights, const float* opacity, const float* grad_features_out,
                                const float* grad_opacity, const float* grad_depth, const float* grad_weights,
                                float* grad_sigmas, float* grad_features, int64_t n_rays, int64_t, int64_t c,
                                cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  const int status = with_channels(c, [&](auto channels) {
    bwd<decltype(channels)::value><<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(
        features, t_starts, t_ends, packed_info, weights, opacity, grad_features_out, grad_opacity, grad_depth, grad_weights,
        grad_sigmas, grad_features, n_rays);
  });
  return status ? status : launched();
}
