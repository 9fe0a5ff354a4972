// The field's outputs composited on the CPU, parallel over rays.
#include "export.h"
#include "field_composite.h"
#include "parallel.h"

// raw, grad_raw [n, 4]; points [n, 3]; t_starts, t_ends [n]; weights [n], zeros before; packed_info [n_rays, 2]; middles,
// first_moments, seen [n_rays]; behind [n_rays, 3]; pixels, grad_pixels [n_rays, 6]; grad_raw is zeros before.
#define NB_FIELD_COMPOSITE(T, SUFFIX)                                                                                         \
  NB_EXPORT int field_composite_fwd_##SUFFIX(const T* raw, const T* points, const T* t_starts, const T* t_ends,               \
                                             const int64_t* packed_info, const T* middles, const T* behind, T* pixels,        \
                                             T* first_moments, int64_t* seen, T* weights, int64_t n_rays, int64_t n,          \
                                             double blob_scale, double blob_radius, int64_t is_exp, int64_t n_threads) {      \
    const Density<T> density = {T(blob_scale), T(blob_radius), is_exp != 0};                                                  \
    return for_rays(packed_info, n_rays, n, int(n_threads), [&](int64_t ray, int64_t s, int64_t count) {                      \
      seen[ray] = field_composite_ray<T>(density, raw + RAW * s, points + 3 * s, t_starts + s, t_ends + s, count,             \
                                         middles[ray], behind + 3 * ray, pixels + PIXEL * ray, first_moments + ray,           \
                                         weights + s);                                                                        \
    });                                                                                                                       \
  }                                                                                                                           \
  NB_EXPORT int field_composite_bwd_##SUFFIX(const T* raw, const T* points, const T* t_starts, const T* t_ends,               \
                                             const int64_t* packed_info, const T* middles, const T* behind, const T* pixels,  \
                                             const T* first_moments, const int64_t* seen, const T* weights,                   \
                                             const T* grad_pixels, T* grad_raw, int64_t n_rays, int64_t n, double blob_scale, \
                                             double blob_radius, int64_t is_exp, int64_t n_threads) {                         \
    const Density<T> density = {T(blob_scale), T(blob_radius), is_exp != 0};                                                  \
    return for_rays(packed_info, n_rays, n, int(n_threads), [&](int64_t ray, int64_t s, int64_t) {                            \
      field_composite_ray_bwd<T>(density, raw + RAW * s, points + 3 * s, t_starts + s, t_ends + s, weights + s,               \
                                 pixels[PIXEL * ray + 3], first_moments[ray], seen[ray], middles[ray], behind + 3 * ray,      \
                                 grad_pixels + PIXEL * ray, grad_raw + RAW * s);                                              \
    });                                                                                                                       \
  }

NB_FIELD_COMPOSITE(float, f32)
NB_FIELD_COMPOSITE(double, f64)
