// Scalar maths of the triangle rasteriser: set-up of one triangle and its scan into a depth buffer.
//
// Homogeneous edge functions (Olano & Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997). With
// v_i = (x_i, y_i, w_i) in clip space and the sample p = (px, py, 1) in normalised device coordinates,
//   E_0(p) = p . (v_1 x v_2), E_1(p) = p . (v_2 x v_0), E_2(p) = p . (v_0 x v_1), det = v_0 . (v_1 x v_2)
//   p is inside  <=>  all E_i / det >= 0;   1/w = sum E_i / det;   z/w = sum E_i z_i / det;   b_i = E_i / sum E_j
// so triangles that cross w = 0 need no clipping, and the near plane z/w >= -1 is one more half-plane.
//
// Coordinates are float32, sums are double: the products of a cross product are exact, so the two triangles of a shared
// edge see edge functions that are exact negatives, and each sample on the edge belongs to one of them (top-left rule).
#pragma once
#include <cmath>
#include <cstdint>

#include "common.h"

namespace raster {

// As std::min and std::max, which no device function may call.
template <class T>
NB_HD T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
NB_HD T most(T a, T b) {
  return a < b ? b : a;
}

struct ClipVertex {
  float x, y, z, w;
};

// a * px + b * py + c >= 0 (> 0 when not closed), in sample units px = 2 x + 1 - width, py = height - 1 - 2 y.
struct HalfPlane {
  double a, b, c;
  bool closed;

  NB_HD double at(double px, double row) const { return a * px + row; }
  NB_HD double row(double py) const { return b * py + c; }
  NB_HD bool holds(double value) const { return closed ? value >= 0.0 : value > 0.0; }
};

struct Triangle {
  HalfPlane edge[4];  // three edges, then the near plane
  int n_edges;        // 3, or 4 when the triangle crosses the near plane
  double z_a, z_b, z_c;  // depth z/w = z_a * px + z_b * py + z_c
  int64_t x_min, x_max, y_min, y_max;  // samples that can be covered, inclusive
};

struct Bounds {
  double x_min = HUGE_VAL, x_max = -HUGE_VAL;
  double y_min = HUGE_VAL, y_max = -HUGE_VAL;

