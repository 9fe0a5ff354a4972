// Volume rendering of one ray (Max 1995; Mildenhall et al. 2020, equation 3):
//
//   alpha_i = 1 - exp(-sigma_i dt_i),   T_i = prod_{j<i} (1 - alpha_j),   w_i = T_i alpha_i,
//   features = sum_i w_i features_i,   opacity = sum_i w_i,   depth = sum_i w_i mid_i.
//
// Backward, with g_i the gradient over w_i:  d/d sigma_i = dt_i (T_{i+1} g_i - sum_{j>i} w_j g_j),  d/d features_i = w_i g.
// Both T_{i+1} = T_end + sum_{j>i} w_j and the sum over later samples are taken from the back, so that nothing cancels.
#pragma once
#include "common.h"

constexpr int MAX_CHANNELS = 8;

// g_i: the gradient over the weight of one sample. grad_weights may be null.
template <class T>
NB_HD T weight_gradient(const T* features, int c, T mid, const T* grad_out, T grad_opacity, T grad_depth) {
  T g = mul_add(grad_depth, mid, grad_opacity);
  for (int k = 0; k < c; ++k) g = mul_add(grad_out[k], features[k], g);
  return g;
}

// d / d sigma_i, from T_{i+1} and the sum of w_j g_j over later samples.
template <class T>
NB_HD T sigma_gradient(T dt, T transmittance_after, T g, T later) {
  return dt * (transmittance_after * g - later);
}

// Writes weights[count], features_out[c], opacity and depth of one ray; the inputs point at the ray's first sample.
// T_{i+1} = T_i - w_i saves an exponential.
template <class T>
NB_HD void composite_ray(const T* sigmas, const T* features, const T* t_starts, const T* t_ends, int64_t count, int c,
                         T* features_out, T* opacity, T* depth, T* weights) {
  T transmittance = T(1), sum_depth = T(0), sum[MAX_CHANNELS] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T x = sigmas[i] * (t_ends[i] - t_starts[i]);
    const T weight = transmittance * -expm1(-x);
    transmittance -= weight;
    weights[i] = weight;
    sum_depth = mul_add(weight, (t_starts[i] + t_ends[i]) * T(0.5), sum_depth);
    for (int k = 0; k < c; ++k) sum[k] = mul_add(weight, features[i * c + k], sum[k]);
  }
  *opacity = T(1) - transmittance;  // the sum of the weights, but never above 1
  *depth = sum_depth;
  for (int k = 0; k < c; ++k) features_out[k] = sum[k];
}

// Writes grad_sigmas[count] and grad_features[count * c] of one ray. grad_weights may be null.
template <class T>
NB_HD void composite_ray_bwd(const T* features, const T* t_starts, const T* t_ends, const T* weights, T opacity,
                             int64_t count, int c, const T* grad_features_out, T grad_opacity, T grad_depth,
                             const T* grad_weights, T* grad_sigmas, T* grad_features) {
  T transmittance = T(1) - opacity, later = T(0);
  for (int64_t i = count - 1; i >= 0; --i) {
    const T mid = (t_starts[i] + t_ends[i]) * T(0.5);
    T g = weight_gradient(features + i * c, c, mid, grad_features_out, grad_opacity, grad_depth);
    if (grad_weights != nullptr) g += grad_weights[i];
    for (int k = 0; k < c; ++k) grad_features[i * c + k] = weights[i] * grad_features_out[k];
    grad_sigmas[i] = sigma_gradient(t_ends[i] - t_starts[i], transmittance, g, later);
    later = mul_add(weights[i], g, later);
    transmittance += weights[i];
  }
}
