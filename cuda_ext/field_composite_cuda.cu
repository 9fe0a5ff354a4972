// The field's outputs composited on the GPU, one warp a ray, 32 samples at a time. No atomics.
#include "export.h"
#include "field_composite.h"
#include "launch.h"
#include "warp.h"

namespace {

struct Packed {  // what both passes read
  const float4* raw;
  const float *points, *t_starts, *t_ends;
  const int64_t* packed_info;
  const float *middles, *behind;
};

__global__ void fwd(Packed in, Pixels<float> pixels, float* first_moments, int64_t* seen, float* weights, int64_t n_rays,
                    Density<float> density) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = in.packed_info[2 * ray], stop = start + in.packed_info[2 * ray + 1];
  const float middle = in.middles[ray];
  float thickness = 0.0f, sum[CHANNELS] = {};  // optical, of the samples so far
  int64_t looked_at = 0;
  for (int64_t first = start; first < stop && expf(-thickness) >= float(EARLY_STOP); first += LANES) {
    const int64_t i = first + lane_index();
    const bool mine = i < stop;
    const int64_t at = mine ? i : first;
    const float4 value = in.raw[at];
    const float near = in.t_starts[at], far = in.t_ends[at], own[RAW] = {value.x, value.y, value.z, value.w};
    const float x = density.value(density.shifted(value.x, in.points + 3 * at)) * (far - near);
    const float through = prefix_sum(mine ? x : 0.0f), ahead = __shfl_up_sync(ALL_LANES, through, 1);
    const float light = expf(-(thickness + (lane_index() == 0 ? 0.0f : ahead)));
    const unsigned dark = ~__ballot_sync(ALL_LANES, mine && light >= float(EARLY_STOP));
    const int n_lit = dark ? __ffs(dark) - 1 : LANES;  // up to the first dark one: rounding may let light rise again
    const bool lit = lane_index() < n_lit;
    const float weight = lit ? light * -expm1f(-x) : 0.0f;
    thickness += __shfl_sync(ALL_LANES, through, n_lit - 1);
    looked_at += n_lit;
    if (!lit) continue;
    weights[i] = weight;
    float channels[CHANNELS];
    sample_channels(own, (near + far) * 0.5f, middle, channels);
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k) sum[k] = fmaf(weight, channels[k], sum[k]);
  }
#pragma unroll
  for (int k = 0; k < CHANNELS; ++k) sum[k] = warp_sum(sum[k]);
  if (lane_index() != 0) return;
  float pixel[PIXEL];
  pixel_of(sum, -expm1f(-thickness), middle, in.behind + 3 * ray, pixel);
  store_pixel(pixels, ray, pixel);
  first_moments[ray] = sum[3];
  seen[ray] = looked_at;
}

__global__ void bwd(Packed in, const float* __restrict__ opacities, const float* __restrict__ first_moments,
                    const int64_t* __restrict__ seen, const float* __restrict__ weights, Pixels<const float> grads,
                    float4* grad_raw, int64_t n_rays, Density<float> density) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const int64_t start = in.packed_info[2 * ray], stop = start + seen[ray];
  const float middle = in.middles[ray], opacity = opacities[ray];
  float transmittance = 1.0f - opacity, later = 0.0f, grad_pixel[PIXEL], over[CHANNELS];
  load_pixel_gradient(grads, ray, grad_pixel);
  const float over_opacity = pixel_gradient(grad_pixel, first_moments[ray], opacity, middle, in.behind + 3 * ray, over);
  for (int64_t last = stop; last > start; last -= LANES) {  // from the back, lane 31 on the latest sample
    const int64_t i = last - LANES + lane_index();
    const bool mine = i >= start;
    const int64_t at = mine ? i : start;
    const float4 value = in.raw[at];
    const float near = in.t_starts[at], far = in.t_ends[at], own[RAW] = {value.x, value.y, value.z, value.w};
    const float weight = mine ? weights[at] : 0.0f, shifted = density.shifted(value.x, in.points + 3 * at);
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

// Shapes as in field_composite_cpu.cpp; raw and grad_raw at multiples of 16 bytes; `n` is not needed here: packed_info is
// trusted to lie inside the samples, which only the CPU checks.
NB_EXPORT int field_composite_fwd_f32(const float4* raw, const float* points, const float* t_starts, const float* t_ends,
                                      const int64_t* packed_info, const float* middles, const float* behind, float* color,
                                      float* opacity, float* depth, float* thickness, float* first_moments, int64_t* seen,
                                      float* weights, int64_t n_rays, int64_t, double blob_scale, double blob_radius,
                                      int64_t is_exp, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  const Packed in = {raw, points, t_starts, t_ends, packed_info, middles, behind};
  const Pixels<float> pixels = {color, opacity, depth, thickness};
  fwd<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(in, pixels, first_moments, seen, weights, n_rays,
                                                          density_of(blob_scale, blob_radius, is_exp));
  return launched();
}

NB_EXPORT int field_composite_bwd_f32(const float4* raw, const float* points, const float* t_starts, const float* t_ends,
                                      const int64_t* packed_info, const float* middles, const float* behind,
                                      const float* opacity, const float* first_moments, const int64_t* seen,
                                      const float* weights, const float* grad_color, const float* grad_opacity,
                                      const float* grad_depth, const float* grad_thickness, float4* grad_raw, int64_t n_rays,
                                      int64_t, double blob_scale, double blob_radius, int64_t is_exp, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  const Packed in = {raw, points, t_starts, t_ends, packed_info, middles, behind};
  const Pixels<const float> grads = {grad_color, grad_opacity, grad_depth, grad_thickness};
  bwd<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(in, opacity, first_moments, seen, weights, grads, grad_raw, n_rays,
                                                          density_of(blob_scale, blob_radius, is_exp));
  return launched();
}
