// Ray marching on the GPU, one warp a ray: its lanes look at 32 samples at a time, one word of the mask, and write what is
// kept side by side. 32 tests at once cost less than finding out which of them could be skipped.
#include "export.h"
#include "launch.h"
#include "march.h"
#include "warp.h"

namespace {

__global__ void pack(const uint8_t* occupied, uint64_t* bricks, int64_t n_bricks, int64_t resolution) {
  const int64_t brick = thread_index();
  if (brick < n_bricks) bricks[brick] = pack_brick(occupied, brick, resolution);
}

__global__ void count(const float* rays_o, const float* rays_d, const uint64_t* bricks, const float* jitter, int64_t* counts,
                      uint32_t* masks, int64_t n_rays, int n_words, int64_t resolution, float step) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const float o[3] = {rays_o[3 * ray], rays_o[3 * ray + 1], rays_o[3 * ray + 2]};  // all on their way before the first use
  const float d[3] = {rays_d[3 * ray], rays_d[3 * ray + 1], rays_d[3 * ray + 2]};
  const Walk<float> walk(o, d, bricks, resolution, step, jitter ? jitter[ray] : 0.0f);
  int n = 0;
  float first = 0.0f;
  const float own = float(lane_index());
  for (int w = 0; w < n_words; ++w, first += float(LANES)) {
    unsigned votes = 0;
    if (walk.middle(first) < walk.span.far) {  // the same for all lanes
      const float mid = walk.middle(first + own);
      uint64_t brick;
      votes = __ballot_sync(ALL_LANES, mid < walk.span.far && walk.occupied_at(mid, brick));
    }
    if (lane_index() == 0) masks[ray * n_words + w] = votes;
    n += __popc(votes);
  }
  if (lane_index() == 0) counts[ray] = n;
}

__global__ void fill(const float* rays_o, const float* rays_d, const float* jitter, const uint32_t* masks,
                     const int64_t* ends, const int64_t* counts, int64_t* packed_info, int64_t* ray_indices, float* t_starts,
                     float* t_ends, float* points, int64_t n_rays, int n_words, int64_t capacity, float step) {
  const int64_t ray = thread_index() / LANES;
  if (ray >= n_rays) return;
  const Place place = place_of(ends[ray], counts[ray], capacity);
  if (lane_index() == 0) packed_info[2 * ray] = place.start, packed_info[2 * ray + 1] = place.stop - place.start;
  if (place.start == place.stop) return;
  const float o[3] = {rays_o[3 * ray], rays_o[3 * ray + 1], rays_o[3 * ray + 2]};
  const float d[3] = {rays_d[3 * ray], rays_d[3 * ray + 1], rays_d[3 * ray + 2]};
  const Steps<float> steps(o, d, step, jitter ? jitter[ray] : 0.0f);
  int64_t base = place.start;
  for (int w = 0; w < n_words; ++w) {
    const unsigned votes = masks[ray * n_words + w];
    const int64_t at = base + __popc(votes & lanes_before());
    base += __popc(votes);
    if (!(votes >> lane_index() & 1) || at >= place.stop) continue;
    const float i = float(w * LANES + lane_index());
    ray_indices[at] = ray;
    write_sample(steps, o, d, i, at, t_starts, t_ends, points);
  }
}

}  // namespace

// Shapes as in march_cpu.cpp.
NB_EXPORT int march_pack_f32(const float*, const uint8_t* occupied, uint64_t* bricks, int64_t resolution,
                             cudaStream_t stream) {
  const int64_t across = bricks_across(resolution), n = across * across * across;
  pack<<<blocks_for(n), THREADS, 0, stream>>>(occupied, bricks, n, resolution);
  return launched();
}

NB_EXPORT int march_count_f32(const float* rays_o, const float* rays_d, const uint64_t* bricks, const float* jitter,
                              int64_t* counts, uint32_t* masks, int64_t n_rays, int64_t n_words, int64_t resolution,
                              double step, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  count<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(rays_o, rays_d, bricks, jitter, counts, masks, n_rays, int(n_words),
                                                            resolution, float(step));
  return launched();
}

NB_EXPORT int march_fill_f32(const float* rays_o, const float* rays_d, const float* jitter, const uint32_t* masks,
                             const int64_t* ends, const int64_t* counts, int64_t* packed_info, int64_t* ray_indices,
                             float* t_starts, float* t_ends, float* points, int64_t n_rays, int64_t n_words, int64_t capacity,
                             double step, cudaStream_t stream) {
  if (n_rays == 0) return NB_OK;
  fill<<<blocks_for(n_rays * LANES), THREADS, 0, stream>>>(rays_o, rays_d, jitter, masks, ends, counts, packed_info,
                                                           ray_indices, t_starts, t_ends, points, n_rays, int(n_words), capacity,
                                                           float(step));
  return launched();
}
