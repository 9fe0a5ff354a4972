"""Smoothing that keeps the volume."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags_array

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import directed_edges, face_bodies, face_volumes

SHRINK, SWELL = 0.5, -0.53
"""Steps towards, and away from, the mean of the neighbours: what is smaller than about six edges is smoothed away."""


def smooth(mesh: Mesh, passes: int) -> Mesh:
    """Smooth a surface without shrinking it.

    Each pass is a step towards the mean of the neighbours and a longer one back (Taubin, "A signal processing approach
    to fair surface design", SIGGRAPH 1995); in the end each body is scaled about its middle to the volume it had.

    Args:
        mesh: a closed surface.
        passes: 0 leaves it as it is.

    Returns:
        The same faces on moved vertices.
    """
    if passes == 0 or len(mesh.faces) == 0:
        return mesh
    mean = _mean_of_neighbours(mesh)
    vertices = mesh.vertices
    for _ in range(passes):
        for step in (SHRINK, SWELL):
            vertices = vertices + step * (mean @ vertices - vertices)
    return _with_volumes_of(mesh, Mesh(vertices, mesh.faces))


def _mean_of_neighbours(mesh: Mesh) -> csr_matrix:
    """[v, v] sparse matrix whose product with the vertices is the mean of the neighbours of each."""
    n = len(mesh.vertices)
    a, b = directed_edges(mesh).T
    pairs = coo_matrix((np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(n, n)).tocsr()
    pairs.data[:] = 1.0
    return diags_array(1.0 / np.maximum(np.asarray(pairs.sum(axis=1)).reshape(-1), 1.0)) @ pairs


def _with_volumes_of(before: Mesh, after: Mesh) -> Mesh:
    """`after`, each body scaled about the middle of its vertices to the volume that it has in `before`."""
    body = face_bodies(after)
    body_of = np.zeros(len(after.vertices), dtype=np.int64)
    body_of[after.faces.reshape(-1)] = body.repeat(3)
    count = np.maximum(np.bincount(body_of), 1)[:, None]
    middle = np.stack([np.bincount(body_of, after.vertices[:, k]) for k in range(3)], axis=1) / count
    old, new = (np.bincount(body, face_volumes(mesh)) for mesh in (before, after))
    comparable = (old * new > 0) & (np.abs(new) > 0.1 * np.abs(old))
    scale = np.cbrt(np.where(comparable, old, 1.0) / np.where(comparable, new, 1.0))[body_of, None]
    return Mesh((after.vertices - middle[body_of]) * scale + middle[body_of], after.faces)
