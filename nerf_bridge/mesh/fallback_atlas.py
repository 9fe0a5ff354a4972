"""A plain atlas that always works: triangles two by two in squares, whose sizes follow the triangles' areas."""

from __future__ import annotations

import math

import numpy as np

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_areas

GUTTER = 1.0
"""Texels between a triangle and the edge of its square, so that two triangles lie two texels apart."""
LARGEST_SHARE = 6
"""At least so many of the largest squares fit along the texture's side: what is left empty is then a third at most."""
SMALLEST = 0.7
"""Side of the smallest square in terms of the median one; smaller triangles get more texels than their share."""


def grid_atlas(mesh: Mesh, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay each face out alone, as a right-angled triangle with its largest angle at the right angle.

    Faces of like area share a square. The squares' sides are u 2^k, k as the area wants; placed from the largest to
    the smallest along a Z-order curve, they fill a grid of the largest ones without a gap.

    Args:
        mesh: at least one face; any shape, degenerate faces too.
        size: texels along a side of the texture, for the gutters. Where squares are too small for whole gutters these
            shrink with them.

    Returns:
        source [3 f] vertex of the mesh for each new one, faces [f, 3] in the mesh's order, uv [3 f, 2] in 0..1.
    """
    areas = face_areas(mesh)
    order = np.argsort(-areas, kind="stable")
    level = _levels(areas[order])
    corner, n_across = _place(level)
    side = 2.0**level / n_across
    gutter = np.minimum(1.0, 0.15 * size * side) * GUTTER / size
    points = np.empty((len(order), 3, 2))
    for second in (0, 1):
        faces = order[second::2]
        squares = slice(0, len(faces))
        points[faces] = corner[squares, None] / n_across + _triangles(side[squares], gutter[squares], second == 1)
    uv = np.empty_like(points)
    np.put_along_axis(uv, _widest_corner_first(mesh)[..., None], points, axis=1)
    return mesh.faces.reshape(-1), np.arange(3 * len(order)).reshape(-1, 3), uv.reshape(-1, 2).clip(0.0, 1.0)


def _levels(areas: np.ndarray) -> np.ndarray:
    """[ceil(f / 2)] levels, not rising, of the squares of faces with falling `areas` [f]."""
    first = areas[::2]
    pairs = np.sqrt(first + np.pad(areas[1::2], (0, len(first) - len(areas[1::2]))))
    wanted = pairs / max(float(np.median(pairs)) * SMALLEST, 1e-300)
    level = np.round(np.log2(np.clip(wanted, 1.0, 2.0**20))).astype(np.int64)
    while level[0] > 0 and (4**level).sum() < LARGEST_SHARE**2 * 4 ** level[0]:
        level = np.minimum(level, level[0] - 1)
    return level - level[-1]


def _place(level: np.ndarray) -> tuple[np.ndarray, int]:
    """Lowest corners [n, 2] of squares of falling `level` in units of the smallest, and how many units are across."""
    area = 4**level
    start = np.cumsum(area) - area
    block = 4 ** level[0]
    n_blocks = math.ceil(math.sqrt(math.ceil(area.sum() / block)))
    number, within = start // block, start % block
    corner = np.stack([number % n_blocks, number // n_blocks], axis=1) << level[0]
    for bit in range(int(level[0])):
        corner[:, 0] |= (within >> (2 * bit) & 1) << bit
        corner[:, 1] |= (within >> (2 * bit + 1) & 1) << bit
    return corner, n_blocks << int(level[0])


def _triangles(side: np.ndarray, gutter: np.ndarray, upper: bool) -> np.ndarray:
    """[n, 3, 2] the lower or the upper triangle of squares of these sides, counter-clockwise, right angle first."""
    low, high = gutter, side - gutter
    short = gutter * math.sqrt(2.0)  # keeps the two long sides two gutters apart
    if upper:
        points = [(high, high), (low + short, high), (high, low + short)]
    else:
        points = [(low, low), (high - short, low), (low, high - short)]
    return np.stack([np.stack(point, axis=-1) for point in points], axis=1)


def _widest_corner_first(mesh: Mesh) -> np.ndarray:
    """[f, 3] corners 0, 1, 2 turned so that the one opposite to the longest side comes first."""
    corners = mesh.vertices[mesh.faces]
    opposite = np.linalg.norm(np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1), axis=2)
    return (np.arange(3) + opposite.argmax(axis=1)[:, None]) % 3
