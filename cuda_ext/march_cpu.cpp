// Ray marching on the CPU, parallel over rays.
#include "export.h"
#include "march.h"
#include "parallel.h"

namespace {

template <class T>
int count(const T* rays_o, const T* rays_d, const uint8_t* occupied, const T* jitter, int64_t* counts, int64_t n_rays,
          int64_t resolution, T step, int n_threads) {
  parallel_for(n_rays, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray)
      counts[ray] = walk_ray(rays_o + 3 * ray, rays_d + 3 * ray, occupied, resolution, step, jitter ? jitter[ray] : T(0),
                             [](T, T) {});
  });
  return NB_OK;
}

template <class T>
int fill(const T* rays_o, const T* rays_d, const uint8_t* occupied, const T* jitter, const int64_t* packed_info,
         int64_t* ray_indices, T* t_starts, T* t_ends, int64_t n_rays, int64_t resolution, T step, int n_threads) {
  parallel_for(n_rays, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      if (packed_info[2 * ray + 1] == 0) continue;
      int64_t at = packed_info[2 * ray];
      walk_ray(rays_o + 3 * ray, rays_d + 3 * ray, occupied, resolution, step, jitter ? jitter[ray] : T(0),
               [&](T t_start, T t_end) {
                 ray_indices[at] = ray;
                 t_starts[at] = t_start;
                 t_ends[at++] = t_end;
               });
    }
  });
  return NB_OK;
}

}  // namespace

// rays_o, rays_d [n_rays, 3]; occupied [R, R, R] bytes, indexed x, y, z; jitter [n_rays] or null; counts [n_rays];
// packed_info [n_rays, 2] (start, count); ray_indices, t_starts, t_ends [n].
#define NB_MARCH(T, SUFFIX)                                                                                                 \
  NB_EXPORT int march_count_##SUFFIX(const T* rays_o, const T* rays_d, const uint8_t* occupied, const T* jitter,            \
                                     int64_t* counts, int64_t n_rays, int64_t resolution, double step, int64_t n_threads) { \
    return count<T>(rays_o, rays_d, occupied, jitter, counts, n_rays, resolution, T(step), int(n_threads));                 \
  }                                                                                                                         \
  NB_EXPORT int march_fill_##SUFFIX(const T* rays_o, const T* rays_d, const uint8_t* occupied, const T* jitter,             \
                                    const int64_t* packed_info, int64_t* ray_indices, T* t_starts, T* t_ends,               \
                                    int64_t n_rays, int64_t resolution, double step, int64_t n_threads) {                   \
    return fill<T>(rays_o, rays_d, occupied, jitter, packed_info, ray_indices, t_starts, t_ends, n_rays, resolution,        \
                   T(step), int(n_threads));                                                                                \
  }

NB_MARCH(float, f32)
NB_MARCH(double, f64)
