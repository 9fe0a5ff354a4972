// CPU rasteriser: one image of a mesh in clip space, and the embedded prior's training views of a coloured mesh.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "export.h"
#include "parallel.h"
#include "raster.h"

namespace {

using raster::ClipVertex;
using raster::Triangle;

constexpr float kFar = std::numeric_limits<float>::infinity();

void scan_faces(const ClipVertex* vertices, const int32_t* faces, int64_t n_faces, int64_t width, int64_t height,
                float* depths, int32_t* ids) {
  Triangle triangle;
  for (int64_t f = 0; f < n_faces; ++f) {
    const ClipVertex corners[3] = {vertices[faces[3 * f]], vertices[faces[3 * f + 1]], vertices[faces[3 * f + 2]]};
    if (raster::set_up(corners, width, height, triangle))
      raster::scan(triangle, int32_t(f), width, height, depths, ids);
  }
}

// ---- training views -------------------------------------------------------------------------------------------------

constexpr int kChannels = 8;
constexpr double kNear = 0.05, kFarPlane = 100.0;

struct FaceLook {
  double normal[3];   // of either sign
  double offset;      // normal . corner 0: the camera c is on the normal's side when normal . c >= offset
  float channels[2][kChannels];  // shaded for the normal as it is, and turned round
};

// World light of the prior's renders: 0.55 + 0.45 (0.5 + 0.5 n . L), L = normalize(0.3, -0.5, 0.8).
double prior_shade(const double normal[3], double sign) {
  const double inv_length = 1.0 / std::sqrt(0.3 * 0.3 + 0.5 * 0.5 + 0.8 * 0.8);
  const double cosine = (0.3 * normal[0] - 0.5 * normal[1] + 0.8 * normal[2]) * inv_length * sign;
  return 0.55 + 0.45 * (0.5 + 0.5 * cosine);
}

double luminance(const uint8_t* rgb) { return (0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]) / 255.0; }

// Sets normal and offset; returns twice the area.
double set_plane(const float* vertices, const int32_t* face, FaceLook& look) {
  const float *a = vertices + 3 * int64_t(face[0]), *b = vertices + 3 * int64_t(face[1]);
  const float* c = vertices + 3 * int64_t(face[2]);
  double u[3], v[3];
  for (int i = 0; i < 3; ++i) u[i] = double(b[i]) - a[i], v[i] = double(c[i]) - a[i];
  double* const n = look.normal;
  for (int i = 0; i < 3; ++i) n[i] = u[(i + 1) % 3] * v[(i + 2) % 3] - u[(i + 2) % 3] * v[(i + 1) % 3];
  const double length = std::sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]);
  for (int i = 0; i < 3; ++i) n[i] = length > 0.0 ? n[i] / length : 0.0;
  look.offset = n[0] * a[0] + n[1] * a[1] + n[2] * a[2];
  return length;
}

// Least luminance that at most three tenths of the area exceed, of (luminance, area) pairs, seen or not; 0 for none. The
// brightest face, or a bright pattern, would darken every tint.
double bright_luminance(std::vector<std::pair<double, double>> pairs) {
  std::sort(pairs.begin(), pairs.end());
  double total = 0.0, above = 0.0;
  for (const auto& pair : pairs) total += pair.second;
  for (size_t i = pairs.size(); i-- > 0;) {
    above += pairs[i].second;
    if (above > 0.3 * total || i == 0) return pairs[i].first;
  }
  return 0.0;
}

void set_channels(const uint8_t* rgb, bool tintable, double bright, FaceLook& look) {
  const double relative = bright > 0.0 ? std::min(1.0, luminance(rgb) / bright) : 1.0;
  for (int side = 0; side < 2; ++side) {
    const double shade = prior_shade(look.normal, side == 0 ? 1.0 : -1.0);
    float* const out = look.channels[side];
    std::fill(out, out + kChannels, 0.0f);
    for (int i = 0; i < 3; ++i) out[(tintable ? 3 : 0) + i] = float(rgb[i] * shade);
    out[6] = tintable ? float(255.0 * shade * relative) : 0.0f;
    out[7] = 255.0f;
  }
}

std::vector<FaceLook> face_looks(const float* vertices, const int32_t* faces, int64_t n_faces, const uint8_t* colors,
                                 const uint8_t* tintable) {
  std::vector<FaceLook> looks(n_faces);
  std::vector<std::pair<double, double>> parts[256];  // luminance, area of the faces of each tintable part
  for (int64_t f = 0; f < n_faces; ++f) {
    const double area = set_plane(vertices, faces + 3 * f, looks[f]);
    if (tintable[f]) parts[tintable[f]].emplace_back(luminance(colors + 3 * f), area);
  }
  double bright[256];
  for (int part = 0; part < 256; ++part) bright[part] = bright_luminance(std::move(parts[part]));
  for (int64_t f = 0; f < n_faces; ++f) set_channels(colors + 3 * f, tintable[f] != 0, bright[tintable[f]], looks[f]);
  return looks;
}

