// Ray marching through an occupancy grid over the box [-1,1]^3, in two passes: count, (prefix sum), fill.
//
// Sample i of a ray is the interval [t_i, t_{i+1}], t_i = t_near + (i + jitter) step, with t_near the ray's entry into the
// box (0 when it starts inside). It is kept when its midpoint lies in the box and in an occupied cell. Every t comes from
// its own i, never by adding steps up. The first pass leaves a bit a sample, the second writes the samples of the set bits.
//
// The cells are packed into bricks of 4^3, the bits of one 64-bit word, so that one load tells of a cell and of all its
// neighbourhood: where a word is 0 the walk leaves the whole brick behind at once.
#pragma once
#include "common.h"

constexpr int64_t BRICK = 4;  // cells along a side of a brick
constexpr int MAX_STEPS = 1 << 24;  // samples that a walk looks at; more are not told apart in float32

NB_HD int64_t bricks_across(int64_t resolution) { return (resolution + BRICK - 1) / BRICK; }

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

// The whole part of x in [0, 2^22): on the GPU one addition, rounded down, whose last bits are the number.
NB_HD int floor_of(double x) { return int(x); }
NB_HD int floor_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_int(__fadd_rd(x, 8388608.0f)) & 0x7fffff;
#else
  return int(x);
#endif
}

// Indices fit 32 bits: a grid has at most 2048 cells a side (the interface checks).
template <class T>
NB_HD int cell_of(T x, int resolution) {
  const T scaled = (x + T(1)) * T(0.5) * T(resolution);  // x is in the box up to rounding
  if (!(scaled > T(0))) return 0;
  if (!(scaled < T(resolution))) return resolution - 1;
  return floor_of(scaled);
}

// The cells of brick `brick` as bits, z fastest; cells beyond the grid are empty.
NB_HD uint64_t pack_brick(const uint8_t* occupied, int64_t brick, int64_t resolution) {
  const int64_t across = bricks_across(resolution);
  const int64_t x0 = brick / (across * across) * BRICK, y0 = brick / across % across * BRICK, z0 = brick % across * BRICK;
  uint64_t bits = 0;
  for (int64_t i = 0; i < BRICK * BRICK * BRICK; ++i) {
    const int64_t x = x0 + i / (BRICK * BRICK), y = y0 + i / BRICK % BRICK, z = z0 + i % BRICK;
    if (x >= resolution || y >= resolution || z >= resolution) continue;
    bits |= uint64_t(occupied[(x * resolution + y) * resolution + z] != 0) << i;
  }
  return bits;
}

template <class T>
struct Steps {  // where the samples of one ray lie
  Span<T> span;
  T step, jitter;

  NB_HD Steps(const T* o, const T* d, T step, T jitter) : span(intersect_box(o, d)), step(step), jitter(jitter) {}

  // Sample numbers are whole, as T: conversions cost the GPU more than sums.
  NB_HD T edge(T i) const { return span.near + (i + jitter) * step; }
  NB_HD T middle(T i) const { return (edge(i) + edge(i + T(1))) * T(0.5); }
};

template <class T>
struct Walk : Steps<T> {  // one ray on its way through the grid
  T o[3], d[3];
  const uint64_t* bricks;
  int resolution, across;

  NB_HD Walk(const T* rays_o, const T* rays_d, const uint64_t* bricks, int64_t resolution, T step, T jitter)
      : Steps<T>(rays_o, rays_d, step, jitter),
        o{rays_o[0], rays_o[1], rays_o[2]},
        d{rays_d[0], rays_d[1], rays_d[2]},
        bricks(bricks),
        resolution(int(resolution)),
        across(int(bricks_across(resolution))) {}

  // Whether the cell at distance t is occupied; `word` becomes its brick.
  NB_HD bool occupied_at(T t, uint64_t& word) const {
    const int x = cell_of(o[0] + t * d[0], resolution), y = cell_of(o[1] + t * d[1], resolution),
              z = cell_of(o[2] + t * d[2], resolution);
    word = bricks[((x >> 2) * across + (y >> 2)) * across + (z >> 2)];
    return word >> ((x & 3) << 4 | (y & 3) << 2 | (z & 3)) & 1;
  }

  // Where the ray leaves the brick that it is in at distance t.
  NB_HD T brick_exit(T t) const {
    T exit = this->span.far;
    for (int j = 0; j < 3; ++j) {
      if (d[j] == T(0)) continue;
      const int brick = cell_of(o[j] + t * d[j], resolution) / int(BRICK) + (d[j] > T(0) ? 1 : 0);
      const T wall = T(brick) * (T(2 * BRICK) / T(resolution)) - T(1);
      const T leave = (wall - o[j]) / d[j];
      exit = leave < exit ? leave : exit;
    }
    return exit;
  }

  // The first sample after i that may lie outside the empty brick of sample i; a hundredth of a step, and more than
  // rounding can move a point, is left as a margin.
  NB_HD int after_brick(int i, T t) const {
    const T margin = T(0.01) * this->step > T(1e-5) ? T(0.01) * this->step : T(1e-5);
    const T steps = (brick_exit(t) - margin - this->span.near) / this->step - this->jitter - T(0.5);
    return steps > T(i + 1) ? (steps < T(MAX_STEPS) ? int(steps) : MAX_STEPS) : i + 1;
  }
};

// The words of a ray's mask: bit i % 32 of word i / 32 says whether sample i is kept.
constexpr int MASK_BITS = 32;

// Writes the mask of one ray, n_words words, and returns how many samples are kept.
template <class T>
NB_HD int64_t mark_samples(const Walk<T>& ray, uint32_t* mask, int64_t n_words) {
  for (int64_t w = 0; w < n_words; ++w) mask[w] = 0;
  int64_t count = 0;
  for (int i = 0; i < n_words * MASK_BITS;) {
    const T mid = ray.middle(T(i));
    if (!(mid < ray.span.far)) break;
    uint64_t word;
    if (ray.occupied_at(mid, word)) {
      mask[i / MASK_BITS] |= 1u << i % MASK_BITS;
      ++count;
    }
    i = word == 0 ? ray.after_brick(i, mid) : i + 1;
  }
  return count;
}

struct Place {  // of a ray's samples among the packed ones
  int64_t start, stop;
};

// From the sum of the counts up to this ray's and its own count; what finds no room under `capacity` is cut off.
NB_HD Place place_of(int64_t end, int64_t count, int64_t capacity) {
  const int64_t start = end - count;
  return {start < capacity ? start : capacity, end < capacity ? end : capacity};
}

// Writes sample i of a ray, the one at place `at` of the packed samples.
template <class T>
NB_HD void write_sample(const Steps<T>& steps, const T* o, const T* d, T i, int64_t at, T* t_starts, T* t_ends, T* points) {
  const T t_start = steps.edge(i), t_end = steps.edge(i + T(1)), mid = (t_start + t_end) * T(0.5);
  t_starts[at] = t_start;
  t_ends[at] = t_end;
  for (int j = 0; j < 3; ++j) points[3 * at + j] = o[j] + mid * d[j];
}
