// The widths of the hidden layer that the network's kernels are compiled for, on the CPU and on the GPU.
#pragma once
#include <type_traits>

#include "common.h"

// Calls work(std::integral_constant<int, width>).
template <class Work>
inline int with_width(int64_t width, const Work& work) {
  switch (width) {
    case 16: work(std::integral_constant<int, 16>()); return NB_OK;
    case 32: work(std::integral_constant<int, 32>()); return NB_OK;
    case 64: work(std::integral_constant<int, 64>()); return NB_OK;
    case 128: work(std::integral_constant<int, 128>()); return NB_OK;
    default: return NB_UNKNOWN_OPTION;
  }
}
