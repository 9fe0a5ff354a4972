// The field's outputs composited on the GPU, one warp a ray, 32 samples at a time. No atomics.
#include "export.h"
#include "field_composite.h"
#include "launch.h"
#include "warp.h"

namespace {

__global__ void fwd(const float4* __restrict__ raw, const float* __restrict__ points, const float* __restrict__ t_starts,
                    const float* __restrict__ t_ends, const int64_t* __restrict__ packed_info,
                    const float* __restrict__ middles, float* out, float* opacity, float* weights, int64_t n_rays,
                    Density<float> density) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = packed_info[2 * ray], stop = start + packed_info[2 * ray + 1];
  const float middle = middles[ray];
  float thickness = 0.0f, sum[CHANNELS] = {};  // optical, of the samples so far
  for (int64_t first = start; first < stop; first += LANES) {
    const int64_t i = first + lane_index();
    const bool mine = i < stop;
    const int64_t at = mine ? i : first;
    const float4 value = raw[at];
    const float near = t_starts[at], far = t_ends[at], own[RAW] = {value.x, value.y, value.z, value.w};
    const float sigma = density.value(density.shifted(value.x, points + 3 * at));
    const float x = mine ? sigma * (far - near) : 0.0f;
    const float through = prefix_sum(x), before = __shfl_up_sync(ALL_LANES, through, 1);
    const float weight = __expf(-(thickness + (lane_index() == 0 ? 0.0f : before))) * -expm1f(-x);
    thickness += __shfl_sync(ALL_LANES, through, LANES - 1);
    if (mine) weights[i] = weight;
    float channels[CHANNELS];
    sample_channels(own, (near + far) * 0.5f, middle, channels);
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) sum[k] = fmaf(weight, channels[k], sum[k]);
  }
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) sum[k] = warp_sum(sum[k]);
  if (lane_index() != 0) return;
  opacity[ray] = -expm1f(-thickness);
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) out[CHANNELS * ray + k] = sum[k];
}

__global__ void bwd(const float4* __restrict__ raw, const float* __restrict__ points, const float* __restrict__ t_starts,
                    const float* __restrict__ t_ends, const int64_t* __restrict__ packed_info,
                    const float* __restrict__ middles, const float* __restrict__ weights, const float* __restrict__ opacity,
                    const float* __restrict__ grad_out, const float* __restrict__ grad_opacity, float4* grad_raw,
                    int64_t n_rays, Density<float> density) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = packed_info[2 * ray], stop = start + packed_info[2 * ray + 1];
  float transmittance = 1.0f - opacity[ray], later = 0.0f, over[CHANNELS];
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) over[k] = grad_out[CHANNELS * ray + k];
  const float middle = middles[ray], over_opacity = grad_opacity[ray];
  for (int64_t last = stop; last > start; last -= LANES) {  // from the back, lane 31 on the latest sample
    const int64_t i = last - LANES + lane_index();
    const bool mine = i >= start;
    const int64_t at = mine ? i : start;
    const float4 value = raw[at];
    const float near = t_starts[at], far = t_ends[at], own[RAW] = {value.x, value.y, value.z, value.w};
    const float weight = mine ? weights[at] : 0.0f, shifted = density.shifted(value.x, points + 3 * at);
    float channels[CHANNELS], result[RAW];
    sample_channels(own, (near + far) * 0.5f, middle, channels);
    const float g = weight_gradient<float>(channels, CHANNELS, 0.0f, over, over_opacity, 0.0f);
    const float from_here = suffix_sum(weight), through = suffix_sum(weight * g);
    const float after = __shfl_down_sync(ALL_LANES, from_here, 1), through_after = __shfl_down_sync(ALL_LANES, through, 1);
    const bool latest = lane_index() == LANES - 1;
    const float grad_sigma = sigma_gradient<float>(far - near, transmittance + (latest ? 0.0f : after), g,
                                                   later + (latest ? 0.0f : through_after));
    raw_gradient(density, shifted, channels, grad_sigma, weight, over, result);
    if (mine) grad_raw[i] = make_float4(result[0], result[1], result[2], result[3]);
    transmittance += __shfl_sync(ALL_LANES, from_here, 0);
    later += __shfl_sync(ALL_LANES, through, 0);
  }
}

Density<float> density_of(double blob_scale, double blob_radius, int64_t is_exp) {
  return {float(blob_scale), float(blob_radius), is_exp != 0};
}

}  // namespace

// Shapes as in field_composite_cpu.cpp; raw and grad_raw at multiples of 16 bytes; `n` is not needed here.
NB_EXPORT int field_composite_fwd_f32(const float4* raw, const float* points, const float* t_starts, const float* t_ends,
                                      const int64_t* packed_info, const float* middles, float* out, float* opacity,
                                      float* weights, int64_t n_rays, int64_t, double blob_scale, double blob_radius,
                                      int64_t is_exp, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  fwd<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(raw, points, t_starts, t_ends, packed_info, middles, out, opacity,
                                                          weights, n_rays, density_of(blob_scale, blob_radius, is_exp));
  return launched();
}

NB_EXPORT int field_composite_bwd_f32(const float4* raw, const float* points, const float* t_starts, const float* t_ends,
                                      const int64_t* packed_info, const float* middles, const float* weights,
                                      const float* opacity, const float* grad_out, const float* grad_opacity,
                                      float4* grad_raw, int64_t n_rays, int64_t, double blob_scale, double blob_radius,
                                      int64_t is_exp, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  bwd<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(raw, points, t_starts, t_ends, packed_info, middles, weights, opacity,
                                                          grad_out, grad_opacity, grad_raw, n_rays,
                                                          density_of(blob_scale, blob_radius, is_exp));
  return launched();
}
