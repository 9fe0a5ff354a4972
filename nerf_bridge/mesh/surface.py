"""Density on a grid, and its surface by marching cubes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

import mcubes
import numpy as np
import torch
from torch import Tensor

from nerf_bridge.mesh.data import DensityGrid, Mesh

logger = logging.getLogger(__name__)

CHUNK = 2**18
"""Most points that the field sees at once: what bounds the memory of its activations."""


class Field(Protocol):
    """What the exporter needs of a field over the box [-1, 1]^3."""

    def density(self, points: Tensor) -> Tensor:
        """Points [n, 3] -> sigma [n]."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points [n, 3] -> (sigma [n], albedo [n, 3] in 0..1)."""


def inside_occupied(points: Tensor, occupied: Tensor) -> Tensor:
    """[n] bool: the cell of `occupied` [r, r, r] that holds each of the `points` [n, 3] is occupied."""
    resolution = occupied.shape[0]
    x, y, z = ((points + 1.0) * (resolution / 2)).long().clamp(0, resolution - 1).unbind(-1)
    return occupied[x, y, z]


def density_at(field: Field, occupied: Tensor, points: Tensor) -> Tensor:
    """Density as the renderer sees it: zero outside the box, in empty cells, and where the field is not finite.

    Args:
        field: the field.
        occupied: [r, r, r] bool over the box.
        points: [n, 3].

    Returns:
        [n] float32, at least 0.
    """
    sigma = field.density(points.clamp(-1.0, 1.0)).float()
    sigma = torch.where(torch.isfinite(sigma), sigma, 0.0).clamp_min(0.0)
    seen = inside_occupied(points, occupied) & (points.abs() <= 1.0).all(dim=-1)
    return torch.where(seen, sigma, 0.0)


@torch.no_grad()
def sample_density(field: Field, occupied: Tensor, resolution: int) -> DensityGrid:
    """Density at the centres of a grid's cells, asked only where `occupied` holds.

    Args:
        field: the field; it is asked for at most CHUNK points at once.
        occupied: [r, r, r] bool over the box, on the field's device.
        resolution: cells along a side, n.

    Returns:
        The grid [n, n, n] on the CPU; samples that are not finite count as 0 and are counted.
    """
    sigma = np.zeros(resolution**3, dtype=np.float32)
    non_finite = 0
    for flat in _occupied_samples(occupied, resolution):
        points = (_unravel(flat, resolution) + 0.5) * (2.0 / resolution) - 1.0
        values = field.density(points).float()
        bad = ~torch.isfinite(values)
        non_finite += int(bad.sum())
        sigma[flat.cpu().numpy()] = torch.where(bad, 0.0, values).clamp_min(0.0).cpu().numpy()
    if non_finite:
        logger.warning("the field's density is not finite at %d of the grid's samples; they count as empty", non_finite)
    return DensityGrid(sigma.reshape(resolution, resolution, resolution), non_finite)


def _occupied_samples(occupied: Tensor, resolution: int) -> Iterator[Tensor]:
    """Flat indices [at most CHUNK] of the grid's samples in occupied cells, in rising order."""
    centres = (torch.arange(resolution, device=occupied.device) + 0.5) * (2.0 / resolution) - 1.0
    cells = ((centres + 1.0) * (occupied.shape[0] / 2)).long()
    slices = max(1, CHUNK // resolution**2)
    for start in range(0, resolution, slices):
        slab = occupied[cells[start : start + slices]][:, cells][:, :, cells]
        yield from (slab.flatten().nonzero().squeeze(-1) + start * resolution**2).split(CHUNK)


def _unravel(flat: Tensor, resolution: int) -> Tensor:
    """Flat indices [n] -> indices [n, 3] of the samples in x, y, z."""
    return torch.stack([flat // resolution**2, flat // resolution % resolution, flat % resolution], dim=-1)


def marching_cubes(grid: DensityGrid, threshold: float) -> Mesh:
    """The surface where the density is `threshold` (Lorensen and Cline 1987, PyMCubes), closed at the box's walls.

    The grid is padded with zeros, so a body that touches the wall is closed at most half a cell outside of it.

    Returns:
        Mesh in world units, facing outward; empty when no sample is above the threshold.
    """
    if not (grid.sigma > threshold).any():
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    vertices, faces = mcubes.marching_cubes(np.pad(grid.sigma, 1), threshold)
    return Mesh((vertices - 0.5) * grid.cell - 1.0, faces.astype(np.int64))


@torch.no_grad()
def refine_on_edges(mesh: Mesh, grid: DensityGrid, field: Field, occupied: Tensor, threshold: float) -> Mesh:
    """Move each vertex along its grid edge to where the field itself crosses the threshold, by bisection.

    Marching cubes puts it where a straight line between the two samples would; a trained field rises far more
    steeply, so that the line is off by up to half a cell.

    Args:
        mesh: fresh from `marching_cubes` of the same grid and threshold.

    Returns:
        The mesh with moved vertices. They keep 2 % of an edge away from its ends, so that none coincide.
    """
    at = (mesh.vertices + 1.0) / grid.cell - 0.5
    rows, axis = np.arange(len(at)), np.abs(at - np.round(at)).argmax(axis=1)
    low = np.round(at)
    low[rows, axis] = np.floor(at[rows, axis])
    high = low.copy()
    high[rows, axis] += 1
    low_inside, high_inside = (_sigma_at_node(grid, node) > threshold for node in (low, high))
    outside, inside = np.where(low_inside[:, None], high, low), np.where(low_inside[:, None], low, high)
    start, end = (torch.as_tensor((node + 0.5) * grid.cell - 1.0) for node in (outside, inside))
    moved = _bisect(field, occupied, threshold, start, end).numpy()
    return Mesh(np.where((low_inside != high_inside)[:, None], moved, mesh.vertices), mesh.faces)


def _bisect(field: Field, occupied: Tensor, threshold: float, outside: Tensor, inside: Tensor) -> Tensor:
    """[n, 3] points between `outside` and `inside` [n, 3] where the density crosses the threshold, to 3 %."""
    near, far = (torch.full((len(outside), 1), end, dtype=outside.dtype) for end in (0.02, 0.98))
    for _ in range(5):
        middle = 0.5 * (near + far)
        points = torch.lerp(outside, inside, middle).float().to(occupied.device)
        dense = torch.cat([density_at(field, occupied, part) > threshold for part in points.split(CHUNK)]).cpu()[
            :, None
        ]
        near, far = torch.where(dense, near, middle), torch.where(dense, middle, far)
    return torch.lerp(outside, inside, 0.5 * (near + far))


def _sigma_at_node(grid: DensityGrid, index: np.ndarray) -> np.ndarray:
    """[n] density at the samples `index` [n, 3]; zero in the padding."""
    whole = index.astype(np.int64)
    clamped = whole.clip(0, grid.sigma.shape[0] - 1)
    return np.where((whole == clamped).all(axis=1), grid.sigma[tuple(clamped.T)], 0.0)
