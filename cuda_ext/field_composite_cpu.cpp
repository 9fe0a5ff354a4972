// The field's outputs composited on the CPU, parallel over rays.
#include "export.h"
#include "field_composite.h"
#include "parallel.h"

namespace {

template <class T>
struct Packed {  // what both passes read
  const T *raw, *points, *t_starts, *t_ends;
  const int64_t* packed_info;
  const T *middles, *behind;
};

template <class T>
int fwd(const Packed<T>& in, const Pixels<T>& pixels, T* first_moments, int64_t* seen, T* weights, int64_t n_rays, int64_t n,
        const Density<T>& density, int n_threads) {
  return for_rays(in.packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t count) {
    T pixel[PIXEL];
    seen[ray] = field_composite_ray<T>(density, in.raw + RAW * s, in.points + 3 * s, in.t_starts + s, in.t_ends + s, count,
                                       in.middles[ray], in.behind + 3 * ray, pixel, first_moments + ray, weights + s);
    store_pixel(pixels, ray, pixel);
  });
}

template <class T>
int bwd(const Packed<T>& in, const T* opacity, const T* first_moments, const int64_t* seen, const T* weights,
        const Pixels<const T>& grads, T* grad_raw, int64_t n_rays, int64_t n, const Density<T>& density, int n_threads) {
  return for_rays(in.packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t) {
    T grad_pixel[PIXEL];
    load_pixel_gradient(grads, ray, grad_pixel);
    field_composite_ray_bwd<T>(density, in.raw + RAW * s, in.points + 3 * s, in.t_starts + s, in.t_ends + s, weights + s,
                               opacity[ray], first_moments[ray], seen[ray], in.middles[ray], in.behind + 3 * ray, grad_pixel,
                               grad_raw + RAW * s);
  });
}

}  // namespace

// raw, grad_raw [n, 4]; points [n, 3]; t_starts, t_ends [n]; weights [n], zeros before; packed_info [n_rays, 2]; middles,
// opacity, depth, thickness, first_moments, seen [n_rays]; behind, color [n_rays, 3]; gradients likewise, each may be null;
// grad_raw is zeros before.
#define NB_FIELD_COMPOSITE(T, SUFFIX)                                                                                         \
  NB_EXPORT int field_composite_fwd_##SUFFIX(                                                                                 \
      const T* raw, const T* points, const T* t_starts, const T* t_ends, const int64_t* packed_info, const T* middles,        \
      const T* behind, T* color, T* opacity, T* depth, T* thickness, T* first_moments, int64_t* seen, T* weights,             \
      int64_t n_rays, int64_t n, double blob_scale, double blob_radius, int64_t is_exp, int64_t n_threads) {                  \
    return fwd<T>({raw, points, t_starts, t_ends, packed_info, middles, behind}, {color, opacity, depth, thickness},          \
                  first_moments, seen, weights, n_rays, n, {T(blob_scale), T(blob_radius), is_exp != 0}, int(n_threads));     \
  }                                                                                                                           \
  NB_EXPORT int field_composite_bwd_##SUFFIX(                                                                                 \
      const T* raw, const T* points, const T* t_starts, const T* t_ends, const int64_t* packed_info, const T* middles,        \
      const T* behind, const T* opacity, const T* first_moments, const int64_t* seen, const T* weights, const T* grad_color,  \
      const T* grad_opacity, const T* grad_depth, const T* grad_thickness, T* grad_raw, int64_t n_rays, int64_t n,            \
      double blob_scale, double blob_radius, int64_t is_exp, int64_t n_threads) {                                             \
    return bwd<T>({raw, points, t_starts, t_ends, packed_info, middles, behind}, opacity, first_moments, seen, weights,       \
                  {grad_color, grad_opacity, grad_depth, grad_thickness}, grad_raw, n_rays, n,                                \
                  {T(blob_scale), T(blob_radius), is_exp != 0}, int(n_threads));                                              \
  }

NB_FIELD_COMPOSITE(float, f32)
NB_FIELD_COMPOSITE(double, f64)
