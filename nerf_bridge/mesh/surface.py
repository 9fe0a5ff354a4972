"""Density on a grid, and its surface by marching cubes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import mcubes
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nerf_bridge.mesh.data import DensityGrid, Mesh
from nerf_bridge.mesh.geometry import group_rows

logger = logging.getLogger(__name__)

CHUNK = 2**18
"""Most points that the field sees at once: what bounds the memory of its activations."""
SLAB = 2**23
"""Samples that marching cubes sees at once: what bounds the memory of their float32 copy."""
DENSEST = 6e4
"""Densities are cut off here, so that they fit float16: the thinnest cell (1 / 256) is opaque long before."""
MOST_REPAIRS = 2**20
"""More samples than this that are not finite are no holes in a surface: they count as empty."""


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


@torch.no_grad()
def density_at(field: Field, occupied: Tensor, points: Tensor) -> Tensor:
    """Density as the renderer sees it: zero outside the box, in empty cells, and where the field is not finite.

    Args:
        field: the field; it is asked for at most CHUNK points at once.
        occupied: [r, r, r] bool over the box.
        points: [n, 3] float32, on the device of `occupied`.

    Returns:
        [n] float32, at least 0.
    """
    parts = []
    for part in points.split(CHUNK):
        sigma = field.density(part.clamp(-1.0, 1.0)).float()
        sigma = torch.where(torch.isfinite(sigma), sigma, 0.0).clamp_min(0.0)
        seen = inside_occupied(part, occupied) & (part.abs() <= 1.0).all(dim=-1)
        parts.append(torch.where(seen, sigma, 0.0))
    return torch.cat(parts)


@torch.no_grad()
def sample_density(
    field: Field, occupied: Tensor, resolution: int, on_progress: Callable[[float], None] | None = None
) -> DensityGrid:
    """Density at the centres of a grid's cells, asked only where `occupied` holds, kept in the box around that.

    Memory: two bytes a sample of that box (256 MiB at 512^3 when it is the whole box) and the field's CHUNK.

    Args:
        field: the field; it is asked for at most CHUNK points at once.
        occupied: [r, r, r] bool over the box, on the field's device.
        resolution: cells along a side, n.
        on_progress: called with the fraction done.

    Returns:
        The grid, on the field's device. Samples that are not finite are counted; those of small holes get the mean of
        the neighbours around them, others count as 0.
    """
    cells = _cell_of_sample(occupied, resolution)
    low, high = _kept_range(occupied, cells)
    sigma = torch.zeros([int(b - a) for a, b in zip(low, high, strict=True)], dtype=torch.float16, device=cells.device)
    bad = 0
    for index in _occupied_samples(occupied, [cells[a:b] for a, b in zip(low, high, strict=True)]):
        points = (index + torch.tensor(low, device=index.device) + 0.5) * (2.0 / resolution) - 1.0
        values = field.density(points).float()
        finite = torch.isfinite(values)
        bad += int((~finite).sum())
        sigma[tuple(index.T)] = torch.where(finite, values.clamp(0.0, DENSEST), torch.nan).half()
        if on_progress is not None:
            on_progress((int(index[-1, 0]) + 1) / len(sigma))
    if bad:
        told = "the field's density is not finite at %d of the grid's samples: small holes are closed, others are empty"
        logger.warning(told, bad)
        _repair(sigma)
    return DensityGrid(sigma, low, resolution, bad)


def _cell_of_sample(occupied: Tensor, resolution: int) -> Tensor:
    """[n] which cell of `occupied`, along one side, holds each sample."""
    centres = (torch.arange(resolution, device=occupied.device) + 0.5) * (2.0 / resolution) - 1.0
    return ((centres + 1.0) * (occupied.shape[0] / 2)).long()


def _kept_range(occupied: Tensor, cells: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First sample in an occupied cell, and one past the last, along x, y and z; all 0 when there is none."""
    ranges = []
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        held = occupied.any(dim=others[1]).any(dim=others[0])[cells].nonzero()
        ranges.append((int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0))
    (x0, x1), (y0, y1), (z0, z1) = ranges
    return (x0, y0, z0), (x1, y1, z1)


