// Splits work over CPU threads. Chunks are contiguous and depend only on n and n_threads, so results are repeatable.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "common.h"

// Calls work(begin, end) on contiguous ranges that cover [0, n).
template <class Work>
void parallel_for(int64_t n, int n_threads, const Work& work) {
  const int64_t n_chunks = std::max<int64_t>(1, std::min<int64_t>(n_threads, n));
  if (n_chunks == 1) {
    if (n > 0) work(int64_t(0), n);
    return;
  }
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < n_chunks; ++i)
    threads.emplace_back([&work, n, n_chunks, i] { work(n * i / n_chunks, n * (i + 1) / n_chunks); });
  work(int64_t(0), n / n_chunks);
  for (auto& thread : threads) thread.join();
}

// Calls work(task) for every task in [0, n_tasks), each by one thread, the next free thread taking the next task. The
// results are repeatable when no two tasks write to the same place.
template <class Work>
void parallel_tasks(int64_t n_tasks, int n_threads, const Work& work) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min<int64_t>(n_tasks, n_threads), n_threads, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < n_tasks; task = next++) work(task);
  });
}

// Calls work(ray, start, count) for every ray of packed_info [n_rays, 2]; a ray whose samples are not all in [0, n) is left out and reported.
template <class Work>
int for_rays(const int64_t* packed_info, int64_t n_rays, int64_t n, int n_threads, const Work& work) {
  std::atomic<int> status{NB_OK};
  parallel_for(n_rays, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t ray = begin; ray < end; ++ray) {
      const int64_t start = packed_info[2 * ray], count = packed_info[2 * ray + 1];
      if (start < 0 || count < 0 || count > n || start > n - count)
        status = NB_OUT_OF_RANGE;
      else
        work(ray, start, count);
    }
  });
  return status;
}
