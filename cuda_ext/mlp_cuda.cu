// A small network on tensor cores: out = relu(x W1^T + b1) W2^T + b2, with the hidden layer in registers only.
//
// Half-precision operands, float sums. Inputs and their gradients lie level by level, [n_levels, n, F], as the hash encoding
// makes them. A block works on tiles of 128 rows, each of its 4 warps on 32 of them; the blocks stay and take tile after
// tile. The weights' gradients are products over all rows of a tile, shared out over the warps and kept in registers until
// the end, when every block writes its own sums: no atomics, the same result every time.
//
// Backward, tiles are made of rows with a gradient only: in a render half of the samples are dark, but seldom 32 in a row.
#include <cuda_fp16.h>

#include "common.h"
#include "export.h"
#include "launch.h"
#include "lit_rows.h"
#include "mlp_shape.h"
#include "mma.h"
#include "scale.h"
#include "warp.h"
#include "widths.h"

namespace {

constexpr int WARPS = ROWS / LANES, OUTPUTS = MAX_OUTPUTS;
constexpr uint32_t ONES = 0x3c003c00u;  // two halves of 1

// The inputs of this thread's row, none where it is negative, columns beyond n_inputs as zeros; eight loads at a time are
// on their way.
__device__ void load_inputs(const __half* features, const Shape& shape, int64_t row, __half* inputs) {
  constexpr int BATCH = 8;
  uint32_t* to = reinterpret_cast<uint32_t*>(inputs + threadIdx.x * shape.stride());
  const uint32_t* from = reinterpret_cast<const uint32_t*>(features);
  const int pairs = shape.n_features / 2, n_pairs = row >= 0 ? shape.n_inputs / 2 : 0;  // of halves
  for (int begin = 0; begin < shape.padded() / 2; begin += BATCH) {
    uint32_t pair[BATCH];
#pragma unroll
    for (int p = 0; p < BATCH; ++p) {
      const int k = begin + p, level = k >> shape.log2_pairs, within = k & (pairs - 1);
      pair[p] = k < n_pairs ? __ldg(from + (level * shape.n + row) * pairs + within) : 0u;
    }
#pragma unroll
    for (int p = 0; p < BATCH; ++p) to[begin + p] = pair[p];
  }
}

template <int W>
__device__ void load_hidden_weight(const float* weight, const Shape& shape, __half* to) {
  for (int i = threadIdx.x; i < W * shape.padded(); i += ROWS) {
    const int h = i / shape.padded(), k = i % shape.padded();
    to[h * shape.stride() + k] = __float2half_rn(k < shape.n_inputs ? weight[h * shape.n_inputs + k] : 0.0f);
  }
}

// acc [16, W] = the 16 rows of inputs at `rows` times W1^T, plus b1.
template <int W>
__device__ __forceinline__ void hidden_layer(const __half* rows, const __half* weight, const float* bias, int padded, int stride,
                                             float (&acc)[W / 8][4]) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < W / 8; ++j) {
    const float low = __ldg(bias + 8 * j + lane % 4 * 2), high = __ldg(bias + 8 * j + lane % 4 * 2 + 1);
    acc[j][0] = acc[j][2] = low, acc[j][1] = acc[j][3] = high;
  }
  for (int k = 0; k < padded; k += 16) {
    uint32_t a[4];
    load_matrices(a, rows + lane % 16 * stride + k + lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < W / 8; j += 2) {
      uint32_t b[4];
      load_matrices(b, weight + (8 * j + lane % 8 + lane / 16 * 8) * stride + k + lane / 8 % 2 * 8);
      mma(acc[j], a, b[0], b[1]);
      mma(acc[j + 1], a, b[2], b[3]);
    }
  }
}

__device__ __forceinline__ float relu(float x) { return x > 0.0f ? x : (x == x ? 0.0f : x); }  // keeps what is no number

