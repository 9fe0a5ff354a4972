// From the field's raw outputs to a ray's colour in one pass: activations and volume rendering together.
//
// raw [4] of a sample: density and three albedo logits, before their activations, at the point x of the box [-1,1]^3:
//   s = raw_0 + scale (1 - |x| / radius),   sigma = exp(min(s, 15)) or softplus(s),   albedo_k = sigmoid(raw_k).
// A ray sums its colour and the first two moments of the distance from its middle, u = mid - middle, with the weights of
// composite.h: channels (r, g, b, u, u^2).
#pragma once
#include "composite.h"

constexpr int RAW = 4, CHANNELS = 5;

template <class T>
struct Density {  // the activation of the density, and the blob that a field starts from
  T scale, radius;
  bool is_exp;  // else softplus

  NB_HD T shifted(T raw, const T* x) const {
    return raw + scale * (T(1) - sqrt(x[0] * x[0] + x[1] * x[1] + x[2] * x[2]) / radius);
  }
  NB_HD T value(T s) const {
    if (is_exp) return exp(s < T(15) ? s : (s == s ? T(15) : s));
    return s > T(20) ? s : log1p(exp(s));
  }
  // Above the cut the gradient goes on as at the cut, so that it never vanishes.
  NB_HD T slope(T s) const {
    if (is_exp) return exp(s < T(15) ? (s > T(-15) ? s : T(-15)) : (s == s ? T(15) : s));
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

// Writes weights [count], out [5] and opacity of one ray; the inputs point at the ray's first sample.
template <class T>
NB_HD void field_composite_ray(const Density<T>& density, const T* raw, const T* points, const T* t_starts, const T* t_ends,
                               int64_t count, T middle, T* out, T* opacity, T* weights) {
  T transmittance = T(1), channels[CHANNELS], sum[CHANNELS] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T sigma = density.value(density.shifted(raw[RAW * i], points + 3 * i));
    const T weight = transmittance * -expm1(-sigma * (t_ends[i] - t_starts[i]));
    transmittance -= weight;
    weights[i] = weight;
    sample_channels(raw + RAW * i, (t_starts[i] + t_ends[i]) * T(0.5), middle, channels);
    for (int k = 0; k < CHANNELS; ++k) sum[k] = mul_add(weight, channels[k], sum[k]);
  }
  *opacity = T(1) - transmittance;
  for (int k = 0; k < CHANNELS; ++k) out[k] = sum[k];
}

// Writes grad_raw [count, 4] of one ray.
template <class T>
NB_HD void field_composite_ray_bwd(const Density<T>& density, const T* raw, const T* points, const T* t_starts,
                                   const T* t_ends, const T* weights, T opacity, int64_t count, T middle, const T* grad_out,
                                   T grad_opacity, T* grad_raw) {
  T transmittance = T(1) - opacity, later = T(0), channels[CHANNELS];
  for (int64_t i = count - 1; i >= 0; --i) {
    sample_channels(raw + RAW * i, (t_starts[i] + t_ends[i]) * T(0.5), middle, channels);
    const T g = weight_gradient(channels, CHANNELS, T(0), grad_out, grad_opacity, T(0));
    const T grad_sigma = sigma_gradient(t_ends[i] - t_starts[i], transmittance, g, later);
    raw_gradient(density, density.shifted(raw[RAW * i], points + 3 * i), channels, grad_sigma, weights[i], grad_out,
                 grad_raw + RAW * i);
    later = mul_add(weights[i], g, later);
    transmittance += weights[i];
  }
}
