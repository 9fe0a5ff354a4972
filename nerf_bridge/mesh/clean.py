"""A sound surface: welded, without degenerate or double faces, floaters or hidden cavities, facing outward."""

from __future__ import annotations

import logging

import numpy as np

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_bodies, face_volumes, group_rows, keep_faces

logger = logging.getLogger(__name__)


def clean(mesh: Mesh, weld_distance: float, keep_fraction: float) -> Mesh:
    """Weld, drop faces that are none, turn outward, and keep what belongs to the object.

    Args:
        mesh: any triangles.
        weld_distance: vertices nearer than about this become one, in units of the box.
        keep_fraction: bodies of less than this fraction of the main body's volume are dropped, in 0..1.

    Returns:
        The cleaned mesh; empty when nothing is left.
    """
    sound = drop_bad_faces(weld(mesh, weld_distance))
    return keep_main_bodies(turn_outward(sound), keep_fraction)


def weld(mesh: Mesh, distance: float) -> Mesh:
    """Make one vertex of those that fall into the same cube of side `distance`; faces keep their number."""
    if len(mesh.vertices) == 0:
        return mesh
    cubes = np.round((mesh.vertices - mesh.vertices.min(axis=0)) / distance).astype(np.int64)
    first, group = group_rows(cubes)
    return Mesh(mesh.vertices[first], group[mesh.faces])


def drop_bad_faces(mesh: Mesh) -> Mesh:
    """Drop faces with a repeated corner, and doubles.

    Of faces on the same three corners, those that wind alike become one; two that wind against each other enclose
    nothing and both go, which keeps a closed surface closed.
    """
    a, b, c = mesh.faces.T
    proper = (a != b) & (b != c) & (c != a)
    faces = mesh.faces[proper]
    if len(faces) == 0:
        return keep_faces(mesh, proper)
    start = faces.argmin(axis=1)[:, None]
    rolled = np.take_along_axis(faces, (start + np.arange(3)) % 3, axis=1)
    wound = rolled[:, 1] < rolled[:, 2]
    _, group = group_rows(np.where(wound[:, None], rolled, rolled[:, [0, 2, 1]]))
    sign = np.where(wound, 1, -1)
    surplus = np.bincount(group, sign)
    kept = np.flatnonzero(surplus[group] * sign > 0)
    _, single = np.unique(group[kept], return_index=True)
    return keep_faces(Mesh(mesh.vertices, faces), np.sort(kept[single]))


def turn_outward(mesh: Mesh) -> Mesh:
    """Reverse every face when the bodies together have a negative volume, which means that they were inside out."""
    if face_volumes(mesh).sum() >= 0:
        return mesh
    return Mesh(mesh.vertices, mesh.faces[:, ::-1].copy())


def keep_main_bodies(mesh: Mesh, keep_fraction: float) -> Mesh:
    """Keep the body of the largest volume and those of at least `keep_fraction` of it.

    Hidden cavities (bodies that face inward, of negative volume) go too: nobody sees them.
    """
    if len(mesh.faces) == 0:
        return mesh
    body = face_bodies(mesh)
    volumes = np.bincount(body, face_volumes(mesh))
    kept = volumes >= max(keep_fraction * volumes.max(), 0.0)
    kept[volumes.argmax()] = True
    if not kept.all():
        logger.info("kept %d of %d bodies of the surface", kept.sum(), len(kept))
    return keep_faces(mesh, kept[body])
