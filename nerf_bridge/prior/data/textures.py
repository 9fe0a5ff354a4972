"""Colours of textured surfaces: a filtered texture look-up and a point cloud that carries it through decimation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

PIXEL = 0.02  # world units; about 0.6 pixels of a 64 x 64 render
NORMAL_WEIGHT = 0.05  # world units that a unit difference of normals counts for, so that two sides stay apart
MAX_POINTS = 50_000


@dataclass(frozen=True)
class ColourCloud:
    """Surface samples with colours: a tree over (position, 0.05·normal) [n, 6] and rgba [n, 4] in 0..1."""

    tree: cKDTree
    rgba: np.ndarray

    def lookup(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Return the colour [..., 4] of the nearest sample, for points and unit normals [..., 3]."""
        query = np.concatenate([points, NORMAL_WEIGHT * normals], axis=-1)
        return self.rgba[self.tree.query(query)[1]]


def triangle_normals(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return unit normals [f, 3] (zero where degenerate) and areas [f] of triangles [f, 3, 3]."""
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    return cross / np.maximum(length, 1e-20)[:, None], 0.5 * length


def build_colour_cloud(
    corners: np.ndarray, uvs: np.ndarray, texture: np.ndarray, rng: np.random.Generator
) -> ColourCloud:
    """Sample a textured surface densely (at least once a face, about every 0.012 units).

    Args:
        corners: [f, 3, 3] world positions.
        uvs: [f, 3, 2] texture coordinates, repeating, v up.
        texture: [h, w, 4] uint8.
        rng: source of the sample positions.

    Returns:
        The cloud.
    """
    normals, areas = triangle_normals(corners)
    spacing = max(0.012, float(np.sqrt(areas.sum() / MAX_POINTS)))
    counts = 1 + rng.poisson(areas / spacing**2)
    face = np.repeat(np.arange(len(corners)), counts)
    weights = rng.dirichlet((1.0, 1.0, 1.0), size=len(face))
    points = (weights[:, :, None] * corners[face]).sum(axis=1)
    uv = (weights[:, :, None] * uvs[face]).sum(axis=1)
    levels = _mip_levels(uvs, areas, texture)[face]
    rgba = _sample_mips(_mip_chain(texture), levels, uv)
    tree = cKDTree(np.concatenate([points, NORMAL_WEIGHT * normals[face]], axis=1))
    return ColourCloud(tree=tree, rgba=rgba)


def _mip_levels(uvs: np.ndarray, areas: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """The mip level [f] at which a texel covers about PIXEL of the surface."""
    edge_a, edge_b = uvs[:, 1] - uvs[:, 0], uvs[:, 2] - uvs[:, 0]
    uv_areas = 0.5 * np.abs(edge_a[:, 0] * edge_b[:, 1] - edge_a[:, 1] * edge_b[:, 0])
    texels = uv_areas * texture.shape[0] * texture.shape[1]
    texels_per_pixel = texels / np.maximum(areas, 1e-12) * PIXEL**2
    return np.clip(np.round(0.5 * np.log2(np.maximum(texels_per_pixel, 1.0))), 0, 12).astype(np.int64)


def _mip_chain(texture: np.ndarray) -> list[np.ndarray]:
    """Box-filtered halvings [h, w, 4] in 0..1, down to one texel; colours weighted by alpha."""
    level = texture.astype(np.float32) / 255.0
    level[..., :3] *= level[..., 3:]
    chain = [level]
    while max(level.shape[:2]) > 1:
        height, width = level.shape[:2]
        odd_rows, odd_columns = (n % 2 if n > 1 else 0 for n in (height, width))
        level = np.pad(level, ((0, odd_rows), (0, odd_columns), (0, 0)), "edge")
        rows = level[0::2] + level[1::2] if height > 1 else 2.0 * level
        level = 0.25 * (rows[:, 0::2] + rows[:, 1::2]) if width > 1 else 0.5 * rows
        chain.append(level)
    return [np.concatenate([m[..., :3] / np.maximum(m[..., 3:], 1e-4), m[..., 3:]], axis=-1) for m in chain]


def _sample_mips(chain: list[np.ndarray], levels: np.ndarray, uv: np.ndarray) -> np.ndarray:
    rgba = np.zeros((len(uv), 4), dtype=np.float32)
    for level in np.unique(levels):
        image = chain[min(int(level), len(chain) - 1)]
        chosen = levels == level
        fraction = uv[chosen] % 1.0
        column = np.minimum((fraction[:, 0] * image.shape[1]).astype(np.int64), image.shape[1] - 1)
        row = np.minimum(((1.0 - fraction[:, 1]) * image.shape[0]).astype(np.int64), image.shape[0] - 1)
        rgba[chosen] = image[row, column]
    return rgba
