// Ray marching on the GPU, one thread a ray.
#include "export.h"
#include "launch.h"
#include "march.h"

namespace {

__global__ void count(const float* rays_o, const float* rays_d, const uint8_t* occupied, const float* jitter, int64_t* counts,
                      int64_t n_rays, int64_t resolution, float step) {
  const int64_t ray = thread_index();
  if (ray >= n_rays) return;
  counts[ray] = walk_ray(rays_o + 3 * ray, rays_d + 3 * ray, occupied, resolution, step, jitter ? jitter[ray] : 0.0f,
                         [](float, float) {});
}

__global__ void fill(const float* rays_o, const float* rays_d, const uint8_t* occupied, const float* jitter,
                     const int64_t* packed_info, int64_t* ray_indices, float* t_starts, float* t_ends, int64_t n_rays,
                     int64_t resolution, float step) {
  const int64_t ray = thread_index();
  if (ray >= n_rays || packed_info[2 * ray + 1] == 0) return;
  int64_t at = packed_info[2 * ray];
  walk_ray(rays_o + 3 * ray, rays_d + 3 * ray, occupied, resolution, step, jitter ? jitter[ray] : 0.0f,
           [&](float t_start, float t_end) {
             ray_indices[at] = ray;
             t_starts[at] = t_start;
             t_ends[at++] = t_end;
           });
}

}  // namespace

// Shapes as in march_cpu.cpp.
NB_EXPORT int march_count_f32(const float* rays_o, const float* rays_d, const uint8_t* occupied, const float* jitter,
                              int64_t* counts, int64_t n_rays, int64_t resolution, double step, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  count<<<blocks_for(n_rays), THREADS, 0, stream>>>(rays_o, rays_d, occupied, jitter, counts, n_rays, resolution, float(step));
  return launched();
}

NB_EXPORT int march_fill_f32(const float* rays_o, const float* rays_d, const uint8_t* occupied, const float* jitter,
                             const int64_t* packed_info, int64_t* ray_indices, float* t_starts, float* t_ends, int64_t n_rays,
                             int64_t resolution, double step, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  fill<<<blocks_for(n_rays), THREADS, 0, stream>>>(rays_o, rays_d, occupied, jitter, packed_info, ray_indices, t_starts, t_ends,
                                                   n_rays, resolution, float(step));
  return launched();
}