  NB_HD void add(double x, double y) {
    x_min = least(x_min, x), x_max = most(x_max, x);
    y_min = least(y_min, y), y_max = most(y_max, y);
  }
};

NB_HD bool is_finite(const ClipVertex& v) {
  return std::isfinite(v.x) && std::isfinite(v.y) && std::isfinite(v.z) && std::isfinite(v.w);
}

// Adds the point where the segment from a to b crosses the near plane z + w = 0; false when it lies at w <= 0.
NB_HD bool add_near_crossing(const ClipVertex& a, const ClipVertex& b, Bounds& bounds) {
  const double da = double(a.z) + a.w, db = double(b.z) + b.w;
  if ((da >= 0.0) == (db >= 0.0)) return true;
  const double s = da / (da - db);
  const double w = a.w + s * (double(b.w) - a.w);
  if (!(w > 0.0)) return false;
  bounds.add((a.x + s * (double(b.x) - a.x)) / w, (a.y + s * (double(b.y) - a.y)) / w);
  return true;
}

// Normalised-device bounds of what is in front of the near plane; false when they cannot be told (w <= 0).
NB_HD bool visible_bounds(const ClipVertex v[3], bool crosses_near, Bounds& bounds) {
  for (int i = 0; i < 3; ++i) {
    if (double(v[i].z) + v[i].w < 0.0) continue;
    if (!(v[i].w > 0.0f)) return false;
    const double inv_w = 1.0 / v[i].w;
    bounds.add(v[i].x * inv_w, v[i].y * inv_w);
  }
  if (!crosses_near) return true;
  for (int i = 0; i < 3; ++i)
    if (!add_near_crossing(v[i], v[(i + 1) % 3], bounds)) return false;
  return true;
}

// The samples whose centres can lie in [low, high] (sample units), widened by a little so that rounding loses none.
NB_HD void sample_range(double low, double high, int64_t n, int64_t& first, int64_t& last) {
  first = int64_t(std::ceil(least(most(low - 0.51, 0.0), double(n))));
  last = int64_t(std::floor(least(most(high - 0.49, -1.0), double(n - 1))));
}

// False when no sample can be covered: then edges and depth are not set.
NB_HD bool set_up_box(const ClipVertex v[3], bool crosses_near, int64_t width, int64_t height, Triangle& t) {
  Bounds bounds;
  t.x_min = 0, t.x_max = width - 1, t.y_min = 0, t.y_max = height - 1;
  if (!visible_bounds(v, crosses_near, bounds)) return true;
  sample_range((bounds.x_min + 1.0) * 0.5 * width, (bounds.x_max + 1.0) * 0.5 * width, width, t.x_min, t.x_max);
  sample_range((1.0 - bounds.y_max) * 0.5 * height, (1.0 - bounds.y_min) * 0.5 * height, height, t.y_min, t.y_max);
  return t.x_min <= t.x_max && t.y_min <= t.y_max;
}

// Edge function opposite to the third corner: p . (u x v) * sign, scaled by width * height to sample units.
NB_HD HalfPlane edge_function(const ClipVertex& u, const ClipVertex& v, double sign, int64_t width, int64_t height) {
  const double a = sign * (double(u.y) * v.w - double(u.w) * v.y);
  const double b = sign * (double(u.w) * v.x - double(u.x) * v.w);
  const double c = sign * (double(u.x) * v.y - double(u.y) * v.x);
  const bool top_left = a > 0.0 || (a == 0.0 && b < 0.0);  // inside lies to the right, or below a level edge
  return {a * height, b * width, c * width * height, top_left};
}

NB_HD double determinant(const ClipVertex v[3]) {
  return v[0].x * (double(v[1].y) * v[2].w - double(v[1].w) * v[2].y) +
         v[0].y * (double(v[1].w) * v[2].x - double(v[1].x) * v[2].w) +
         v[0].w * (double(v[1].x) * v[2].y - double(v[1].y) * v[2].x);
}

// Depth plane z/w = sum E_i z_i / |det|, and the near half-plane z/w + 1 >= 0.
NB_HD void set_up_depth(const ClipVertex v[3], bool crosses_near, double scale, Triangle& t) {
  t.z_a = (t.edge[0].a * v[0].z + t.edge[1].a * v[1].z + t.edge[2].a * v[2].z) * scale;
  t.z_b = (t.edge[0].b * v[0].z + t.edge[1].b * v[1].z + t.edge[2].b * v[2].z) * scale;
  t.z_c = (t.edge[0].c * v[0].z + t.edge[1].c * v[1].z + t.edge[2].c * v[2].z) * scale;
  t.n_edges = crosses_near ? 4 : 3;
  t.edge[3] = {t.z_a, t.z_b, t.z_c + 1.0, true};
}

// Prepares one triangle of either winding; false when it covers nothing (degenerate, behind, off the image).
NB_HD bool set_up(const ClipVertex v[3], int64_t width, int64_t height, Triangle& t) {
  if (!is_finite(v[0]) || !is_finite(v[1]) || !is_finite(v[2])) return false;
  int n_behind = 0;
  for (int i = 0; i < 3; ++i) n_behind += double(v[i].z) + v[i].w < 0.0;
  if (n_behind == 3 || !set_up_box(v, n_behind > 0, width, height, t)) return false;
  const double det = determinant(v);
  if (!(det != 0.0) || !std::isfinite(det)) return false;
  const double sign = det > 0.0 ? 1.0 : -1.0;
  for (int i = 0; i < 3; ++i) t.edge[i] = edge_function(v[(i + 1) % 3], v[(i + 2) % 3], sign, width, height);
  set_up_depth(v, n_behind > 0, 1.0 / (std::fabs(det) * double(width) * double(height)), t);
  return true;
}

// Narrows [first, last] to the samples of one row that a half-plane holds: estimated by a division, settled by the
// half-plane itself, so that the estimate's rounding never decides.
NB_HD void narrow(const HalfPlane& edge, double row, int64_t width, int64_t& first, int64_t& last) {
  const auto holds = [&](int64_t x) { return edge.holds(edge.at(double(2 * x + 1 - width), row)); };
  if (edge.a == 0.0) {
    if (!edge.holds(row)) last = first - 1;
    return;
  }
  const double crossing = (double(width - 1) - row / edge.a) * 0.5;
  const double clamped = least(most(crossing, double(first - 1)), double(last + 1));
  if (edge.a > 0.0) {
    int64_t x = most(first, int64_t(clamped));
    while (x > first && holds(x - 1)) --x;
    while (x <= last && !holds(x)) ++x;
    first = x;
  } else {
    int64_t x = least(last, int64_t(clamped));
    while (x < last && holds(x + 1)) ++x;
    while (x >= first && !holds(x)) --x;
    last = x;
  }
}

// Writes `id` and the depth where the triangle is nearer than what the buffers [height, width] hold. Earlier calls win
// ties, so scanning faces in order makes the lower index win.
NB_HD void scan(const Triangle& t, int32_t id, int64_t width, int64_t height, float* depths, int32_t* ids) {
  for (int64_t y = t.y_min; y <= t.y_max; ++y) {
    const double py = double(height - 1 - 2 * y);
    int64_t first = t.x_min, last = t.x_max;
    for (int i = 0; i < t.n_edges && first <= last; ++i) narrow(t.edge[i], t.edge[i].row(py), width, first, last);
    const double z_row = t.z_b * py + t.z_c;
    float* const depth_row = depths + y * width;
    int32_t* const id_row = ids + y * width;
    for (int64_t x = first; x <= last; ++x) {
      const float depth = float(t.z_a * double(2 * x + 1 - width) + z_row);
      const bool nearer = depth < depth_row[x];
      depth_row[x] = nearer ? depth : depth_row[x];
      id_row[x] = nearer ? id : id_row[x];
    }
  }
}

// What `scan` asks of a row, for one sample alone: a product and a sum round monotonically in x, so that testing each
// sample and narrowing its row to a span give the same samples.
NB_HD bool covers(const Triangle& t, int64_t x, int64_t y, int64_t width, int64_t height) {
  const double px = double(2 * x + 1 - width), py = double(height - 1 - 2 * y);
  for (int i = 0; i < t.n_edges; ++i)
    if (!t.edge[i].holds(t.edge[i].at(px, t.edge[i].row(py)))) return false;
  return true;
}

NB_HD float depth_at(const Triangle& t, int64_t x, int64_t y, int64_t width, int64_t height) {
  return float(t.z_a * double(2 * x + 1 - width) + (t.z_b * double(height - 1 - 2 * y) + t.z_c));
}

// Perspective-correct barycentrics b_i = E_i / sum E_j of a covered sample.
NB_HD void barycentrics(const Triangle& t, int64_t x, int64_t y, int64_t width, int64_t height, float out[3]) {
  const double px = double(2 * x + 1 - width), py = double(height - 1 - 2 * y);
  double e[3], sum = 0.0;
  for (int i = 0; i < 3; ++i) {
    e[i] = most(t.edge[i].at(px, t.edge[i].row(py)), 0.0);
    sum += e[i];
  }
  for (int i = 0; i < 3; ++i) out[i] = sum > 0.0 ? float(e[i] / sum) : 1.0f / 3.0f;
}

}  // namespace raster