template <int W>
__global__ void __launch_bounds__(ROWS) fwd(const __half* features, const float* hidden_weight, const float* hidden_bias,
                                            const float* out_weight, const float* out_bias, float* out, Shape shape) {
  extern __shared__ __align__(16) __half shared[];
  const Layout<W> at(shape, false);
  const int lane = lane_index(), g = lane / 4, t = lane % 4, warp = threadIdx.x / LANES;
  load_hidden_weight<W>(hidden_weight, shape, shared + at.hidden_weight);
  for (int i = threadIdx.x; i < OUTPUTS * W; i += ROWS) {
    const int o = i / W, h = i % W;
    shared[at.out_weight + o * (W + PAD) + h] = __float2half_rn(o < shape.n_outputs ? out_weight[o * W + h] : 0.0f);
  }
  const float bias_low = 2 * t < shape.n_outputs ? out_bias[2 * t] : 0.0f;
  const float bias_high = 2 * t + 1 < shape.n_outputs ? out_bias[2 * t + 1] : 0.0f;
  __syncthreads();
  for (int64_t first = int64_t(blockIdx.x) * ROWS; first < shape.n; first += int64_t(gridDim.x) * ROWS) {
    const int64_t own = first + threadIdx.x;
    load_inputs(features, shape, own < shape.n ? own : -1, shared + at.inputs);
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = warp * LANES + m * 16;
      float acc[W / 8][4], result[4] = {bias_low, bias_high, bias_low, bias_high};
      hidden_layer<W>(shared + at.inputs + row * shape.stride(), shared + at.hidden_weight, hidden_bias, shape.padded(),
                      shape.stride(), acc);
#pragma unroll
      for (int j = 0; j < W / 8; j += 2) {
        const uint32_t a[4] = {as_pair(relu(acc[j][0]), relu(acc[j][1])), as_pair(relu(acc[j][2]), relu(acc[j][3])),
                               as_pair(relu(acc[j + 1][0]), relu(acc[j + 1][1])),
                               as_pair(relu(acc[j + 1][2]), relu(acc[j + 1][3]))};
        const __half* b = shared + at.out_weight + g * (W + PAD) + 8 * j + 2 * t;
        mma(result, a, *reinterpret_cast<const uint32_t*>(b), *reinterpret_cast<const uint32_t*>(b + 8));
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t r = first + row + g + 8 * half;
        if (r >= shape.n) continue;
        if (2 * t < shape.n_outputs) out[r * shape.n_outputs + 2 * t] = result[2 * half];
        if (2 * t + 1 < shape.n_outputs) out[r * shape.n_outputs + 2 * t + 1] = result[2 * half + 1];
      }
    }
    __syncwarp();
  }
}

// The products over a tile's rows that make the weights' gradients, shared out over the warps in units of 16 rows times 16
// columns of the result. For W1: [W, inputs], then one more column of units for b1, the product with ones.
template <int W, int K>  // K: inputs at most
struct HiddenUnits {
  static constexpr int MOST = (W / 16 * (K / 16 + 1) + WARPS - 1) / WARPS;  // of a warp
};

template <int W, int K>
__device__ void add_hidden_gradient(const __half* grad_hidden, const __half* inputs, const Shape& shape,
                                    float (&sum)[HiddenUnits<W, K>::MOST][2][4]) {
  const int lane = lane_index(), warp = threadIdx.x / LANES, columns = shape.padded() / 16 + 1;
#pragma unroll
  for (int s = 0; s < HiddenUnits<W, K>::MOST; ++s) {
    const int unit = warp + s * WARPS, h = unit / columns * 16, k = unit % columns * 16;
    if (h >= W) break;
    for (int p = 0; p < ROWS; p += 16) {
      uint32_t a[4], b[4] = {ONES, ONES, ONES, ONES};
      load_matrices_transposed(a, grad_hidden + (p + lane / 16 * 8 + lane % 8) * (W + PAD) + h + lane / 8 % 2 * 8);
      if (k < shape.padded())
        load_matrices_transposed(b, inputs + (p + lane / 8 % 2 * 8 + lane % 8) * shape.stride() + k + lane / 16 * 8);
      mma(sum[s][0], a, b[0], b[1]);
      mma(sum[s][1], a, b[2], b[3]);
    }
  }
}

// For W2: [OUTPUTS, W], transposed (rows of the result are hidden units, so that none is wasted on padding).
template <int W>
struct OutUnits {
  static constexpr int MOST = (W / 16 + WARPS - 1) / WARPS;
};

