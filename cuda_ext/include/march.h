// Ray marching through an occupancy grid over the box [-1,1]^3, in two passes: count, (prefix sum), fill.
//
// Sample i of a ray is the interval [t_i, t_{i+1}], t_i = t_near + (i + jitter) step, with t_near the ray's entry into the
// box (0 when it starts inside). It is kept when its midpoint lies in the box and in an occupied cell. Every t comes from
// its own i, never by adding steps up; both passes use this one walk, so they agree to the last bit.
#pragma once
#include "common.h"

template <class T>
struct Span {  // where a ray is inside the box; empty when near >= far
  T near, far;
};

// Slabs; an axis along which the ray does not move limits nothing, or everything. A ray that does not move at all, or is
// not made of numbers, gets the empty span.
template <class T>
NB_HD Span<T> intersect_box(const T* o, const T* d) {
  const Span<T> empty = {T(0), T(0)}, all = {T(0), T(1e30)};
  Span<T> span = all;
  for (int j = 0; j < 3; ++j) {
    if (d[j] == T(0)) {
      if (!(o[j] >= T(-1) && o[j] <= T(1))) return empty;
      continue;
    }
    const T a = (T(-1) - o[j]) / d[j], b = (T(1) - o[j]) / d[j];
    const T enter = a < b ? a : b, leave = a < b ? b : a;
    if (!(enter <= leave)) return empty;
    span.near = enter > span.near ? enter : span.near;
    span.far = leave < span.far ? leave : span.far;
  }
  return span.far < all.far ? span : empty;
}

template <class T>
NB_HD int64_t cell_of(T x, int64_t resolution) {
  const int64_t cell = int64_t((x + T(1)) * T(0.5) * T(resolution));  // x is in the box up to rounding
  return cell < 0 ? 0 : cell < resolution ? cell : resolution - 1;
}

// Calls visit(t_start, t_end) for every sample of the ray in order, and returns their number.
template <class T, class Visit>
NB_HD int64_t walk_ray(const T* o, const T* d, const uint8_t* occupied, int64_t resolution, T step, T jitter,
                       const Visit& visit) {
  const Span<T> span = intersect_box(o, d);
  int64_t count = 0;
  for (int64_t i = 0;; ++i) {
    const T t_start = span.near + (T(i) + jitter) * step, t_end = span.near + (T(i + 1) + jitter) * step;
    const T mid = (t_start + t_end) * T(0.5);
    if (!(mid < span.far)) return count;
    const int64_t x = cell_of(o[0] + mid * d[0], resolution), y = cell_of(o[1] + mid * d[1], resolution),
                  z = cell_of(o[2] + mid * d[2], resolution);
    if (occupied[(x * resolution + y) * resolution + z]) {
      visit(t_start, t_end);
      ++count;
    }
  }
}
