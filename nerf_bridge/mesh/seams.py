"""A mesh that is split along its texture's seams, as formats want it that index positions for themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nerf_bridge.mesh.data import UnwrappedMesh


def join_seams(mesh: UnwrappedMesh) -> tuple[np.ndarray, np.ndarray]:
    """Find the points that the vertices on both sides of a seam share.

    Returns:
        (first, point): `first` [p] is a vertex of each point, `point` [v] the point of each vertex. Vertices are one
        point when they are equal in single precision, which is what files hold.
    """
    positions = mesh.vertices.astype(np.float32)
    _, first, point = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    return first, point.reshape(-1)


def without_collapsed_faces(mesh: UnwrappedMesh) -> UnwrappedMesh:
    """`mesh` without the faces of which two corners are one point in single precision, and their vertices."""
    _, point = join_seams(mesh)
    a, b, c = point[mesh.faces].T
    whole = (a != b) & (b != c) & (c != a)
    if whole.all():
        return mesh
    used, faces = np.unique(mesh.faces[whole], return_inverse=True)
    return replace(
        mesh,
        vertices=mesh.vertices[used],
        normals=mesh.normals[used],
        uv=mesh.uv[used],
        faces=faces.reshape(-1, 3).astype(np.int64),
    )
