// Rays of pixels on the CPU, parallel over pixels.
#include "rays.h"

#include "export.h"
#include "parallel.h"

// c2w [b, 4, 4]; fovy [b]; origins, directions [n, 3], n = b * height * width.
NB_EXPORT int pixel_rays_f32(const float* c2w, const float* fovy, float* origins, float* directions, int64_t n, int64_t height,
                             int64_t width, int64_t n_threads) {
  parallel_for(n, int(n_threads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t view = i / (height * width);
      pixel_ray(c2w + 16 * view, fovy[view], i / width % height, i % width, height, width, origins + 3 * i,
                directions + 3 * i);
    }
  });
  return NB_OK;
}
