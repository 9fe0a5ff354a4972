"""The number of faces asked for: fewer by quadric error decimation, more by splitting long edges."""

from __future__ import annotations

import logging

import fast_simplification
import numpy as np

from nerf_bridge.mesh.clean import drop_bad_faces, keep_main_bodies
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import directed_edges, split_sides
from nerf_bridge.mesh.manifold import cut_pinches

logger = logging.getLogger(__name__)

AGGRESSIONS = (7.0, 10.0)
"""How fast the decimation's error bound grows (7 is usual); the next is tried when one gives up above the target."""


def to_face_count(mesh: Mesh, target: int, keep_fraction: float) -> Mesh:
    """The same surface with about `target` faces.

    Args:
        mesh: a clean surface.
        target: faces wanted.
        keep_fraction: as of `clean`, for bodies that the decimation cuts off.

    Returns:
        A mesh within 1 % of `target`; more, with a warning, when decimation cannot go that low or leaves nothing.
    """
    reduced = mesh
    if len(mesh.faces) > target:
        smaller = keep_main_bodies(decimate(mesh, target), keep_fraction)
        reduced = smaller if len(smaller.faces) > 0 else mesh
    reached = split_long_edges(reduced, target)
    logger.info("%d faces of the surface became %d; asked for: %d", len(mesh.faces), len(reached.faces), target)
    if len(reached.faces) > 1.01 * target:
        logger.warning("the surface cannot be reduced to %d faces; it keeps %d", target, len(reached.faces))
    return reached


def decimate(mesh: Mesh, target: int) -> Mesh:
    """About `target` faces by edge collapses of least quadric error (Garland and Heckbert 1997).

    Collapses may pinch thin parts into edges that four faces share; those are cut apart again.
    """
    triangles = mesh.faces.astype(np.int32)
    for aggression in AGGRESSIONS:
        vertices, faces = fast_simplification.simplify(mesh.vertices, triangles, target_count=target, agg=aggression)
        if len(faces) <= 1.01 * target:
            break
    reduced = Mesh(np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64))
    return cut_pinches(drop_bad_faces(reduced))


def split_long_edges(mesh: Mesh, target: int) -> Mesh:
    """Split the longest edges in the middle until the mesh has `target` faces or one fewer; the shape stays."""
    while len(mesh.faces) > 0 and target - len(mesh.faces) >= 2:
        mesh = _split_once(mesh, (target - len(mesh.faces)) // 2)
    return mesh


def _split_once(mesh: Mesh, most: int) -> Mesh:
    """Split at most `most` edges, none of which share a face; each is the longest edge of the faces it joins."""
    n_faces = len(mesh.faces)
    edges = np.sort(directed_edges(mesh), axis=1)
    unique, edge_of_side = np.unique(edges, axis=0, return_inverse=True)
    edge_of_side = edge_of_side.reshape(-1)
    length = np.linalg.norm(mesh.vertices[unique[:, 0]] - mesh.vertices[unique[:, 1]], axis=1)
    rank = np.empty(len(unique), dtype=np.int64)
    rank[np.argsort(length, kind="stable")] = np.arange(len(unique))
    side_rank = rank[edge_of_side].reshape(3, n_faces)
    longest = side_rank.max(axis=0)
    sides, wins = np.bincount(edge_of_side, minlength=len(unique)), np.bincount(longest, minlength=len(unique))
    splittable = np.flatnonzero(wins[rank] == sides)
    chosen = splittable[np.argsort(-rank[splittable])][:most]
    middle = np.full(len(unique), -1)
    middle[chosen] = np.arange(len(chosen))
    split = np.flatnonzero(middle[edge_of_side] >= 0)
    return split_sides(mesh, split, middle[edge_of_side[split]], mesh.vertices[unique[chosen]].mean(axis=1))
