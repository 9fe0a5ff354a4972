// The ray through the centre of a pixel of a pinhole camera (OpenGL: x right, y up, looking along -z).
#pragma once
#include "common.h"

// Writes origin [3] and unit direction [3] of pixel (row, column) of a picture height x width; c2w [4, 4] by rows. Every
// operation is rounded by itself, in the order of the torch twin.
NB_HD void pixel_ray(const float* c2w, float fovy, int64_t row, int64_t column, int64_t height, int64_t width, float* origin,
                     float* direction) {
  const float half_height = 0.5f * float(height);
  const float tan_half = std::tan(0.5f * fovy) / half_height;
  const float x = (float(column) + (0.5f - 0.5f * float(width))) * tan_half;
  const float y = ((half_height - 0.5f) - float(row)) * tan_half;
  float d[3], squares = 0.0f;
  for (int j = 0; j < 3; ++j) {
    d[j] = (x * c2w[4 * j] + y * c2w[4 * j + 1]) - c2w[4 * j + 2];
    squares += d[j] * d[j];
  }
  const float length = sqrt(squares), divisor = length > 1e-12f ? length : 1e-12f;
  for (int j = 0; j < 3; ++j) {
    origin[j] = c2w[4 * j + 3];
    direction[j] = d[j] / divisor;
  }
}
