// GPU rasteriser: a warp a triangle (or a part of one), the nearest by a minimum over 64-bit keys of depth and face.
#include <algorithm>

#include "export.h"
#include "launch.h"
#include "raster.h"

namespace {

using raster::ClipVertex;
using raster::Triangle;
using Key = unsigned long long;

constexpr Key EMPTY = ~Key(0);
constexpr int WARP = 32, TILE_WIDTH = 8, TILE_HEIGHT = 4;
constexpr int64_t ENOUGH_WARPS = 1 << 16;  // fewer triangles than this share their rows out to several warps each

__device__ bool set_up_face(const ClipVertex* vertices, const int32_t* faces, int64_t f, int64_t width, int64_t height,
                            Triangle& t) {
  const ClipVertex corners[3] = {vertices[faces[3 * f]], vertices[faces[3 * f + 1]], vertices[faces[3 * f + 2]]};
  return raster::set_up(corners, width, height, t);
}

// Sorts by depth, then by face: the bits of a float are monotone once those of negative ones are turned over. -0 is 0.
__device__ Key key_of(float depth, int64_t f) {
  const unsigned bits = __float_as_uint(depth + 0.0f);
  const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return Key(ordered) << 32 | Key(f);
}

__global__ void draw(const ClipVertex* vertices, const int32_t* faces, int64_t n_faces, int64_t n_parts, int64_t width,
                     int64_t height, Key* keys) {
  const int64_t warp = thread_index() / WARP, f = warp / n_parts;
  if (f >= n_faces) return;
  Triangle t;
  if (!set_up_face(vertices, faces, f, width, height, t)) return;
  const int lane = int(threadIdx.x) % WARP;
  for (int64_t y = t.y_min + warp % n_parts * TILE_HEIGHT + lane / TILE_WIDTH; y <= t.y_max; y += n_parts * TILE_HEIGHT)
    for (int64_t x = t.x_min + lane % TILE_WIDTH; x <= t.x_max; x += TILE_WIDTH) {
      if (!raster::covers(t, x, y, width, height)) continue;
      const float depth = raster::depth_at(t, x, y, width, height);
      if (depth < HUGE_VALF) atomicMin(keys + y * width + x, key_of(depth, f));
    }
}

__global__ void settle(const Key* keys, int64_t n_pixels, int32_t* face_index) {
  const int64_t i = thread_index();
  if (i < n_pixels) face_index[i] = keys[i] == EMPTY ? -1 : int32_t(keys[i] & 0xffffffffu);
}

__global__ void finish(const ClipVertex* vertices, const int32_t* faces, int64_t width, int64_t height,
                       const int32_t* face_index, float* barycentrics, float* depth) {
  const int64_t i = thread_index();
  if (i >= width * height) return;
  float* const weights = barycentrics + 3 * i;
  weights[0] = weights[1] = weights[2] = 0.0f;
  depth[i] = HUGE_VALF;
  if (face_index[i] < 0) return;
  Triangle t;
  set_up_face(vertices, faces, face_index[i], width, height, t);
  raster::barycentrics(t, i % width, i / width, width, height, weights);
  depth[i] = raster::depth_at(t, i % width, i / width, width, height);
}

}  // namespace

// Shapes as in raster_cpu.cpp, whose results these are to the last bit: the minimum does not depend on the order.
// `barycentrics`, 12 bytes a pixel, holds the keys, 8 bytes a pixel, until the faces are settled.
NB_EXPORT int rasterize_f32(const float* positions, const int32_t* faces, int64_t n_faces, int64_t height, int64_t width,
                            int32_t* face_index, float* barycentrics, float* depth, cudaStream_t stream) {
  const auto* vertices = reinterpret_cast<const ClipVertex*>(positions);
  const auto keys = reinterpret_cast<Key*>(barycentrics);
  const int64_t n_pixels = height * width;
  if (n_pixels == 0) return NB_OK;
  const cudaError_t cleared = cudaMemsetAsync(keys, 0xff, size_t(n_pixels) * sizeof(Key), stream);
  if (cleared != cudaSuccess) return int(cleared);
  if (n_faces > 0) {
    const int64_t most_parts = (height + TILE_HEIGHT - 1) / TILE_HEIGHT;
    const int64_t n_parts = std::max<int64_t>(1, std::min(most_parts, ENOUGH_WARPS / n_faces));
    draw<<<blocks_for(n_faces * n_parts * WARP), THREADS, 0, stream>>>(vertices, faces, n_faces, n_parts, width, height, keys);
    if (const int status = launched()) return status;
  }
  settle<<<blocks_for(n_pixels), THREADS, 0, stream>>>(keys, n_pixels, face_index);
  if (const int status = launched()) return status;
  finish<<<blocks_for(n_pixels), THREADS, 0, stream>>>(vertices, faces, width, height, face_index, barycentrics, depth);
  return launched();
}