// Clip coordinates of world points for an OpenGL camera (looks along -z) with a square image.
void to_clip(const float* vertices, int64_t n, const float* c2w, float fovy_rad, ClipVertex* out) {
  const double focal = 1.0 / std::tan(0.5 * fovy_rad);
  const double z_scale = (kFarPlane + kNear) / (kFarPlane - kNear);
  const double z_shift = -2.0 * kFarPlane * kNear / (kFarPlane - kNear);
  for (int64_t i = 0; i < n; ++i) {
    double d[3], p[3];
    for (int k = 0; k < 3; ++k) d[k] = double(vertices[3 * i + k]) - c2w[4 * k + 3];
    for (int k = 0; k < 3; ++k) p[k] = c2w[k] * d[0] + c2w[4 + k] * d[1] + c2w[8 + k] * d[2];
    out[i] = {float(focal * p[0]), float(focal * p[1]), float(-p[2] * z_scale + z_shift), float(-p[2])};
  }
}

// Box-filters the samples to bytes [8, size, size]; a pixel no sample of which is covered stays 0.
void resolve(const std::vector<int32_t>& ids, const std::vector<FaceLook>& looks, const uint8_t* side, int64_t size,
             int64_t supersample, uint8_t* out) {
  const int64_t width = size * supersample;
  const float scale = 1.0f / float(supersample * supersample);
  for (int64_t y = 0; y < size; ++y)
    for (int64_t x = 0; x < size; ++x) {
      float sum[kChannels] = {};
      for (int64_t s = 0; s < supersample * supersample; ++s) {
        const int32_t id = ids[(y * supersample + s / supersample) * width + x * supersample + s % supersample];
        if (id < 0) continue;
        const float* const channels = looks[id].channels[side[id]];
        for (int c = 0; c < kChannels; ++c) sum[c] += channels[c];
      }
      for (int c = 0; c < kChannels; ++c)
        out[(c * size + y) * size + x] = uint8_t(std::min(255.0f, sum[c] * scale + 0.5f));
    }
}

}  // namespace

// positions [v, 4] clip space, faces [f, 3] with indices in range -> face_index [h, w] (-1 where nothing),
// barycentrics [h, w, 3], depth [h, w] (z/w, +inf where nothing).
NB_EXPORT int rasterize_f32(const float* positions, const int32_t* faces, int64_t n_faces, int64_t height,
                             int64_t width, int32_t* face_index, float* barycentrics, float* depth,
                             int64_t n_threads) {
  const auto* vertices = reinterpret_cast<const ClipVertex*>(positions);
  std::fill(face_index, face_index + height * width, -1);
  std::fill(depth, depth + height * width, kFar);
  scan_faces(vertices, faces, n_faces, width, height, depth, face_index);
  parallel_for(height, int(n_threads), [&](int64_t begin, int64_t end) {
    Triangle triangle;
    int32_t current = -1;
    for (int64_t i = begin * width; i < end * width; ++i) {
      const int32_t f = face_index[i];
      std::fill(barycentrics + 3 * i, barycentrics + 3 * i + 3, 0.0f);
      if (f < 0) continue;
      if (f != current) {
        const ClipVertex corners[3] = {vertices[faces[3 * f]], vertices[faces[3 * f + 1]], vertices[faces[3 * f + 2]]};
        raster::set_up(corners, width, height, triangle);
        current = f;
      }
      raster::barycentrics(triangle, i % width, i / width, width, height, barycentrics + 3 * i);
    }
  });
  return 0;
}

// vertices [v, 3] world, faces [f, 3] with indices in range, face_colors [f, 3], face_tintable [f] (the part's number, 0:
// none), c2w [n, 4, 4], fovy_rad [n] -> out [n, 8, size, size], premultiplied by coverage:
// 0-2 shaded rgb of the other faces, 3-5 shaded rgb of the tintable ones, 6 their shade x luminance relative to the bright end
// of their part, 7 alpha.
NB_EXPORT int render_views_f32(const float* vertices, int64_t n_vertices, const int32_t* faces, int64_t n_faces,
                                const uint8_t* face_colors, const uint8_t* face_tintable, const float* c2w,
                                const float* fovy_rad, int64_t n_views, int64_t size, int64_t supersample,
                                uint8_t* out, int64_t n_threads) {
  const std::vector<FaceLook> looks = face_looks(vertices, faces, n_faces, face_colors, face_tintable);
  const int64_t width = size * supersample;
  parallel_for(n_views, int(n_threads), [&](int64_t begin, int64_t end) {
    std::vector<ClipVertex> clip(n_vertices);
    std::vector<uint8_t> side(n_faces);
    std::vector<float> depths(width * width);
    std::vector<int32_t> ids(width * width);
    for (int64_t i = begin; i < end; ++i) {
      const float* const camera = c2w + 16 * i;
      std::fill(depths.begin(), depths.end(), kFar);
      std::fill(ids.begin(), ids.end(), -1);
      to_clip(vertices, n_vertices, camera, fovy_rad[i], clip.data());
      for (int64_t f = 0; f < n_faces; ++f) {
        const double* const n = looks[f].normal;
        side[f] = n[0] * camera[3] + n[1] * camera[7] + n[2] * camera[11] < looks[f].offset;
      }
      scan_faces(clip.data(), faces, n_faces, width, width, depths.data(), ids.data());
      resolve(ids, looks, side.data(), size, supersample, out + i * kChannels * size * size);
    }
  });
  return 0;
}
