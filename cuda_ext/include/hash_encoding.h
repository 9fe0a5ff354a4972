// Multiresolution hash encoding, Mueller et al. 2022 (instant neural graphics primitives), equations 1 to 4.
//
// Level l divides [0,1]^3 into N^3 cells. A point x lies in the cell floor(x N) at the fraction f = x N - floor(x N), and
//   out = sum over the 8 corners c of W_c(f) table[index(c)],   W_c = prod_j (c_j ? f_j : 1 - f_j).
// With a tangent v [3] the weights are W_c' = sum_j v_j dW_c/dx_j instead: the derivative of `out` along v. One set of
// kernels so serves the value, the gradients and the gradients of the gradients (surface normals in a loss).
// Corner c has the offset (c & 1, c >> 1 & 1, c >> 2) along x, y, z.
#pragma once
#include <type_traits>

#include "row.h"

struct Level {  // one row of the int64 [n_levels, 4] tensor of the interface
  int64_t resolution;  // N, cells along a side
  int64_t offset;      // first entry in the table
  int64_t size;        // entries; a power of two when hashed
  int64_t dense;       // 1: every vertex has its own entry, 0: hashed
};

template <class T>
struct Cell {
  uint32_t low[3];  // corner 0
  T f[3];           // fraction in [0, 1]
  bool inside[3];   // false: the coordinate was clamped, and its derivative is 0
};

template <class T>
NB_HD Cell<T> locate(const T* point, int64_t resolution) {
  Cell<T> cell;
  const T n = T(resolution);
  for (int j = 0; j < 3; ++j) {
    const T x = point[j] * n;
    const T above = x > T(0) ? x : T(0);  // not a number becomes 0
    const T clamped = above < n ? above : n;
    const int32_t whole = int32_t(clamped);
    const int32_t low = whole < int32_t(resolution) ? whole : int32_t(resolution) - 1;
    cell.low[j] = uint32_t(low);
    cell.f[j] = clamped - T(low);
    cell.inside[j] = point[j] >= T(0) && point[j] <= T(1);
  }
  return cell;
}

// Entries of the 8 corners, counted from the level's offset.
template <class T>
NB_HD void corner_entries(const Cell<T>& cell, const Level& level, uint32_t entry[8]) {
  const bool dense = level.dense != 0;
  const uint32_t side = uint32_t(level.resolution) + 1;
  const uint32_t step_y = dense ? side : 2654435761u, step_z = dense ? side * side : 805459861u;
  const uint32_t x[2] = {cell.low[0], cell.low[0] + 1};
  const uint32_t y[2] = {cell.low[1] * step_y, (cell.low[1] + 1) * step_y};
  const uint32_t z[2] = {cell.low[2] * step_z, (cell.low[2] + 1) * step_z};
  if (dense) {
    for (int c = 0; c < 8; ++c) entry[c] = x[c & 1] + y[c >> 1 & 1] + z[c >> 2];
  } else {
    const uint32_t mask = uint32_t(level.size) - 1;
    for (int c = 0; c < 8; ++c) entry[c] = (x[c & 1] ^ y[c >> 1 & 1] ^ z[c >> 2]) & mask;
  }
}

// W_c, or its derivative along `tangent` (in units of the unit cube) when that is not null.
template <class T>
NB_HD void corner_weights(const Cell<T>& cell, const T* tangent, T n, T weight[8]) {
  const T x[2] = {T(1) - cell.f[0], cell.f[0]}, y[2] = {T(1) - cell.f[1], cell.f[1]}, z[2] = {T(1) - cell.f[2], cell.f[2]};
  if (tangent == nullptr) {
    for (int c = 0; c < 8; ++c) weight[c] = x[c & 1] * y[c >> 1 & 1] * z[c >> 2];
    return;
  }
  T v[3];
  for (int j = 0; j < 3; ++j) v[j] = cell.inside[j] ? tangent[j] * n : T(0);
  for (int c = 0; c < 8; ++c) {
    const T a = x[c & 1], b = y[c >> 1 & 1], d = z[c >> 2];
    const T vx = c & 1 ? v[0] : -v[0], vy = c >> 1 & 1 ? v[1] : -v[1], vz = c >> 2 ? v[2] : -v[2];
    weight[c] = vx * b * d + a * vy * d + a * b * vz;
  }
}

