"""Holes below a size closed: narrow gaps in the density, and what is open in a mesh."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import pad

from nerf_bridge.mesh.data import DensityGrid, Mesh
from nerf_bridge.mesh.geometry import directed_edges

logger = logging.getLogger(__name__)


@torch.no_grad()
def close_gaps(grid: DensityGrid, cells: int) -> DensityGrid:
    """Close holes, slits and pits at most `cells` cells wide (morphological closing of the density, by a cube).

    Args:
        grid: density; its memory is needed twice over.
        cells: samples across the widest gap that is closed; 0: none is.

    Returns:
        A grid of the same shape, nowhere less dense.
    """
    if cells < 1 or grid.sigma.numel() == 0:
        return grid
    closed = pad(grid.sigma, (cells,) * 6)
    for extreme in (torch.maximum, torch.minimum):
        for axis in range(3):
            closed = sliding(closed, axis, cells, extreme)
    return replace(grid, sigma=closed)


def sliding(sigma: Tensor, axis: int, k: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Maximum or minimum over windows of k + 1 samples along one axis, which gets k shorter."""
    length = sigma.shape[axis] - k
    result = sigma.narrow(axis, 0, length)
    for start in range(1, k + 1):
        result = extreme(result, sigma.narrow(axis, start, length))
    return result


def close_boundaries(mesh: Mesh) -> Mesh:
    """Close every hole of a mesh by triangles between its rim and the rim's middle.

    Args:
        mesh: triangles without pinches (`cut_pinches`), so that rims are simple loops.

    Returns:
        The mesh itself where it is closed; otherwise one with a vertex more for each hole. Rims that do not close (at
        faces that wind against their neighbours) stay.
    """
    rim = _rim(mesh)
    n_vertices = len(mesh.vertices)
    if len(rim) == 0:
        return mesh
    graph = coo_matrix((np.ones(len(rim), dtype=np.int8), (rim[:, 0], rim[:, 1])), shape=(n_vertices, n_vertices))
    loop = connected_components(graph, directed=False)[1][rim[:, 0]]
    starts, ends = (np.bincount(rim[:, end], minlength=n_vertices) for end in (0, 1))
    ragged = np.unique(loop[(starts != ends)[rim[:, 0]] | (starts != ends)[rim[:, 1]]])
    whole = ~np.isin(loop, ragged)
    names, group = np.unique(loop[whole], return_inverse=True)
    rim, group = rim[whole], group.reshape(-1)
    count = np.bincount(group, minlength=len(names))
    middles = np.stack([np.bincount(group, mesh.vertices[rim[:, 0], k]) for k in range(3)], axis=1) / count[:, None]
    caps = np.stack([rim[:, 0], rim[:, 1], n_vertices + group], axis=1)
    logger.info("closed %d holes of the surface", len(names))
    return Mesh(np.concatenate([mesh.vertices, middles]), np.concatenate([mesh.faces, caps]))


def _rim(mesh: Mesh) -> np.ndarray:
    """[n, 2] open edges, against the winding of their one face: along the winding of the face that is missing."""
    edges = directed_edges(mesh)
    key, reverse = (edges[:, k] * len(mesh.vertices) + edges[:, 1 - k] for k in (0, 1))
    return edges[~np.isin(reverse, key)][:, ::-1]
