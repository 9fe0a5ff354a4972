// From the field's raw outputs to a ray's colour in one pass: activations and volume rendering together.
//
// raw [4] of a sample: density and three albedo logits, before their activations, at the point x of the box [-1,1]^3:
//   s = raw_0 + scale (1 - |x| / radius),   sigma = exp(min(s, 15)) or softplus(s),   albedo_k = sigmoid(raw_k).
// A ray sums the channels (r, g, b, u, u^2) with the weights of composite.h, u = mid - middle. From the sums it makes
//   color = (r, g, b) + (1 - opacity) behind,   depth = U + middle opacity,   thickness = U2 - U^2 / max(opacity, MIN_OPACITY).
// Where less than EARLY_STOP of the light is left, nothing further is looked at (as in nerfacc and instant-ngp).
#pragma once
#include "composite.h"

constexpr int RAW = 4, CHANNELS = 5, PIXEL = 6;  // a pixel: color [3], opacity, depth, thickness
constexpr double EARLY_STOP = 1e-4, MIN_OPACITY = 1e-3, MAX_EXPONENT = 15.0;

template <class T>
struct Pixels {  // where the pixels of all rays lie; T may be const
  T *color, *opacity, *depth, *thickness;  // [n_rays, 3], [n_rays], [n_rays], [n_rays]
};

template <class T>
NB_HD void store_pixel(const Pixels<T>& to, int64_t ray, const T* pixel) {
  for (int k = 0; k < 3; ++k) to.color[3 * ray + k] = pixel[k];
  to.opacity[ray] = pixel[3];
  to.depth[ray] = pixel[4];
  to.thickness[ray] = pixel[5];
}

// The gradient over a pixel [6]; parts that are null are zero.
template <class T>
NB_HD void load_pixel_gradient(const Pixels<const T>& from, int64_t ray, T* grad_pixel) {
  for (int k = 0; k < 3; ++k) grad_pixel[k] = from.color ? from.color[3 * ray + k] : T(0);
  grad_pixel[3] = from.opacity ? from.opacity[ray] : T(0);
  grad_pixel[4] = from.depth ? from.depth[ray] : T(0);
  grad_pixel[5] = from.thickness ? from.thickness[ray] : T(0);
}

template <class T>
struct Density {  // the activation of the density, and the blob that a field starts from
  T scale, radius;
  bool is_exp;  // else softplus

  NB_HD T shifted(T raw, const T* x) const {
    return raw + scale * (T(1) - sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]) / radius);
  }
  NB_HD T value(T s) const {
    if (is_exp) return exp(s < T(MAX_EXPONENT) ? s : (s == s ? T(MAX_EXPONENT) : s));
    return s > T(20) ? s : log1p(exp(s));
  }
  // Above the cut the gradient goes on as at the cut, so that it never vanishes.
  NB_HD T slope(T s) const {
    if (is_exp) {
      if (s < T(MAX_EXPONENT)) return exp(s > T(-MAX_EXPONENT) ? s : T(-MAX_EXPONENT));
      return exp(s == s ? T(MAX_EXPONENT) : s);
    }
    return T(1) / (T(1) + exp(-s));
  }
};

template <class T>
NB_HD T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// The channels of one sample.
template <class T>
NB_HD void sample_channels(const T* raw, T mid, T middle, T* channels) {
  for (int k = 0; k < 3; ++k) channels[k] = sigmoid(raw[1 + k]);
  channels[3] = mid - middle;
  channels[4] = channels[3] * channels[3];
}

// Writes grad_raw [4] of one sample: g_sigma over its density, and its weight times the gradient over its channels.
template <class T>
NB_HD void raw_gradient(const Density<T>& density, T shifted, const T* channels, T grad_sigma, T weight, const T* grad_out,
                        T* grad_raw) {
  grad_raw[0] = grad_sigma * density.slope(shifted);
  for (int k = 0; k < 3; ++k) grad_raw[1 + k] = weight * grad_out[k] * channels[k] * (T(1) - channels[k]);
}

