"""Cuts a surface apart where it touches itself, so that every edge joins two faces and every vertex has one fan.

Decimation pinches thin necks into edges that four faces share. Following Gueziec et al., "Converting sets of polygons
to manifold surfaces by cutting and stitching" (1998): faces are stitched over each edge, two by two, and corners that
no stitch connects get vertices of their own.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import directed_edges, is_watertight, split_sides
from nerf_bridge.mesh.holes import close_boundaries

PULL = 0.1
"""How far the copies of a cut vertex move towards the middle of their neighbours, so that they lie apart."""


def make_solid(mesh: Mesh) -> Mesh:
    """Cut a surface apart where it touches itself and close what is open, so that every edge joins two faces.

    Once every vertex has one fan of faces, the open rims are simple loops, and all of them can be closed.

    Returns:
        The mesh itself where it is closed already.
    """
    return mesh if is_watertight(mesh) else close_boundaries(cut_pinches(mesh))


def cut_pinches(mesh: Mesh) -> Mesh:
    """Cut `mesh` apart where it touches itself in points or edges; a closed surface becomes manifold."""
    if len(mesh.faces) == 0:
        return mesh
    cut = _cut_corners(mesh)
    while len(sides := _pinched_sides(cut)) > 0:
        cut = _open_edges(cut, sides)
    return cut


def _cut_corners(mesh: Mesh) -> Mesh:
    """The same faces with a vertex of its own for each fan of faces around a vertex."""
    n_faces = len(mesh.faces)
    first, second = _stitches(mesh).T
    face_a, side_a, face_b, side_b = first % n_faces, first // n_faces, second % n_faces, second // n_faces
    starts = np.concatenate([3 * face_a + side_a, 3 * face_a + (side_a + 1) % 3])
    ends = np.concatenate([3 * face_b + (side_b + 1) % 3, 3 * face_b + side_b])
    graph = coo_matrix((np.ones(len(starts), dtype=np.int8), (starts, ends)), shape=(3 * n_faces, 3 * n_faces))
    n_fans, fan = connected_components(graph, directed=False)
    vertex = np.empty(n_fans, dtype=np.int64)
    vertex[fan] = mesh.faces.reshape(-1)
    copied = np.bincount(vertex, minlength=len(mesh.vertices))[vertex] > 1
    return _pull_apart(Mesh(mesh.vertices[vertex], fan.reshape(-1, 3).astype(np.int64)), copied)


def _pinched_sides(mesh: Mesh) -> np.ndarray:
    """[n, 2] stitches over edges that four faces share still, since one fan passes over them twice.

    No face is in two of them, so that all of them can be opened at once.
    """
    stitches = _stitches(mesh)
    edges = np.sort(directed_edges(mesh)[stitches[:, 0]], axis=1)
    _, group, counts = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    pinched = stitches[counts[group.reshape(-1)] > 1]
    taken: set[int] = set()
    chosen = []
    for pair in pinched:
        faces = set((pair % len(mesh.faces)).tolist())
        if not faces & taken:
            taken |= faces
            chosen.append(pair)
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def _open_edges(mesh: Mesh, stitches: np.ndarray) -> Mesh:
    """Put a vertex into each stitched edge [n, 2], a little towards the two faces, so that the edge's copies part."""
    n_faces = len(mesh.faces)
    ends = mesh.vertices[directed_edges(mesh)[stitches[:, 0]]].mean(axis=1)
    tips = mesh.vertices[mesh.faces[stitches % n_faces, (stitches // n_faces + 2) % 3]].mean(axis=1)
    middle = np.repeat(np.arange(len(stitches)), 2)
    return split_sides(mesh, stitches.reshape(-1), middle, (1 - PULL) * ends + PULL * tips)


def _stitches(mesh: Mesh) -> np.ndarray:
    """[n, 2] pairs of sides (rows of `directed_edges`) that run along the same edge against each other."""
    edges = directed_edges(mesh)
    low, high = edges.min(axis=1), edges.max(axis=1)
    key = low * len(mesh.vertices) + high
    forward = edges[:, 0] == low
    order = np.lexsort((forward, key))
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    simple = starts[counts == 2]
    simple = simple[forward[order[simple]] != forward[order[simple + 1]]]
    pairs = [np.stack([order[simple], order[simple + 1]], axis=1)]
    for start, count in zip(starts[counts > 2], counts[counts > 2], strict=True):
        pairs.append(_solid_wedges(mesh, order[start : start + count], forward))
    return np.concatenate(pairs)


def _solid_wedges(mesh: Mesh, sides: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Pair the sides around one edge so that each pair bounds one wedge of the solid.

    Around the edge, from its low to its high vertex, the solid lies before a forward face and after a backward one. So
    in the order of their angles each forward face goes with the nearest backward face before it.
    """
    n_faces = len(mesh.faces)
    face, side = sides % n_faces, sides // n_faces
    start, end = mesh.faces[face, side], mesh.faces[face, (side + 1) % 3]
    a, b = mesh.vertices[min(start[0], end[0])], mesh.vertices[max(start[0], end[0])]
    axis = (b - a) / max(float(np.linalg.norm(b - a)), 1e-300)
    arms = mesh.vertices[mesh.faces[face, (side + 2) % 3]] - a
    arms = arms - (arms @ axis)[:, None] * axis
    turned = np.cross(axis, arms[0])
    angle = np.arctan2(arms @ turned, arms @ arms[0])
    around = sides[np.argsort(angle, kind="stable")]
    waiting: list[int] = []
    pairs: dict[int, int] = {}
    for current in np.concatenate([around, around]).tolist():
        if not forward[current]:
            if current not in waiting and current not in pairs:
                waiting.append(current)
        elif waiting and current not in pairs.values():
            pairs[waiting.pop()] = current
    return np.array(list(pairs.items()), dtype=np.int64).reshape(-1, 2)


def _pull_apart(mesh: Mesh, cut: np.ndarray) -> Mesh:
    """Move the vertices where `cut` [v] bool holds a little towards the mean of their neighbours."""
    edges = directed_edges(mesh)
    edges = edges[cut[edges[:, 0]]]
    count = np.bincount(edges[:, 0], minlength=len(mesh.vertices))[:, None]
    total = np.stack(
        [np.bincount(edges[:, 0], mesh.vertices[edges[:, 1], k], len(mesh.vertices)) for k in range(3)], axis=1
    )
    middle = total / np.maximum(count, 1)
    moved = np.where(cut[:, None] & (count > 0), (1 - PULL) * mesh.vertices + PULL * middle, mesh.vertices)
    return Mesh(moved, mesh.faces)