template <int W>
__device__ void add_out_gradient(const __half* hidden, const __half* grad_out, float (&sum)[OutUnits<W>::MOST][4]) {
  const int lane = lane_index(), warp = threadIdx.x / LANES;
#pragma unroll
  for (int s = 0; s < OutUnits<W>::MOST; ++s) {
    const int h = (warp + s * WARPS) * 16;
    if (h >= W) break;
    for (int p = 0; p < ROWS; p += 32) {
      uint32_t a[4], a_next[4], b[4];
      load_matrices_transposed(a, hidden + (p + lane / 16 * 8 + lane % 8) * (W + PAD) + h + lane / 8 % 2 * 8);
      load_matrices_transposed(a_next, hidden + (p + 16 + lane / 16 * 8 + lane % 8) * (W + PAD) + h + lane / 8 % 2 * 8);
      load_matrices_transposed(b, grad_out + (p + lane) * OUTPUTS);
      mma(sum[s], a, b[0], b[1]);
      mma(sum[s], a_next, b[2], b[3]);
    }
  }
}

// Where a block writes its sums: W1 [W, inputs], b1 [W], W2 [outputs, W], b2 [outputs].
__host__ __device__ int64_t sums_of_a_block(int64_t width, int64_t n_inputs, int64_t n_outputs) {
  return width * (n_inputs + 1 + n_outputs) + n_outputs;
}

template <int W, int K>
__device__ void write_sums(const float (&hidden_sum)[HiddenUnits<W, K>::MOST][2][4],
                           const float (&out_sum)[OutUnits<W>::MOST][4], float unit, const Shape& shape, float* to) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4, warp = threadIdx.x / LANES, columns = shape.padded() / 16 + 1;
  float* bias = to + W * shape.n_inputs;
  float* out = bias + W;
#pragma unroll
  for (int s = 0; s < HiddenUnits<W, K>::MOST; ++s) {
    const int part = warp + s * WARPS, h = part / columns * 16 + g, k = part % columns * 16;
    if (h >= W) break;
#pragma unroll
    for (int e = 0; e < 8; ++e) {  // element e % 4 of n-tile e / 4
      const int row = h + e % 4 / 2 * 8, column = k + e / 4 * 8 + 2 * t + e % 2;
      const float value = hidden_sum[s][e / 4][e % 4] * unit;
      if (column < shape.n_inputs) to[row * shape.n_inputs + column] = value;
      if (column == shape.padded()) bias[row] = value;
    }
  }
#pragma unroll
  for (int s = 0; s < OutUnits<W>::MOST; ++s) {
    const int h = (warp + s * WARPS) * 16 + g;
    if (h >= W) break;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (2 * t + e % 2 < shape.n_outputs) out[(2 * t + e % 2) * W + h + e / 2 * 8] = out_sum[s][e] * unit;
  }
}

// The hidden layer of the tile's 16 rows from `row` on again, its gradient, and the inputs' gradient; `rows` has their numbers.
template <int W>
__device__ __forceinline__ void backward_rows(const Layout<W>& at, __half* shared, const float* hidden_bias, int row,
                                              const Shape& shape, const int64_t* rows, __half* grad_features) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  float acc[W / 8][4];
  hidden_layer<W>(shared + at.inputs + row * shape.stride(), shared + at.hidden_weight, hidden_bias, shape.padded(),
                  shape.stride(), acc);
  const __half* over = shared + at.grad_out + row * OUTPUTS + 2 * t;
  const uint32_t over_low = *reinterpret_cast<const uint32_t*>(over + g * OUTPUTS);
  const uint32_t over_high = *reinterpret_cast<const uint32_t*>(over + (g + 8) * OUTPUTS);
  uint32_t grad[W / 8][2];  // rows g and g + 8 of the hidden layer's gradient
