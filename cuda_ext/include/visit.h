// Which points each lane of a warp looks at, and in what order.
//
// The samples of a ray lie side by side in memory, and 32 of them in a row cross many cells. Neighbouring rays run through
// the same cells: so a warp takes the samples of 8 rays, 4 of each at a time, which lie close together in every direction
// (in the render of 512 x 512, 7.7 instead of 10.9 cells for each point over all 16 levels, and 91 instead of 62 % of the
// lanes in use where half of the samples are dark). Rows that no ray names, all of them where there are no rays, are taken 32
// at a time as they lie.
#pragma once
#include <cstdint>

#include "warp.h"

constexpr int TILE_RAYS = 8, TILE_SAMPLES = LANES / TILE_RAYS;
constexpr int64_t REST_WARPS = 256;  // at most, for rows beyond the last ray's

struct Visit {  // of one lane: the rows at, at + step, ... before end
  int64_t at, end, step;
};

struct Rows {
  const int64_t* packed_info;  // [n_rays, 2] first row and number of rows of each ray, in order and without gaps; or null
  int64_t n_rays, n;

  __host__ __device__ int64_t tiles() const { return (n_rays + TILE_RAYS - 1) / TILE_RAYS; }
  __host__ __device__ int64_t rest_warps() const {
    const int64_t most = (n + LANES - 1) / LANES;
    return n_rays == 0 || most < REST_WARPS ? most : REST_WARPS;
  }
  __host__ __device__ int64_t warps() const { return tiles() + rest_warps(); }

  __device__ __forceinline__ Visit visit(int64_t warp) const {
    if (warp < tiles()) {
      const int64_t ray = warp * TILE_RAYS + lane_index() / TILE_SAMPLES;
      if (ray >= n_rays) return {n, n, n};
      const int64_t first = packed_info[2 * ray], end = first + packed_info[2 * ray + 1];
      return {first + lane_index() % TILE_SAMPLES, end < n ? end : n, TILE_SAMPLES};
    }
    if (warp >= warps()) return {n, n, n};
    const int64_t used = n_rays == 0 ? 0 : packed_info[2 * n_rays - 2] + packed_info[2 * n_rays - 1];
    return {used + (warp - tiles()) * LANES + lane_index(), n, rest_warps() * LANES};
  }
};
