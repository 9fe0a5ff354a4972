// Rays of pixels on the GPU, one thread a pixel.
#include "export.h"
#include "launch.h"
#include "rays.h"

namespace {

__global__ void rays(const float* c2w, const float* fovy, float* origins, float* directions, int64_t n, int64_t height,
                     int64_t width) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const int64_t view = i / (height * width);
  pixel_ray(c2w + 16 * view, fovy[view], i / width % height, i % width, height, width, origins + 3 * i, directions + 3 * i);
}

}  // namespace

// c2w [b, 4, 4]; fovy [b]; origins, directions [n, 3], n = b * height * width.
NB_EXPORT int pixel_rays_f32(const float* c2w, const float* fovy, float* origins, float* directions, int64_t n, int64_t height,
                             int64_t width, cudaStream_t stream) {
  if (n == 0) return NB_OK;
  rays<<<blocks_for(n), THREADS, 0, stream>>>(c2w, fovy, origins, directions, n, height, width);
  return launched();
}
