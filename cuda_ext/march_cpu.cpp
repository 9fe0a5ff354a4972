// Ray marching on the CPU, parallel over rays.
#include "export.h"
#include "march.h"
#include "parallel.h"

namespace {

int pack(const uint8_t* occupied, uint64_t* bricks, int64_t resolution, int n_threads) {
  const int64_t across = bricks_across(resolution);
  parallel_for(across * across * across, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t brick = begin; brick < end; ++brick) bricks[brick] = pack_brick(occupied, brick, resolution);
  });
  return NB_OK;
}

template <class T>
int count(const T* rays_o, const T* rays_d, const uint64_t* bricks, const T* jitter, int64_t* counts, uint32_t* masks,
          int64_t n_rays, int64_t n_words, int64_t resolution, T step, int n_threads) {
  parallel_for(n_rays, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      const Walk<T> walk(rays_o + 3 * ray, rays_d + 3 * ray, bricks, resolution, step, jitter ? jitter[ray] : T(0));
      counts[ray] = mark_samples(walk, masks + ray * n_words, n_words);
    }
  });
  return NB_OK;
}

template <class T>
int fill(const T* rays_o, const T* rays_d, const T* jitter, const uint32_t* masks, const int64_t* ends, const int64_t* counts,
         int64_t* packed_info, int64_t* ray_indices, T* t_starts, T* t_ends, T* points, int64_t n_rays, int64_t n_words,
         int64_t capacity, T step, int n_threads) {
  parallel_for(n_rays, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      const Place place = place_of(ends[ray], counts[ray], capacity);
      int64_t at = place.start;
      packed_info[2 * ray] = at, packed_info[2 * ray + 1] = place.stop - at;
      if (at == place.stop) continue;
      const Steps<T> steps(rays_o + 3 * ray, rays_d + 3 * ray, step, jitter ? jitter[ray] : T(0));
      for (int64_t w = 0; w < n_words; ++w) {
        for (uint32_t left = masks[ray * n_words + w]; left != 0 && at < place.stop; left &= left - 1, ++at) {
          const int i = int(w) * MASK_BITS + __builtin_ctz(left);
          ray_indices[at] = ray;
          write_sample(steps, rays_o + 3 * ray, rays_d + 3 * ray, T(i), at, t_starts, t_ends, points);
        }
      }
    }
  });
  return NB_OK;
}

}  // namespace

// occupied [R, R, R] bytes, indexed x, y, z; bricks [B, B, B] words, B = ceil(R / 4); rays_o, rays_d [n_rays, 3]; jitter
// [n_rays] or null; counts, and ends as their running sum, [n_rays]; masks [n_rays, n_words]; packed_info [n_rays, 2] (start,
// count); ray_indices, t_starts, t_ends [capacity]; points [capacity, 3].
#define NB_MARCH(T, SUFFIX)                                                                                                 \
  NB_EXPORT int march_pack_##SUFFIX(const T*, const uint8_t* occupied, uint64_t* bricks, int64_t resolution,                \
                                    int64_t n_threads) {                                                                    \
    return pack(occupied, bricks, resolution, int(n_threads));                                                              \
  }                                                                                                                         \
  NB_EXPORT int march_count_##SUFFIX(const T* rays_o, const T* rays_d, const uint64_t* bricks, const T* jitter,             \
                                     int64_t* counts, uint32_t* masks, int64_t n_rays, int64_t n_words, int64_t resolution, \
                                     double step, int64_t n_threads) {                                                      \
    return count<T>(rays_o, rays_d, bricks, jitter, counts, masks, n_rays, n_words, resolution, T(step), int(n_threads));   \
  }                                                                                                                         \
  NB_EXPORT int march_fill_##SUFFIX(const T* rays_o, const T* rays_d, const T* jitter, const uint32_t* masks,               \
                                    const int64_t* ends, const int64_t* counts, int64_t* packed_info, int64_t* ray_indices, \
                                    T* t_starts, T* t_ends, T* points, int64_t n_rays, int64_t n_words, int64_t capacity,   \
                                    double step, int64_t n_threads) {                                                       \
    return fill<T>(rays_o, rays_d, jitter, masks, ends, counts, packed_info, ray_indices, t_starts, t_ends, points, n_rays, \
                   n_words, capacity, T(step), int(n_threads));                                                             \
  }

NB_MARCH(float, f32)
NB_MARCH(double, f64)
