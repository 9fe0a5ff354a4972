// A small network for a few rows at a time: out = relu(x W1^T + b1) W2^T + b2, forward and backward, on the CPU.
//
// The hidden layer of a row is a handful of vector registers; W1 is read transposed, [inputs, W], for that. The backward
// pass makes the hidden layer again instead of reading it from memory.
#pragma once
#include <cstring>

#include "common.h"

template <class T>
struct Wide {  // 64 bytes of numbers
  static constexpr int N = 64 / int(sizeof(T));
  typedef T Vector __attribute__((vector_size(64)));
};

template <class T, int W>
struct HiddenRow {
  static constexpr int PARTS = W / Wide<T>::N > 0 ? W / Wide<T>::N : 1;
  typename Wide<T>::Vector part[PARTS];
  static_assert(W % Wide<T>::N == 0, "a hidden layer is made of whole vectors");
};

template <class T>
NB_HD typename Wide<T>::Vector load_wide(const T* from) {
  typename Wide<T>::Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
NB_HD void store_wide(T* to, const typename Wide<T>::Vector& value) {
  std::memcpy(to, &value, sizeof value);
}

// The hidden layer of R rows of inputs, before the ReLU. `transposed` is W1^T, [n_inputs, W].
template <class T, int W, int R>
NB_HD void hidden_rows(const T* inputs, int64_t n_inputs, const T* transposed, const T* bias, HiddenRow<T, W> (&rows)[R]) {
  constexpr int P = HiddenRow<T, W>::PARTS, N = Wide<T>::N;
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) rows[r].part[p] = load_wide(bias + p * N);
  for (int64_t k = 0; k < n_inputs; ++k)
    for (int p = 0; p < P; ++p) {
      const auto weight = load_wide(transposed + k * W + p * N);
      for (int r = 0; r < R; ++r) rows[r].part[p] += inputs[r * n_inputs + k] * weight;
    }
}

template <class T, int W>
NB_HD void relu(HiddenRow<T, W>& row) {
  const typename Wide<T>::Vector zero = {};
  for (auto& part : row.part) part = part > zero ? part : (part == part ? zero : part);  // what is no number stays so
}

template <class T, int W>
NB_HD T dot(const HiddenRow<T, W>& row, const T* weight) {
  auto sum = row.part[0] * load_wide(weight);
  for (int p = 1; p < HiddenRow<T, W>::PARTS; ++p) sum += row.part[p] * load_wide(weight + p * Wide<T>::N);
  T total = T(0);
  for (int i = 0; i < Wide<T>::N; ++i) total += sum[i];
  return total;
}
