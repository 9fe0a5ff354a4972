// Volume rendering on the GPU, one thread a ray: no atomics, the same sums in the same order every time.
#include "composite.h"
#include "export.h"
#include "launch.h"

namespace {

__global__ void fwd(const float* sigmas, const float* features, const float* t_starts, const float* t_ends,
                    const int64_t* packed_info, float* features_out, float* opacity, float* depth, float* weights,
                    int64_t n_rays, int c) {
  const int64_t ray = thread_index();
  if (ray >= n_rays) return;
  const int64_t s = packed_info[2 * ray], count = packed_info[2 * ray + 1];
  composite_ray<float>(sigmas + s, features + s * c, t_starts + s, t_ends + s, count, c, features_out + ray * c, opacity + ray,
                       depth + ray, weights + s);
}

__global__ void bwd(const float* features, const float* t_starts, const float* t_ends, const int64_t* packed_info,
                    const float* weights, const float* grad_features_out, const float* grad_opacity, const float* grad_depth,
                    const float* grad_weights, float* grad_sigmas, float* grad_features, int64_t n_rays, int c) {
  const int64_t ray = thread_index();
  if (ray >= n_rays) return;
  const int64_t s = packed_info[2 * ray], count = packed_info[2 * ray + 1];
  composite_ray_bwd<float>(features + s * c, t_starts + s, t_ends + s, weights + s, count, c, grad_features_out + ray * c,
                           grad_opacity[ray], grad_depth[ray], grad_weights ? grad_weights + s : nullptr, grad_sigmas + s,
                           grad_features + s * c);
}

}  // namespace

// Shapes as in composite_cpu.cpp; `n`, the number of samples, is not needed here.
NB_EXPORT int composite_fwd_f32(const float* sigmas, const float* features, const float* t_starts, const float* t_ends,
                                const int64_t* packed_info, float* features_out, float* opacity, float* depth, float* weights,
                                int64_t n_rays, int64_t, int64_t c, cudaStream_t stream) {
  if (c < 0 || c > MAX_CHANNELS) return NB_UNKNOWN_OPTION;
  if (n_rays == 0) return NB_OK;
  fwd<<<blocks_for(n_rays), THREADS, 0, stream>>>(sigmas, features, t_starts, t_ends, packed_info, features_out, opacity, depth,
                                                  weights, n_rays, int(c));
  return launched();
}

NB_EXPORT int composite_bwd_f32(const float* features, const float* t_starts, const float* t_ends, const int64_t* packed_info,
                                const float* weights, const float* grad_features_out, const float* grad_opacity,
                                const float* grad_depth, const float* grad_weights, float* grad_sigmas, float* grad_features,
                                int64_t n_rays, int64_t, int64_t c, cudaStream_t stream) {
  if (c < 0 || c > MAX_CHANNELS) return NB_UNKNOWN_OPTION;
  if (n_rays == 0) return NB_OK;
  bwd<<<blocks_for(n_rays), THREADS, 0, stream>>>(features, t_starts, t_ends, packed_info, weights, grad_features_out,
                                                  grad_opacity, grad_depth, grad_weights, grad_sigmas, grad_features, n_rays,
                                                  int(c));
  return launched();
}
