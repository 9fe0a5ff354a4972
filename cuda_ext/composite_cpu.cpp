// Volume rendering on the CPU, parallel over rays.
#include "composite.h"
#include "export.h"
#include "parallel.h"

namespace {

template <class T>
int fwd(const T* sigmas, const T* features, const T* t_starts, const T* t_ends, const int64_t* packed_info, T* features_out,
        T* opacity, T* depth, T* weights, int64_t n_rays, int64_t n, int64_t c, int n_threads) {
  if (c < 0 || c > MAX_CHANNELS) return NB_UNKNOWN_OPTION;
  return for_rays(packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t count) {
    composite_ray<T>(sigmas + s, features + s * c, t_starts + s, t_ends + s, count, int(c), features_out + ray * c,
                     opacity + ray, depth + ray, weights + s);
  });
}

template <class T>
int bwd(const T* features, const T* t_starts, const T* t_ends, const int64_t* packed_info, const T* weights,
        const T* opacity, const T* grad_features_out, const T* grad_opacity, const T* grad_depth, const T* grad_weights, T* grad_sigmas,
        T* grad_features, int64_t n_rays, int64_t n, int64_t c, int n_threads) {
  if (c < 0 || c > MAX_CHANNELS) return NB_UNKNOWN_OPTION;
  return for_rays(packed_info, n_rays, n, n_threads, [&](int64_t ray, int64_t s, int64_t count) {
    composite_ray_bwd<T>(features + s * c, t_starts + s, t_ends + s, weights + s, opacity[ray], count, int(c),
                         grad_features_out + ray * c, grad_opacity[ray], grad_depth[ray],
                         grad_weights ? grad_weights + s : nullptr, grad_sigmas + s, grad_features + s * c);
  });
}

}  // namespace

// sigmas, t_starts, t_ends, weights [n]; features [n, c]; packed_info [n_rays, 2]; features_out [n_rays, c];
// opacity, depth [n_rays]; grad_weights [n] or null.
#define NB_COMPOSITE(T, SUFFIX)                                                                                             \
  NB_EXPORT int composite_fwd_##SUFFIX(const T* sigmas, const T* features, const T* t_starts, const T* t_ends,              \
                                       const int64_t* packed_info, T* features_out, T* opacity, T* depth, T* weights,       \
                                       int64_t n_rays, int64_t n, int64_t c, int64_t n_threads) {                           \
    return fwd<T>(sigmas, features, t_starts, t_ends, packed_info, features_out, opacity, depth, weights, n_rays, n, c,     \
                  int(n_threads));                                                                                          \
  }                                                                                                                         \
  NB_EXPORT int composite_bwd_##SUFFIX(const T* features, const T* t_starts, const T* t_ends,              \
                                       const int64_t* packed_info, const T* weights, const T* opacity,                      \
                                       const T* grad_features_out,                                                          \
                                       const T* grad_opacity, const T* grad_depth, const T* grad_weights, T* grad_sigmas,   \
                                       T* grad_features, int64_t n_rays, int64_t n, int64_t c, int64_t n_threads) {         \
    return bwd<T>(features, t_starts, t_ends, packed_info, weights, opacity, grad_features_out, grad_opacity, grad_depth,    \
                  grad_weights, grad_sigmas, grad_features, n_rays, n, c, int(n_threads));                                  \
  }

NB_COMPOSITE(float, f32)
NB_COMPOSITE(double, f64)
