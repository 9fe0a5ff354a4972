// Sizes of the network on tensor cores, and how its parts lie in the shared memory of a block.
#pragma once
#include "common.h"

constexpr int ROWS = 128;  // of a block's tile
constexpr int MAX_INPUTS = 64, MAX_OUTPUTS = 8;
constexpr int PAD = 8;         // halves between rows, so that reading a column meets all banks
constexpr int ROW_NUMBER = 4;  // halves that an int64 takes

struct Shape {
  int64_t n;
  int n_levels, n_features, n_inputs, n_outputs, log2_pairs;  // F = 2 << log2_pairs

  NB_HD int padded() const { return (n_inputs + 15) / 16 * 16; }
  NB_HD int stride() const { return padded() + PAD; }  // of rows of inputs in shared memory
};

inline Shape shape_of(int64_t n, int64_t n_levels, int64_t n_features, int64_t n_outputs) {
  const int log2_pairs = n_features == 8 ? 2 : n_features == 4 ? 1 : 0;
  return {n, int(n_levels), int(n_features), int(n_levels * n_features), int(n_outputs), log2_pairs};
}

inline bool fits(const Shape& shape) {
  return shape.n_features == 2 << shape.log2_pairs && shape.n_inputs <= MAX_INPUTS && shape.n_outputs <= MAX_OUTPUTS;
}

// Where the parts begin in a block's shared memory, counted in halves; each at a multiple of 16 bytes.
template <int W>
struct Layout {
  int inputs = 0;     // [ROWS, stride]
  int hidden_weight;  // [W, stride]
  int out_weight;     // forward [MAX_OUTPUTS, W + PAD], backward [W, MAX_OUTPUTS]
  int rows;           // from here on backward alone: [ROWS] numbers of the tile's rows
  int grad_out;       // [ROWS, MAX_OUTPUTS]
  int hidden;         // [ROWS, W + PAD]
  int grad_hidden;    // [ROWS, W + PAD]
  int end;

  NB_HD Layout(const Shape& shape, bool backward) {
    hidden_weight = inputs + ROWS * shape.stride();
    out_weight = hidden_weight + W * shape.stride();
    rows = out_weight + MAX_OUTPUTS * (backward ? W : W + PAD);
    grad_out = rows + (backward ? ROWS * ROW_NUMBER : 0);
    hidden = grad_out + (backward ? ROWS * MAX_OUTPUTS : 0);
    grad_hidden = hidden + (backward ? ROWS * (W + PAD) : 0);
    end = grad_hidden + (backward ? ROWS * (W + PAD) : 0);
  }
};
