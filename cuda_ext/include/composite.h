// Volume rendering of one ray (Max 1995; Mildenhall et al. 2020, equation 3):
//
//   alpha_i = 1 - exp(-sigma_i dt_i),   T_i = prod_{j<i} (1 - alpha_j),   w_i = T_i alpha_i,
//   features = sum_i w_i features_i,   opacity = sum_i w_i,   depth = sum_i w_i mid_i.
//
// T_{i+1} = T_i - w_i saves an exponential. Backward, with g_i the gradient over w_i:  d/d sigma_i = dt_i (T_{i+1} g_i - sum_{j>i} w_j g_j),  d/d features_i = w_i g.
#pragma once
#include "common.h"

constexpr int MAX_CHANNELS = 8;

// Writes weights[count], features_out[c], opacity and depth of one ray; the inputs point at the ray's first sample.
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

// Writes grad_sigmas[count] and grad_features[count * c] of one ray. grad_weights may be null. Transmittance comes from the
// weights as in the forward pass; the sum over later samples is taken from the back, so that nothing cancels.
template <class T>
NB_HD void composite_ray_bwd(const T* features, const T* t_starts, const T* t_ends, const T* weights,
                             int64_t count, int c, const T* grad_features_out, T grad_opacity, T grad_depth,
                             const T* grad_weights, T* grad_sigmas, T* grad_features) {
  T transmittance = T(1), grad_out[MAX_CHANNELS], later = T(0);
  for (int k = 0; k < c; ++k) grad_out[k] = grad_features_out[k];
  for (int64_t i = 0; i < count; ++i) {
    transmittance -= weights[i];
    grad_sigmas[i] = transmittance;  // T_{i+1}, kept here until the pass below
  }
  for (int64_t i = count - 1; i >= 0; --i) {
    T g = mul_add(grad_depth, (t_starts[i] + t_ends[i]) * T(0.5), grad_opacity);
    if (grad_weights != nullptr) g += grad_weights[i];
    for (int k = 0; k < c; ++k) {
      g = mul_add(grad_out[k], features[i * c + k], g);
      grad_features[i * c + k] = weights[i] * grad_out[k];
    }
    grad_sigmas[i] = (t_ends[i] - t_starts[i]) * (grad_sigmas[i] * g - later);
    later = mul_add(weights[i], g, later);
  }
}
