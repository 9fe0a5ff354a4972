"""Solid insides: guidance only ever sees the surface, so behind it a field may be hollow and its shell have gaps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from nerf_bridge.mesh.data import DensityGrid

HALF_SEEN = math.log(2.0)  # optical depth that lets half of the light through
CAP = 4.0  # filled samples are at most this many times as dense as the surface
# Where the light goes: from the horizon in steps of 45 degrees, from half-way up, and straight down. By default the
# training cameras hardly see an object from below, so that hollows open only there are filled.
DIRECTIONS = tuple(
    (x, y, z) for x, y, z in itertools.product((-1, 0, 1), repeat=3) if z <= 0 and (x, y, z) != (0, 0, 0)
)


def fill_unseen(grid: DensityGrid, threshold: float) -> DensityGrid:
    """Make solid what cannot be seen: samples that less than half of the light reaches, from whichever direction.

    With tau the least optical depth over DIRECTIONS, the new density is max(sigma, threshold * tau / ln 2), so that its
    surface at `threshold` is the field's own where that is closed, and where the light is down to half elsewhere.

    Args:
        grid: density [n, n, n].
        threshold: density of the surface.

    Returns:
        A grid of the same shape, nowhere less dense.
    """
    least = np.full(grid.sigma.shape, np.inf, dtype=np.float32)
    for direction in DIRECTIONS:
        np.minimum(least, optical_depth(grid.sigma, grid.cell, direction), out=least)
    filled = threshold * np.minimum(least / HALF_SEEN, CAP)
    return replace(grid, sigma=np.maximum(grid.sigma, filled.astype(grid.sigma.dtype)))


def optical_depth(sigma: np.ndarray, cell: float, direction: tuple[int, int, int]) -> np.ndarray:
    """Integral of the density from the box's wall to each sample, for parallel light.

    Args:
        sigma: [n, n, n], indexed x, y, z.
        cell: distance between neighbouring samples.
        direction: where the light goes, each of x, y, z in -1, 0, 1, not all 0.

    Returns:
        [n, n, n] float32, by the trapezoidal rule along the samples that the light passes.
    """
    axis = next(i for i in range(3) if direction[i])
    half = 0.5 * cell * math.sqrt(sum(d * d for d in direction)) * np.moveaxis(sigma, axis, 0).astype(np.float32)
    across = [direction[i] for i in range(3) if i != axis]
    depth = np.empty_like(half)
    order = range(len(half)) if direction[axis] > 0 else range(len(half) - 1, -1, -1)
    arriving = np.zeros_like(half[0])
    for k in order:
        depth[k] = arriving + half[k]
        arriving = _shifted(depth[k] + half[k], across[0], across[1])
    return np.moveaxis(depth, 0, axis)


def _shifted(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """`plane` [n, m] moved by -1, 0 or 1 along both sides, zeros coming in."""
    moved = np.zeros_like(plane)
    n, m = plane.shape
    moved[max(rows, 0) : n + min(rows, 0), max(columns, 0) : m + min(columns, 0)] = plane[
        max(-rows, 0) : n + min(-rows, 0), max(-columns, 0) : m + min(-columns, 0)
    ]
    return moved
