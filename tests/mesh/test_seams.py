"""Points on both sides of a seam."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cuboid import cuboid_asset

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import is_watertight
from nerf_bridge.mesh.seams import join_seams, without_collapsed_faces

MESH = cuboid_asset().mesh


def test_a_cuboid_split_into_six_sides_has_eight_points_and_is_closed() -> None:
    first, point = join_seams(MESH)
    assert len(first) == 8 and np.array_equal(MESH.vertices[first][point], MESH.vertices)
    assert is_watertight(Mesh(MESH.vertices[first], point[MESH.faces]))


def test_a_whole_mesh_stays_as_it_is() -> None:
    assert without_collapsed_faces(MESH) is MESH


def test_faces_that_collapse_in_single_precision_go_with_their_vertices() -> None:
    """A point of a side split in two that are nearer than single precision sees: a sliver of two faces between."""
    near = MESH.vertices[1] + [0, 1e-10, 0]
    vertices = np.concatenate([MESH.vertices, [near]])
    normals, uv = np.concatenate([MESH.normals, MESH.normals[:1]]), np.concatenate([MESH.uv, [[0.9, 0.9]]])
    faces = np.concatenate([MESH.faces, [[0, 1, 24]]])
    repaired = without_collapsed_faces(replace(MESH, vertices=vertices, normals=normals, uv=uv, faces=faces))
    assert np.array_equal(repaired.faces, MESH.faces) and np.array_equal(repaired.vertices, MESH.vertices)
    assert np.array_equal(repaired.uv, MESH.uv) and np.array_equal(repaired.normals, MESH.normals)