// Adds to grad[3] the gradient over the point of sum_c weight_c(point) dots[c], weights as in corner_weights.
template <class T>
NB_HD void add_point_gradient(const Cell<T>& cell, const T* tangent, T n, const T dots[8], T grad[3]) {
  const T x[2] = {T(1) - cell.f[0], cell.f[0]}, y[2] = {T(1) - cell.f[1], cell.f[1]}, z[2] = {T(1) - cell.f[2], cell.f[2]};
  T g[3] = {T(0), T(0), T(0)};
  if (tangent == nullptr) {
    for (int i = 0; i < 4; ++i) {
      const int a = i & 1, b = i >> 1;
      g[0] += y[a] * z[b] * (dots[2 * a + 4 * b + 1] - dots[2 * a + 4 * b]);
      g[1] += x[a] * z[b] * (dots[a + 4 * b + 2] - dots[a + 4 * b]);
      g[2] += x[a] * y[b] * (dots[a + 2 * b + 4] - dots[a + 2 * b]);
    }
  } else {
    T v[3], xy = T(0), xz = T(0), yz = T(0);  // mixed second derivatives; the pure ones of a trilinear function are 0
    for (int j = 0; j < 3; ++j) v[j] = cell.inside[j] ? tangent[j] * n : T(0);
    for (int a = 0; a < 2; ++a) {
      xy += z[a] * (dots[4 * a + 3] - dots[4 * a + 2] - dots[4 * a + 1] + dots[4 * a]);
      xz += y[a] * (dots[2 * a + 5] - dots[2 * a + 4] - dots[2 * a + 1] + dots[2 * a]);
      yz += x[a] * (dots[a + 6] - dots[a + 4] - dots[a + 2] + dots[a]);
    }
    g[0] = v[1] * xy + v[2] * xz;
    g[1] = v[0] * xy + v[2] * yz;
    g[2] = v[0] * xz + v[1] * yz;
  }
  for (int j = 0; j < 3; ++j)
    if (cell.inside[j]) grad[j] += n * g[j];
}

// out[F] of one point at one level; `table` starts at the level's offset.
template <class T, int F>
NB_HD void encode_point(const T* point, const T* tangent, const Level& level, const T* table, T* out) {
  const Cell<T> cell = locate(point, level.resolution);
  uint32_t entry[8];
  T weight[8];
  Row<T, F> sum;
  sum.clear();
  corner_entries(cell, level, entry);
  corner_weights(cell, tangent, T(level.resolution), weight);
  for (int c = 0; c < 8; ++c) sum.add(weight[c], load_row<T, F>(table + int64_t(entry[c]) * F));
  sum.store(out);
}

// Adds the gradient of one point at one level to grad_point[3].
template <class T, int F>
NB_HD void encode_point_bwd_point(const T* point, const T* tangent, const Level& level, const T* table, const T* grad_out,
                                  T* grad_point) {
  const Cell<T> cell = locate(point, level.resolution);
  uint32_t entry[8];
  T dots[8];
  corner_entries(cell, level, entry);
  const Row<T, F> grad = load_row<T, F>(grad_out);
  for (int c = 0; c < 8; ++c) dots[c] = dot<T, F>(grad, load_row<T, F>(table + int64_t(entry[c]) * F));
  add_point_gradient(cell, tangent, T(level.resolution), dots, grad_point);
}

// Calls work(std::integral_constant<int, n_features>) for 1 to 8 features.
template <class Work>
inline int with_features(int64_t n_features, const Work& work) {
  switch (n_features) {
    case 1: work(std::integral_constant<int, 1>()); return NB_OK;
    case 2: work(std::integral_constant<int, 2>()); return NB_OK;
    case 3: work(std::integral_constant<int, 3>()); return NB_OK;
    case 4: work(std::integral_constant<int, 4>()); return NB_OK;
    case 5: work(std::integral_constant<int, 5>()); return NB_OK;
    case 6: work(std::integral_constant<int, 6>()); return NB_OK;
    case 7: work(std::integral_constant<int, 7>()); return NB_OK;
    case 8: work(std::integral_constant<int, 8>()); return NB_OK;
    default: return NB_UNKNOWN_OPTION;
  }
}
