// Which rows have a gradient that is not zero, one bit a row: the samples of a render that light reaches.
#pragma once
#include <cstdint>

#include "warp.h"

__device__ __forceinline__ bool is_lit(const uint32_t* lit, int64_t row) { return __ldg(lit + row / 32) >> row % 32 & 1; }

// The lit rows out of every `stride`-th word of bits, from `word` on: a warp's share of the work. There are less than 2^31
// words: that many rows have more bytes than a GPU.
class LitRows {
  const uint32_t* lit;
  int n_words, word, stride;     // `word`: to be looked at next
  uint32_t left = 0, ahead = 0;  // bits of the word before that are not taken yet; this lane's of 32 words read ahead
  int place = LANES;             // the lane that holds `word`

 public:
  __device__ LitRows(const uint32_t* lit, int64_t n, int word, int stride)
      : lit(lit), n_words(int((n + LANES - 1) / LANES)), word(word), stride(stride) {}

  // Writes the next 32 lit rows to `rows` [32], in shared memory, -1 where there are no more. All lanes take part.
  __device__ __forceinline__ void take(int64_t* rows) {
    int taken = 0;
    rows[lane_index()] = -1;
    __syncwarp();
    while (taken < LANES) {
      if (left != 0) {
        const int rank = taken + __popc(left & lanes_before());
        const bool mine = (left >> lane_index() & 1) && rank < LANES;
        if (mine) rows[rank] = int64_t(word - stride) * LANES + lane_index();
        const unsigned now = __ballot_sync(ALL_LANES, mine);
        taken += __popc(now);
        left &= ~now;
      } else if (word < n_words) {
        if (place == LANES) {
          const int64_t own = word + int64_t(lane_index()) * stride;
          ahead = own < n_words ? __ldg(lit + own) : 0u;
          place = 0;
        }
        left = __shfl_sync(ALL_LANES, ahead, place++);
        word += stride;
      } else {
        break;
      }
    }
    __syncwarp();
  }
};
