// The F features of one table entry, kept in registers: plain numbers, or on the CPU one vector when F is a power of two
// (compilers do not find these vectors by themselves).
#pragma once
#include <cstring>

#include "common.h"

template <class T, int F, bool VECTOR>
struct RowOf {
  T v[F];

  NB_HD void clear() {
    for (int f = 0; f < F; ++f) v[f] = T(0);
  }
  NB_HD void add(T weight, const RowOf& row) {
    for (int f = 0; f < F; ++f) v[f] = mul_add(weight, row.v[f], v[f]);
  }
  NB_HD void store(T* to) const {
    for (int f = 0; f < F; ++f) to[f] = v[f];
  }
  NB_HD void load(const T* from) {
    for (int f = 0; f < F; ++f) v[f] = from[f];
  }
};

#ifndef __CUDACC__
template <class T, int F>
struct RowOf<T, F, true> {
  typedef T Vector __attribute__((vector_size(F * sizeof(T))));
  Vector v;

  NB_HD void clear() { v = Vector{}; }
  NB_HD void add(T weight, const RowOf& row) { v += weight * row.v; }
  NB_HD void store(T* to) const { std::memcpy(to, &v, sizeof v); }
  NB_HD void load(const T* from) { std::memcpy(&v, from, sizeof v); }
};

template <class T, int F>
using Row = RowOf<T, F, (F == 2 || F == 4 || F == 8)>;
#else
template <class T, int F>
using Row = RowOf<T, F, false>;
#endif

template <class T, int F>
NB_HD T dot(const Row<T, F>& a, const Row<T, F>& b) {
  T sum = T(0);
  for (int f = 0; f < F; ++f) sum = mul_add(a.v[f], b.v[f], sum);
  return sum;
}

// Reads the row at `from`; on the GPU in pieces of 16 or 8 bytes where F allows, for which the row is then aligned.
template <class T, int F>
NB_HD Row<T, F> load_row(const T* from) {
  Row<T, F> row;
#ifdef __CUDA_ARCH__
  if constexpr (F % 4 == 0) {
    for (int f = 0; f < F; f += 4) {
      const float4 part = __ldg(reinterpret_cast<const float4*>(from + f));
      row.v[f] = part.x, row.v[f + 1] = part.y, row.v[f + 2] = part.z, row.v[f + 3] = part.w;
    }
    return row;
  } else if constexpr (F % 2 == 0) {
    for (int f = 0; f < F; f += 2) {
      const float2 part = __ldg(reinterpret_cast<const float2*>(from + f));
      row.v[f] = part.x, row.v[f + 1] = part.y;
    }
    return row;
  }
#endif
  row.load(from);
  return row;
}
