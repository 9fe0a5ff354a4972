// The small network on the CPU, parallel over chunks of rows.
#include <vector>

#include "export.h"
#include "mlp.h"
#include "parallel.h"
#include "widths.h"

namespace {

constexpr int ROWS = 2;  // worked on together, so that a weight is read once for all of them

template <class T>
struct Network {
  const T *hidden_weight, *hidden_bias, *out_weight, *out_bias;
  int64_t n_inputs, n_outputs;
};

template <class T>
std::vector<T> transpose(const T* weight, int64_t width, int64_t n_inputs) {
  std::vector<T> result(width * n_inputs);
  for (int64_t h = 0; h < width; ++h)
    for (int64_t k = 0; k < n_inputs; ++k) result[k * width + h] = weight[h * n_inputs + k];
  return result;
}

template <class T, int W, int R>
void forward_rows(const Network<T>& net, const T* transposed, const T* features, T* out) {
  HiddenRow<T, W> hidden[R];
  hidden_rows<T, W, R>(features, net.n_inputs, transposed, net.hidden_bias, hidden);
  for (int r = 0; r < R; ++r) {
    relu(hidden[r]);
    for (int64_t o = 0; o < net.n_outputs; ++o)
      out[r * net.n_outputs + o] = net.out_bias[o] + dot(hidden[r], net.out_weight + o * W);
  }
}

// Adds to a chunk's sums: W1 [W, n_inputs], b1 [W], W2 [n_outputs, W].
template <class T, int W, int R>
void backward_rows(const Network<T>& net, const T* transposed, const T* features, const T* grad_out, T* grad_features,
                   T* sums) {
  constexpr int P = HiddenRow<T, W>::PARTS, N = Wide<T>::N;
  T *of_bias = sums + W * net.n_inputs, *of_out = of_bias + W;
  HiddenRow<T, W> hidden[R], grad[R];
  hidden_rows<T, W, R>(features, net.n_inputs, transposed, net.hidden_bias, hidden);
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      const typename Wide<T>::Vector zero = {};
      auto over = zero;
      for (int64_t o = 0; o < net.n_outputs; ++o)
        over += grad_out[r * net.n_outputs + o] * load_wide(net.out_weight + o * W + p * N);
      grad[r].part[p] = hidden[r].part[p] > zero ? over : zero;
    }
    relu(hidden[r]);
  }
  for (int p = 0; p < P; ++p) {
    auto bias = load_wide(of_bias + p * N);
    for (int r = 0; r < R; ++r) bias += grad[r].part[p];
    store_wide(of_bias + p * N, bias);
    for (int64_t o = 0; o < net.n_outputs; ++o) {
      auto sum = load_wide(of_out + o * W + p * N);
      for (int r = 0; r < R; ++r) sum += grad_out[r * net.n_outputs + o] * hidden[r].part[p];
      store_wide(of_out + o * W + p * N, sum);
    }
  }
  for (int64_t k = 0; k < net.n_inputs; ++k) {  // sums over W1 are kept transposed, [n_inputs, W], until the chunk's end
    for (int r = 0; r < R; ++r) grad_features[r * net.n_inputs + k] = dot(grad[r], transposed + k * W);
    for (int p = 0; p < P; ++p) {
      auto sum = load_wide(sums + k * W + p * N);
      for (int r = 0; r < R; ++r) sum += features[r * net.n_inputs + k] * grad[r].part[p];
      store_wide(sums + k * W + p * N, sum);
    }
  }
}

template <class T, int W>
void fwd(const Network<T>& net, const T* features, T* out, int64_t n, int n_threads) {
  const std::vector<T> transposed = transpose(net.hidden_weight, W, net.n_inputs);
  parallel_for((n + ROWS - 1) / ROWS, n_threads, [&](int64_t begin, int64_t end) {
    int64_t row = begin * ROWS;
    const int64_t stop = std::min(end * ROWS, n);
    for (; row + ROWS <= stop; row += ROWS)
      forward_rows<T, W, ROWS>(net, transposed.data(), features + row * net.n_inputs, out + row * net.n_outputs);
    for (; row < stop; ++row)
      forward_rows<T, W, 1>(net, transposed.data(), features + row * net.n_inputs, out + row * net.n_outputs);
  });
}

template <class T, int W>
void bwd(const Network<T>& net, const T* features, const T* grad_out, T* grad_features, T* sums, int64_t n, int64_t n_chunks,
         int n_threads) {
  const std::vector<T> transposed = transpose(net.hidden_weight, W, net.n_inputs);
  const int64_t n_sums = W * (net.n_inputs + 1 + net.n_outputs);
  parallel_tasks(n_chunks, n_threads, [&](int64_t chunk) {
    std::vector<T> own(n_sums, T(0));
    int64_t row = n * chunk / n_chunks;
    const int64_t stop = n * (chunk + 1) / n_chunks, i = net.n_inputs, o = net.n_outputs;
    for (; row + ROWS <= stop; row += ROWS)
      backward_rows<T, W, ROWS>(net, transposed.data(), features + row * i, grad_out + row * o, grad_features + row * i,
                                own.data());
    for (; row < stop; ++row)
      backward_rows<T, W, 1>(net, transposed.data(), features + row * i, grad_out + row * o, grad_features + row * i,
                             own.data());
    T* to = sums + chunk * n_sums;
    for (int64_t h = 0; h < W; ++h)
      for (int64_t k = 0; k < i; ++k) to[h * i + k] = own[k * W + h];
    std::copy(own.begin() + W * i, own.end(), to + W * i);
  });
}

}  // namespace

// features, grad_features [n, n_inputs]; hidden_weight [width, n_inputs]; hidden_bias [width]; out_weight [n_outputs, width];
// out_bias [n_outputs]; out, grad_out [n, n_outputs]; sums [n_chunks, width * (n_inputs + 1 + n_outputs)]: the gradients over
// W1, b1 and W2 of each chunk of rows; their number, not that of the threads, decides the order of the sums.
#define NB_MLP(T, SUFFIX)                                                                                                    \
  NB_EXPORT int mlp_fwd_##SUFFIX(const T* features, const T* hidden_weight, const T* hidden_bias, const T* out_weight,       \
                                 const T* out_bias, T* out, int64_t n, int64_t n_inputs, int64_t width, int64_t n_outputs,   \
                                 int64_t n_threads) {                                                                        \
    const Network<T> net = {hidden_weight, hidden_bias, out_weight, out_bias, n_inputs, n_outputs};                          \
    return with_width(width, [&](auto w) { fwd<T, decltype(w)::value>(net, features, out, n, int(n_threads)); });            \
  }                                                                                                                          \
  NB_EXPORT int mlp_bwd_##SUFFIX(const T* features, const T* hidden_weight, const T* hidden_bias, const T* out_weight,       \
                                 const T* grad_out, T* grad_features, T* sums, int64_t n, int64_t n_inputs, int64_t width,   \
                                 int64_t n_outputs, int64_t n_chunks, int64_t n_threads) {                                   \
    const Network<T> net = {hidden_weight, hidden_bias, out_weight, nullptr, n_inputs, n_outputs};                           \
    return with_width(width, [&](auto w) {                                                                                   \
      bwd<T, decltype(w)::value>(net, features, grad_out, grad_features, sums, n, n_chunks, int(n_threads));                 \
    });                                                                                                                      \
  }

NB_MLP(float, f32)
NB_MLP(double, f64)
