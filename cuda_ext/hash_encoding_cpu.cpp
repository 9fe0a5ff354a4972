// Hash encoding on the CPU: points in blocks, so that a level's entries stay in the cache while a block passes through it.
#include <algorithm>

#include "export.h"
#include "hash_encoding.h"
#include "parallel.h"

namespace {

constexpr int64_t BLOCK = 512;

template <class T, int F>
void fwd(const T* points, const T* tangents, const T* table, const Level* levels, T* out, int64_t n, int64_t n_levels,
         int n_threads) {
  parallel_for(n, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t from = begin; from < end; from += BLOCK)
      for (int64_t l = 0; l < n_levels; ++l) {
        const Level level = levels[l];
        const T* rows = table + level.offset * F;
        for (int64_t i = from; i < std::min(from + BLOCK, end); ++i)
          encode_point<T, F>(points + 3 * i, tangents ? tangents + 3 * i : nullptr, level, rows, out + (i * n_levels + l) * F);
      }
  });
}

// Each level is summed by one thread over the points in their order, so the result is the same for any thread count.
template <class T, int F>
void bwd_table(const T* points, const T* tangents, const T* grad_out, const Level* levels, T* grad_table, int64_t n,
               int64_t n_levels, int n_threads) {
  parallel_tasks(n_levels, n_threads, [&](int64_t task) {
    const int64_t l = n_levels - 1 - task;  // the finest levels take longest: first
    const Level level = levels[l];
    T* rows = grad_table + level.offset * F;
    for (int64_t i = 0; i < n; ++i) {
      const Cell<T> cell = locate(points + 3 * i, level.resolution);
      const Row<T, F> grad = load_row<T, F>(grad_out + (i * n_levels + l) * F);
      uint32_t entry[8];
      T weight[8];
      corner_entries(cell, level, entry);
      corner_weights(cell, tangents ? tangents + 3 * i : nullptr, T(level.resolution), weight);
      for (int c = 0; c < 8; ++c) {
        T* at = rows + int64_t(entry[c]) * F;
        Row<T, F> row = load_row<T, F>(at);
        row.add(weight[c], grad);
        row.store(at);
      }
    }
  });
}

template <class T, int F>
void bwd_points(const T* points, const T* tangents, const T* table, const T* grad_out, const Level* levels, T* grad_points,
                int64_t n, int64_t n_levels, int n_threads) {
  parallel_for(n, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T grad[3] = {};
      for (int64_t l = 0; l < n_levels; ++l)
        encode_point_bwd_point<T, F>(points + 3 * i, tangents ? tangents + 3 * i : nullptr, levels[l],
                                     table + levels[l].offset * F, grad_out + (i * n_levels + l) * F, grad);
      for (int j = 0; j < 3; ++j) grad_points[3 * i + j] = grad[j];
    }
  });
}

}  // namespace

// points, tangents (or null), grad_points [n, 3]; table, grad_table [n_entries, F]; levels [n_levels, 4];
// out, grad_out [n, n_levels * F]. grad_table comes in as zeros.
#define NB_HASH_ENCODING(T, SUFFIX)                                                                                          \
  NB_EXPORT int hash_encode_fwd_##SUFFIX(const T* points, const T* tangents, const T* table, const Level* levels, T* out,    \
                                         int64_t n, int64_t n_levels, int64_t n_features, int64_t n_threads) {               \
    return with_features(n_features, [&](auto f) {                                                                           \
      fwd<T, decltype(f)::value>(points, tangents, table, levels, out, n, n_levels, int(n_threads));                         \
    });                                                                                                                      \
  }                                                                                                                          \
  NB_EXPORT int hash_encode_bwd_table_##SUFFIX(const T* points, const T* tangents, const T* grad_out, const Level* levels,   \
                                               T* grad_table, int64_t n, int64_t n_levels, int64_t n_features,               \
                                               int64_t n_threads) {                                                          \
    return with_features(n_features, [&](auto f) {                                                                           \
      bwd_table<T, decltype(f)::value>(points, tangents, grad_out, levels, grad_table, n, n_levels, int(n_threads));         \
    });                                                                                                                      \
  }                                                                                                                          \
  NB_EXPORT int hash_encode_bwd_points_##SUFFIX(const T* points, const T* tangents, const T* table, const T* grad_out,       \
                                                const Level* levels, T* grad_points, int64_t n, int64_t n_levels,            \
                                                int64_t n_features, int64_t n_threads) {                                     \
    return with_features(n_features, [&](auto f) {                                                                           \
      bwd_points<T, decltype(f)::value>(points, tangents, table, grad_out, levels, grad_points, n, n_levels, int(n_threads)); \
    });                                                                                                                      \
  }

NB_HASH_ENCODING(float, f32)
NB_HASH_ENCODING(double, f64)
