// Adam on the CPU, parallel over numbers.
#include "adam.h"
#include "export.h"
#include "parallel.h"

namespace {

template <class T>
int update(const T* gradients, T* values, T* means, T* squares, int64_t n, const AdamStep<T>& step, int n_threads) {
  parallel_for(n, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) adam_number(step, gradients[i], values[i], means[i], squares[i]);
  });
  return NB_OK;
}

}  // namespace

// gradients, values, means, squares [n].
#define NB_ADAM(T, SUFFIX)                                                                                                   \
  NB_EXPORT int adam_##SUFFIX(const T* gradients, T* values, T* means, T* squares, int64_t n, double rate, double root,                   \
                              double keep, double beta1, double beta2, double eps, int64_t skip, int64_t n_threads) {        \
    const AdamStep<T> step = {T(rate), T(root), T(keep), T(beta1), T(beta2), T(eps), skip != 0};                             \
    return update<T>(gradients, values, means, squares, n, step, int(n_threads));                                            \
  }

NB_ADAM(float, f32)
NB_ADAM(double, f64)