#pragma unroll
  for (int j = 0; j < W / 8; ++j) {
    float product[4] = {};
    mma_k8(product, over_low, over_high,
           *reinterpret_cast<const uint32_t*>(shared + at.out_weight + (8 * j + g) * OUTPUTS + 2 * t));
#pragma unroll
    for (int e = 0; e < 4; ++e) product[e] = acc[j][e] > 0.0f ? product[e] : 0.0f;
    grad[j][0] = as_pair(product[0], product[1]), grad[j][1] = as_pair(product[2], product[3]);
    const int low = (row + g) * (W + PAD) + 8 * j + 2 * t, high = low + 8 * (W + PAD);
    *reinterpret_cast<uint32_t*>(shared + at.grad_hidden + low) = grad[j][0];
    *reinterpret_cast<uint32_t*>(shared + at.grad_hidden + high) = grad[j][1];
    *reinterpret_cast<uint32_t*>(shared + at.hidden + low) = as_pair(relu(acc[j][0]), relu(acc[j][1]));
    *reinterpret_cast<uint32_t*>(shared + at.hidden + high) = as_pair(relu(acc[j][2]), relu(acc[j][3]));
  }
  const int64_t number[2] = {rows[row + g], rows[row + g + 8]};
  for (int k = 0; k < shape.padded(); k += 16) {
    float product[2][4] = {};
#pragma unroll
    for (int j = 0; j < W / 8; j += 2) {
      const uint32_t a[4] = {grad[j][0], grad[j][1], grad[j + 1][0], grad[j + 1][1]};
      uint32_t b[4];
      load_matrices_transposed(b, shared + at.hidden_weight + (8 * j + lane / 8 % 2 * 8 + lane % 8) * shape.stride() + k +
                                      lane / 16 * 8);
      mma(product[0], a, b[0], b[1]);
      mma(product[1], a, b[2], b[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {  // pair e % 2 of rows, n-tile e / 2
      const int column = k + e / 2 * 8 + 2 * t, level = column >> (shape.log2_pairs + 1);
      const int f = column & (shape.n_features - 1);
      const int64_t r = number[e % 2];
      if (column < shape.n_inputs && r >= 0)
        *reinterpret_cast<uint32_t*>(grad_features + (level * shape.n + r) * shape.n_features + f) =
            as_pair(product[e / 2][e % 2 * 2], product[e / 2][e % 2 * 2 + 1]);
    }
  }
}

// The gradient over the outputs of this thread's row, times `scale`, as halves; zeros where the row is negative.
__device__ void load_grad_out(const float* grad_out, const Shape& shape, int64_t row, float scale, __half* to) {
  for (int o = 0; o < OUTPUTS; ++o) {
    const float grad = row >= 0 && o < shape.n_outputs ? grad_out[row * shape.n_outputs + o] : 0.0f;
    to[threadIdx.x * OUTPUTS + o] = __float2half_rn(grad * scale);
  }
}

// What `backward_rows` leaves for a warp without rows: zeros.
template <int W>
__device__ void clear_rows(const Layout<W>& at, __half* shared, int row) {
  const uint4 zeros = {};
  for (int i = lane_index(); i < LANES * W / 8; i += LANES) {
    const int place = (row + i / (W / 8)) * (W + PAD) + i % (W / 8) * 8;
    *reinterpret_cast<uint4*>(shared + at.hidden + place) = zeros;
    *reinterpret_cast<uint4*>(shared + at.grad_hidden + place) = zeros;
  }
}

template <int W, int K>
__global__ void __launch_bounds__(ROWS, W > 64 ? 1 : K > 32 ? 3 : 4)
    bwd(const __half* features, const float* hidden_weight, const float* hidden_bias, const float* out_weight,
        const float* grad_out, const uint32_t* lit, const uint32_t* largest, __half* grad_features, float* sums, Shape shape) {
  extern __shared__ __align__(16) __half shared[];
  const Layout<W> at(shape, true);
  const int warp = threadIdx.x / LANES;
  int64_t* rows = reinterpret_cast<int64_t*>(shared + at.rows);
  float hidden_sum[HiddenUnits<W, K>::MOST][2][4] = {}, out_sum[OutUnits<W>::MOST][4] = {};
  load_hidden_weight<W>(hidden_weight, shape, shared + at.hidden_weight);
  for (int i = threadIdx.x; i < OUTPUTS * W; i += ROWS) {
    const int h = i / OUTPUTS, o = i % OUTPUTS;
    shared[at.out_weight + i] = __float2half_rn(o < shape.n_outputs ? out_weight[o * W + h] : 0.0f);
  }
  const float factor = gradient_scale(*largest);
  LitRows of_warp(lit, shape.n, int(blockIdx.x) * WARPS + warp, int(gridDim.x) * WARPS);
  for (;;) {
    of_warp.take(rows + warp * LANES);
    const int64_t row = rows[threadIdx.x];
    if (!__syncthreads_or(row >= 0)) break;  // before it, all warps are done with the tile before; at first, with the weights
    load_grad_out(grad_out, shape, row, factor, shared + at.grad_out);
    load_inputs(features, shape, row, shared + at.inputs);
    __syncwarp();
    if (__any_sync(ALL_LANES, row >= 0)) {
#pragma unroll 1
      for (int m = 0; m < 2; ++m)
        backward_rows<W>(at, shared, hidden_bias, warp * LANES + m * 16, shape, rows, grad_features);
    } else {
      clear_rows<W>(at, shared, warp * LANES);
    }
    __syncthreads();
    add_hidden_gradient<W, K>(shared + at.grad_hidden, shared + at.inputs, shape, hidden_sum);
    add_out_gradient<W>(shared + at.hidden, shared + at.grad_out, out_sum);
  }
  write_sums<W, K>(hidden_sum, out_sum, 1.0f / factor, shape,
                sums + blockIdx.x * sums_of_a_block(W, shape.n_inputs, shape.n_outputs));
}

// Sets the kernel's shared memory, and gives the most blocks that the GPU can hold at once, at most `limit`. The backward pass
// at the usual sizes fills all the shared memory that there is with 4 blocks.
template <class Kernel>
unsigned resident_blocks(Kernel kernel, int bytes, int64_t limit) {
  int device = 0, processors = 1, each = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, ROWS, bytes);
  return unsigned(min(limit, int64_t(processors) * max(each, 1)));
}

}  // namespace

