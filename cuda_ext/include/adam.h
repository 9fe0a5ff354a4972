// Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019) for one number, and the option to leave numbers without gradient as they are.
#pragma once
#include "common.h"

template <class T>
struct AdamStep {  // of one step, for all numbers
  T rate;           // learning rate / (1 - beta1^step)
  T root;           // sqrt(1 - beta2^step)
  T keep;           // 1 - learning rate * weight decay
  T beta1, beta2, eps;
  bool skip;        // numbers whose gradient is exactly zero keep their value and their moments
};

template <class T>
NB_HD void adam_number(const AdamStep<T>& step, T gradient, T& value, T& mean, T& square) {
  if (step.skip && gradient == T(0)) return;
  mean = mean + (T(1) - step.beta1) * (gradient - mean);
  square = step.beta2 * square + (T(1) - step.beta2) * gradient * gradient;
  value = step.keep * value - step.rate * mean / (sqrt(square) / step.root + step.eps);
}
