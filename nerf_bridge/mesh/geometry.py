"""Measures of a triangle mesh: areas, volume, normals, edges, connected bodies."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf_bridge.mesh.data import Mesh


def face_crosses(mesh: Mesh) -> np.ndarray:
    """[f, 3] cross products of two sides of each face: along the outward normal, twice the area long."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    return np.cross(b - a, c - a)


def face_areas(mesh: Mesh) -> np.ndarray:
    """[f] areas."""
    return 0.5 * np.linalg.norm(face_crosses(mesh), axis=1)


def face_volumes(mesh: Mesh) -> np.ndarray:
    """[f] signed volumes between each face and the origin; their sum over a closed body is its volume."""
    a = mesh.vertices[mesh.faces[:, 0]]
    return np.einsum("ij,ij->i", a, face_crosses(mesh)) / 6.0


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """[v, 3] unit normals, the faces' normals weighted by their angle at the vertex (Thuermer and Wuethrich 1998)."""
    corners = mesh.vertices[mesh.faces]
    crosses = face_crosses(mesh)
    unit = crosses / np.maximum(np.linalg.norm(crosses, axis=1, keepdims=True), 1e-300)
    normals = np.zeros_like(mesh.vertices)
    for corner in range(3):
        to_next = corners[:, (corner + 1) % 3] - corners[:, corner]
        to_last = corners[:, (corner + 2) % 3] - corners[:, corner]
        lengths = np.linalg.norm(to_next, axis=1) * np.linalg.norm(to_last, axis=1)
        cosine = np.einsum("ij,ij->i", to_next, to_last) / np.maximum(lengths, 1e-300)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))
        for axis in range(3):
            normals[:, axis] += np.bincount(mesh.faces[:, corner], angle * unit[:, axis], len(normals))
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    up = np.broadcast_to([0.0, 0.0, 1.0], normals.shape)
    return np.where(lengths > 1e-12, normals / np.maximum(lengths, 1e-12), up)


def directed_edges(mesh: Mesh) -> np.ndarray:
    """[3f, 2] edges in the faces' winding; the edges of face i are the rows i, f + i and 2f + i."""
    return np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])


def is_watertight(mesh: Mesh) -> bool:
    """Every edge joins exactly two faces that wind alike."""
    edges = directed_edges(mesh)
    key, reverse = (np.sort(edges[:, k] * len(mesh.vertices) + edges[:, 1 - k]) for k in (0, 1))
    return len(key) > 0 and bool((key[1:] != key[:-1]).all()) and np.array_equal(key, reverse)


def face_bodies(mesh: Mesh) -> np.ndarray:
    """[f] number of the connected body of each face, from 0; faces are connected over shared edges."""
    n_faces = len(mesh.faces)
    edges = np.sort(directed_edges(mesh), axis=1)
    key = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    order = np.argsort(key, kind="stable")
    face = order % n_faces
    same = key[order][1:] == key[order][:-1]
    first, second = face[:-1][same], face[1:][same]
    graph = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n_faces, n_faces))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def keep_faces(mesh: Mesh, keep: np.ndarray) -> Mesh:
    """The faces where `keep` [f] bool holds, and only the vertices they use."""
    faces = mesh.faces[keep]
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[faces] = True
    return Mesh(mesh.vertices[used], (np.cumsum(used) - 1)[faces])


def group_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number equal rows alike.

    Args:
        rows: [n, k] integers, at least 0.

    Returns:
        the first row [g] of each group, and the group [n] of each row.
    """
    sides = rows.max(axis=0, initial=0) + 1
    if np.prod(sides.astype(float)) < 2**62:  # one number for each row sorts far faster than the row
        rows = np.ravel_multi_index(tuple(rows.T), tuple(sides.tolist()))
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


def split_sides(mesh: Mesh, sides: np.ndarray, middle: np.ndarray, points: np.ndarray) -> Mesh:
    """Put vertices into sides of faces, and cut each of those faces in two there.

    Args:
        mesh: any triangles.
        sides: [n] rows of `directed_edges`, at most one of each face.
        middle: [n] which of `points` goes into each side; the two faces of an edge get the same one, to stay joined.
        points: [k, 3] new vertices.
    """
    n_faces = len(mesh.faces)
    face, corner, new = sides % n_faces, sides // n_faces, len(mesh.vertices) + middle
    first, second, third = (mesh.faces[face, (corner + k) % 3] for k in range(3))
    whole = np.ones(n_faces, dtype=bool)
    whole[face] = False
    halves = [np.stack([first, new, third], axis=1), np.stack([new, second, third], axis=1)]
    return Mesh(np.concatenate([mesh.vertices, points]), np.concatenate([mesh.faces[whole], *halves]))