// features [n_levels, n, F] half, F even and n_levels * F at most 64; hidden_weight [width, n_levels * F]; hidden_bias
// [width]; out_weight [n_outputs, width]; out_bias [n_outputs]; out [n, n_outputs].
NB_EXPORT int mlp_half_fwd_f32(const float* hidden_weight, const __half* features, const float* hidden_bias,
                               const float* out_weight, const float* out_bias, float* out, int64_t n, int64_t n_levels,
                               int64_t n_features, int64_t width, int64_t n_outputs, cudaStream_t stream) {
  const Shape shape = shape_of(n, n_levels, n_features, n_outputs);
  if (!fits(shape)) return NB_UNKNOWN_OPTION;
  if (n == 0) return NB_OK;
  const int status = with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    const int bytes = Layout<W>(shape, false).end * int(sizeof(__half));
    const unsigned blocks = resident_blocks(fwd<W>, bytes, (n + ROWS - 1) / ROWS);
    fwd<W><<<blocks, ROWS, bytes, stream>>>(features, hidden_weight, hidden_bias, out_weight, out_bias, out, shape);
  });
  return status ? status : launched();
}

// grad_out [n, n_outputs]; lit [ceil(n / 32)] and largest [1] as lit_rows_f32 finds them; grad_features as features, still
// scaled, written for lit rows only; sums [n_blocks, width * (n_levels * F + 1 + n_outputs) + n_outputs] of zeros: each block's
// gradients over W1, b1 and W2, the rest is left to lit_rows_f32; blocks beyond what the GPU holds at once are not used.
NB_EXPORT int mlp_half_bwd_f32(const float* hidden_weight, const __half* features, const float* hidden_bias,
                               const float* out_weight, const float* grad_out, const uint32_t* lit, const uint32_t* largest,
                               __half* grad_features, float* sums, int64_t n, int64_t n_levels, int64_t n_features,
                               int64_t width, int64_t n_outputs, int64_t n_blocks, cudaStream_t stream) {
  const Shape shape = shape_of(n, n_levels, n_features, n_outputs);
  if (!fits(shape)) return NB_UNKNOWN_OPTION;
  if (n == 0) return NB_OK;
  const int status = with_width(width, [&](auto w) {
    constexpr int W = decltype(w)::value;
    const int bytes = Layout<W>(shape, true).end * int(sizeof(__half));
    const auto kernel = shape.n_inputs <= 32 ? bwd<W, 32> : bwd<W, MAX_INPUTS>;
    const unsigned blocks = resident_blocks(kernel, bytes, min(n_blocks, (n + ROWS - 1) / ROWS));
    kernel<<<blocks, ROWS, bytes, stream>>>(features, hidden_weight, hidden_bias, out_weight, grad_out, lit, largest,
                                            grad_features, sums, shape);
  });
  return status ? status : launched();
}