def _occupied_samples(occupied: Tensor, cells: list[Tensor]) -> Iterator[Tensor]:
    """Indices [1 to CHUNK, 3] of the samples in occupied cells, `cells` being those of the samples along x, y, z."""
    rows = max(1, CHUNK // max(1, len(cells[1]) * len(cells[2])))
    for start in range(0, len(cells[0]), rows):
        slab = occupied[cells[0][start : start + rows]][:, cells[1]][:, :, cells[2]]
        first = torch.tensor([start, 0, 0], device=slab.device)
        held = slab.nonzero()
        if len(held):  # between two bodies a slab may be empty
            for index in held.split(CHUNK):
                yield index + first


def _repair(sigma: Tensor) -> None:
    """Replace NaNs in place: twice over by the mean of the six neighbours where three are numbers, the rest by 0."""
    if int(sigma.isnan().sum()) <= MOST_REPAIRS:
        steps = torch.cat([torch.eye(3, dtype=torch.long), -torch.eye(3, dtype=torch.long)]).to(sigma.device)
        last = torch.tensor(sigma.shape, device=sigma.device) - 1
        for _ in range(2):
            holes = sigma.isnan().nonzero()
            around = (holes[:, None] + steps).minimum(last).clamp_min(0)
            values = sigma[tuple(around.reshape(-1, 3).T)].reshape(-1, 6).float()
            enough = (~values.isnan()).sum(dim=1) >= 3
            sigma[tuple(holes[enough].T)] = values[enough].nanmean(dim=1).half()
    sigma.nan_to_num_(nan=0.0)


def marching_cubes(grid: DensityGrid, threshold: float) -> Mesh:
    """The surface where the density is `threshold` (Lorensen and Cline 1987, PyMCubes), closed at the box's walls.

    Beyond the grid the density is zero, so a body that touches the wall is closed at most half a cell outside of it.
    Slab after slab is taken, and the vertices on the planes between two of them are made one: the surface is that of
    the whole grid.

    Returns:
        Mesh in world units, facing outward; empty when no sample is above the threshold.
    """
    if not grid.highest > threshold:
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    level = _between_samples(threshold)
    n_x, n_y, n_z = grid.sigma.shape
    planes = max(1, SLAB // ((n_y + 2) * (n_z + 2)))
    parts = []
    for start in range(-1, n_x, planes):
        slab = _padded_slab(grid.sigma, start, min(start + planes, n_x))
        if bool((slab > level).any()):
            vertices, faces = mcubes.marching_cubes(slab.cpu().numpy(), level)
            parts.append((vertices + [start, -1, -1], faces.astype(np.int64)))
    joined = _join_slabs(parts, np.arange(-1, n_x, planes))
    return Mesh((joined.vertices + grid.low + 0.5) * grid.cell - 1.0, joined.faces)


def _between_samples(threshold: float) -> float:
    """`threshold`, or a hair more where it is a float16 number: then no sample lies on the surface itself."""
    same = float(torch.tensor(threshold, dtype=torch.float64).half()) == threshold
    return threshold * (1.0 + 2.0**-13) if same else threshold


def _padded_slab(sigma: Tensor, start: int, stop: int) -> Tensor:
    """Planes `start` to `stop`, both included, as float32 with a margin of zeros; -1 and n_x are the margin along x."""
    inner = sigma[max(start, 0) : stop + 1].float()
    return pad(inner, (1, 1, 1, 1, int(start < 0), int(stop >= len(sigma))))


def _join_slabs(parts: list[tuple[np.ndarray, np.ndarray]], planes: np.ndarray) -> Mesh:
    """One mesh of the parts (vertices, faces), vertices on the same edge of the grid in the planes x = `planes` one.

    Two slabs may work out the place on the edge with another rounding, so the edges are compared and not the places.
    """
    counts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    vertices = np.concatenate([vertices for vertices, _ in parts])
    faces = np.concatenate([faces + count for (_, faces), count in zip(parts, counts, strict=False)])
    shared = np.flatnonzero(np.isin(vertices[:, 0], planes))
    node = np.floor(vertices[shared]).astype(np.int64)
    axis = (vertices[shared] != node).argmax(axis=1)
    first, group = group_rows(np.column_stack([node + 1, axis]))
    source = np.arange(len(vertices))
    source[shared] = shared[first[group]]
    kept = source == np.arange(len(vertices))
    number = np.cumsum(kept) - 1
    return Mesh(vertices[kept], number[source][faces])


@torch.no_grad()
def refine_on_edges(mesh: Mesh, grid: DensityGrid, field: Field, occupied: Tensor, threshold: float) -> Mesh:
    """Move each vertex along its grid edge to where the field itself crosses the threshold, by bisection.

    Marching cubes puts it where a straight line between the two samples would; a trained field rises far more
    steeply, so that the line is off by up to half a cell.

    Args:
        mesh: fresh from `marching_cubes` of the same grid, or a filled one, and of the same threshold.
        grid: the field's own density.

    Returns:
        The mesh with moved vertices. They keep 2 % of an edge away from its ends, so that none coincide.
    """
    at = (torch.as_tensor(mesh.vertices, device=occupied.device) + 1.0) / grid.cell - 0.5
    axis = (at - at.round()).abs().argmax(dim=1, keepdim=True)
    low = at.round().scatter(1, axis, at.floor().gather(1, axis))
    high = low.scatter_add(1, axis, torch.ones_like(low))
    low_inside, high_inside = (_sigma_at_node(grid, node) > threshold for node in (low, high))
    crosses = (low_inside != high_inside).nonzero()[:, 0]
    starts_low = high_inside[crosses, None]
    outside = torch.where(starts_low, low[crosses], high[crosses])
    inside = torch.where(starts_low, high[crosses], low[crosses])
    start, end = ((node + 0.5) * grid.cell - 1.0 for node in (outside, inside))
    moved = mesh.vertices.copy()
    moved[crosses.cpu().numpy()] = _bisect(field, occupied, threshold, start, end).cpu().numpy()
    return Mesh(moved, mesh.faces)


def _bisect(field: Field, occupied: Tensor, threshold: float, outside: Tensor, inside: Tensor) -> Tensor:
    """[n, 3] points between `outside` and `inside` [n, 3] where the density crosses the threshold, to 3 %."""
    near, far = (torch.full_like(outside[:, :1], end) for end in (0.02, 0.98))
    for _ in range(5):
        middle = 0.5 * (near + far)
        dense = density_at(field, occupied, torch.lerp(outside, inside, middle).float())[:, None] > threshold
        near, far = torch.where(dense, near, middle), torch.where(dense, middle, far)
    return torch.lerp(outside, inside, 0.5 * (near + far))


def _sigma_at_node(grid: DensityGrid, index: Tensor) -> Tensor:
    """[n] density at the samples `index` [n, 3] of the whole box; zero where none is kept."""
    own = index.round().long() - torch.tensor(grid.low, device=index.device)
    clamped = own.clamp_min(0).minimum(torch.tensor(grid.sigma.shape, device=index.device) - 1)
    return torch.where((own == clamped).all(dim=1), grid.sigma[tuple(clamped.T)].float(), 0.0)
