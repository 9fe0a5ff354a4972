// The field's outputs composited on the CPU, parallel over rays.
#include "export.h"
#include "field_composite.h"
#include "parallel.h"

namespace {

template <class T>
int fwd(const T* raw, const T* points, const T* t_starts, const T* t_ends, const int64_t* packed_info, const T* middles, T* out,
        T* opacity, T* weights, int64_t n_rays, int64_t n, const Density<T>& density, int n_threads) {
  return for_rays(packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t count) {
    field_composite_ray<T>(density, raw + RAW * s, points + 3 * s, t_starts + s, t_ends + s, count, middles[ray],
                           out + CHANNELS * ray, opacity + ray, weights + s);
  });
}

template <class T>
int bwd(const T* raw, const T* points, const T* t_starts, const T* t_ends, const int64_t* packed_info, const T* middles,
        const T* weights, const T* opacity, const T* grad_out, const T* grad_opacity, T* grad_raw, int64_t n_rays, int64_t n,
        const Density<T>& density, int n_threads) {
  return for_rays(packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t count) {
    field_composite_ray_bwd<T>(density, raw + RAW * s, points + 3 * s, t_starts + s, t_ends + s, weights + s, opacity[ray],
                               count, middles[ray], grad_out + CHANNELS * ray, grad_opacity[ray], grad_raw + RAW * s);
  });
}

}  // namespace

// raw, grad_raw [n, 4]; points [n, 3]; t_starts, t_ends, weights [n]; packed_info [n_rays, 2]; middles, opacity [n_rays];
// out [n_rays, 5].
#define NB_FIELD_COMPOSITE(T, SUFFIX)                                                                                         \
  NB_EXPORT int field_composite_fwd_##SUFFIX(const T* raw, const T* points, const T* t_starts, const T* t_ends,               \
                                             const int64_t* packed_info, const T* middles, T* out, T* opacity, T* weights,    \
                                             int64_t n_rays, int64_t n, double blob_scale, double blob_radius,                \
                                             int64_t is_exp, int64_t n_threads) {                                             \
    const Density<T> density = {T(blob_scale), T(blob_radius), is_exp != 0};                                                  \
    return fwd<T>(raw, points, t_starts, t_ends, packed_info, middles, out, opacity, weights, n_rays, n, density,             \
                  int(n_threads));                                                                                            \
  }                                                                                                                           \
  NB_EXPORT int field_composite_bwd_##SUFFIX(const T* raw, const T* points, const T* t_starts, const T* t_ends,               \
                                             const int64_t* packed_info, const T* middles, const T* weights,                  \
                                             const T* opacity, const T* grad_out, const T* grad_opacity, T* grad_raw,         \
                                             int64_t n_rays, int64_t n, double blob_scale, double blob_radius,                \
                                             int64_t is_exp, int64_t n_threads) {                                             \
    const Density<T> density = {T(blob_scale), T(blob_radius), is_exp != 0};                                                  \
    return bwd<T>(raw, points, t_starts, t_ends, packed_info, middles, weights, opacity, grad_out, grad_opacity, grad_raw,    \
                  n_rays, n, density, int(n_threads));                                                                        \
  }

NB_FIELD_COMPOSITE(float, f32)
NB_FIELD_COMPOSITE(double, f64)