// pixel [6] of a ray from its sums.
template <class T>
NB_HD void pixel_of(const T* sum, T opacity, T middle, const T* behind, T* pixel) {
  const T solid = opacity > T(MIN_OPACITY) ? opacity : T(MIN_OPACITY);
  for (int k = 0; k < 3; ++k) pixel[k] = sum[k] + (T(1) - opacity) * behind[k];
  pixel[3] = opacity;
  pixel[4] = sum[3] + middle * opacity;
  pixel[5] = sum[4] - sum[3] * sum[3] / solid;
}

// The gradient over a ray's sums [5], and returns the one over its opacity.
template <class T>
NB_HD T pixel_gradient(const T* grad_pixel, T first_moment, T opacity, T middle, const T* behind, T* grad_sum) {
  const bool is_solid = opacity > T(MIN_OPACITY);
  const T ratio = first_moment / (is_solid ? opacity : T(MIN_OPACITY));
  for (int k = 0; k < 3; ++k) grad_sum[k] = grad_pixel[k];
  grad_sum[3] = grad_pixel[4] - T(2) * ratio * grad_pixel[5];
  grad_sum[4] = grad_pixel[5];
  T grad_opacity = grad_pixel[3] + middle * grad_pixel[4] + (is_solid ? ratio * ratio * grad_pixel[5] : T(0));
  for (int k = 0; k < 3; ++k) grad_opacity -= grad_pixel[k] * behind[k];
  return grad_opacity;
}

// Writes the pixel [6], the first moment, weights [count], and returns how many samples were looked at; the inputs point at
// the ray's first sample.
template <class T>
NB_HD int64_t field_composite_ray(const Density<T>& density, const T* raw, const T* points, const T* t_starts, const T* t_ends,
                                  int64_t count, T middle, const T* behind, T* pixel, T* first_moment, T* weights) {
  T transmittance = T(1), channels[CHANNELS], sum[CHANNELS] = {};
  int64_t seen = 0;
  for (; seen < count && transmittance >= T(EARLY_STOP); ++seen) {
    const T sigma = density.value(density.shifted(raw[RAW * seen], points + 3 * seen));
    const T weight = transmittance * -expm1(-sigma * (t_ends[seen] - t_starts[seen]));
    transmittance -= weight;
    weights[seen] = weight;
    sample_channels(raw + RAW * seen, (t_starts[seen] + t_ends[seen]) * T(0.5), middle, channels);
    for (int k = 0; k < CHANNELS; ++k) sum[k] = mul_add(weight, channels[k], sum[k]);
  }
  pixel_of(sum, T(1) - transmittance, middle, behind, pixel);
  *first_moment = sum[3];
  return seen;
}

// Writes grad_raw [seen, 4] of one ray.
template <class T>
NB_HD void field_composite_ray_bwd(const Density<T>& density, const T* raw, const T* points, const T* t_starts,
                                   const T* t_ends, const T* weights, T opacity, T first_moment, int64_t seen, T middle,
                                   const T* behind, const T* grad_pixel, T* grad_raw) {
  T transmittance = T(1) - opacity, later = T(0), channels[CHANNELS], grad_sum[CHANNELS];
  const T grad_opacity = pixel_gradient(grad_pixel, first_moment, opacity, middle, behind, grad_sum);
  for (int64_t i = seen - 1; i >= 0; --i) {
    sample_channels(raw + RAW * i, (t_starts[i] + t_ends[i]) * T(0.5), middle, channels);
    const T g = weight_gradient(channels, CHANNELS, T(0), grad_sum, grad_opacity, T(0));
    const T grad_sigma = sigma_gradient(t_ends[i] - t_starts[i], transmittance, g, later);
    raw_gradient(density, density.shifted(raw[RAW * i], points + 3 * i), channels, grad_sigma, weights[i], grad_sum,
                 grad_raw + RAW * i);
    later = mul_add(weights[i], g, later);
    transmittance += weights[i];
  }
}
