"""Welding, dropping, turning, and cutting apart."""

from __future__ import annotations

import numpy as np
import pytest

from nerf_bridge.mesh.clean import clean, drop_bad_faces, keep_main_bodies, turn_outward, weld
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_bodies, face_volumes, group_rows, is_watertight
from nerf_bridge.mesh.manifold import cut_pinches, make_solid

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
CORNERS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def tetrahedron(scale: float = 1.0, shift: float = 0.0) -> Mesh:
    return Mesh(CORNERS * scale + shift, TETRAHEDRON.copy())


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=True)]),
    )


def test_weld_joins_a_triangle_soup() -> None:
    soup = Mesh(CORNERS[TETRAHEDRON.reshape(-1)], np.arange(12).reshape(4, 3))
    assert not is_watertight(soup)
    welded = weld(soup, 1e-4)
    assert len(welded.vertices) == 4 and is_watertight(welded)


def test_degenerate_and_double_faces_go() -> None:
    faces = np.concatenate([TETRAHEDRON, [[0, 0, 1], [1, 3, 0]]])
    cleaned = drop_bad_faces(Mesh(CORNERS, faces))
    assert len(cleaned.faces) == 4 and is_watertight(cleaned)


def test_faces_back_to_back_both_go() -> None:
    vertices = np.concatenate([CORNERS, [[2.0, 2, 2]]])
    faces = np.concatenate([TETRAHEDRON, [[1, 2, 4], [4, 2, 1]]])
    cleaned = drop_bad_faces(Mesh(vertices, faces))
    assert len(cleaned.faces) == 4 and len(cleaned.vertices) == 4 and is_watertight(cleaned)


def test_inside_out_is_turned() -> None:
    inside_out = Mesh(CORNERS, TETRAHEDRON[:, ::-1])
    assert face_volumes(inside_out).sum() < 0 < face_volumes(turn_outward(inside_out)).sum()
    assert np.array_equal(turn_outward(tetrahedron()).faces, TETRAHEDRON)


def test_floaters_and_cavities_go_but_a_second_body_stays() -> None:
    cavity = Mesh(CORNERS * 0.2 + 0.1, TETRAHEDRON[:, ::-1])
    mesh = joined(tetrahedron(0.1, 5.0), tetrahedron(), cavity, tetrahedron(0.8, 3.0))
    kept = keep_main_bodies(mesh, 0.1)
    assert len(kept.faces) == 8 and face_bodies(kept).max() == 1
    assert np.isclose(face_volumes(kept).sum(), (1 + 0.8**3) / 6)
    assert len(keep_main_bodies(mesh, 1.0).faces) == 4


def test_clean_of_nothing_is_nothing() -> None:
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert len(clean(empty, 1e-4, 0.1).faces) == 0
    assert len(cut_pinches(empty).faces) == 0
    assert not is_watertight(empty)


def test_two_bodies_that_share_an_edge_are_cut_apart() -> None:
    mirrored = Mesh(CORNERS * [-1, -1, 1], TETRAHEDRON.copy())
    pinched = weld(joined(tetrahedron(), mirrored), 1e-4)
    assert len(pinched.vertices) == 6 and not is_watertight(pinched)
    cut = cut_pinches(pinched)
    assert is_watertight(cut) and len(cut.faces) == 8 and face_bodies(cut).max() == 1
    assert len(np.unique(cut.vertices.round(6), axis=0)) == 8
    assert (np.bincount(face_bodies(cut), face_volumes(cut)) > 0).all()


def test_a_ring_that_touches_itself_along_an_edge_is_cut_open() -> None:
    """Four boxes in a chain whose ends meet in one edge only: one fan at that edge's ends passes over it twice."""
    solid = np.zeros((4, 4, 3), dtype=bool)
    solid[1, 1, 1] = solid[2, 2, 1] = True
    solid[1, 1, 0] = solid[2, 2, 0] = solid[2, 1, 0] = True
    pinched = boundary_of(solid)
    assert not is_watertight(pinched) and face_bodies(pinched).max() == 0
    cut = cut_pinches(pinched)
    merged = weld(cut, 1e-6)
    assert is_watertight(cut) and is_watertight(merged)


def test_a_solid_is_made_of_what_is_pinched_and_open() -> None:
    whole = tetrahedron()
    assert make_solid(whole) is whole
    mirrored = Mesh(CORNERS * [-1, -1, 1], TETRAHEDRON.copy())
    pinched = weld(joined(whole, mirrored), 1e-4)
    solid = make_solid(Mesh(pinched.vertices, np.delete(pinched.faces, 3, axis=0)))
    assert is_watertight(solid) and face_bodies(solid).max() == 1
    twisted = Mesh(CORNERS, np.concatenate([TETRAHEDRON[:3], TETRAHEDRON[3:, ::-1]]))
    assert is_watertight(make_solid(twisted))
    rough = np.random.default_rng(0).integers(0, 12, (60, 3))
    assert is_watertight(make_solid(drop_bad_faces(Mesh(np.random.default_rng(1).random((12, 3)), rough))))


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_equal_rows_are_grouped_however_large_their_numbers(scale: float) -> None:
    rows = (np.array([[3, 1, 2], [0, 0, 0], [3, 1, 2], [2, 1, 3], [0, 0, 0]]) * scale).astype(np.int64)
    first, group = group_rows(rows)
    assert np.array_equal(rows[first][group], rows) and len(first) == 3


def boundary_of(solid: np.ndarray) -> Mesh:
    """Outward squares, two triangles each, between solid and empty voxels, with shared corners."""
    padded = np.pad(solid, 1)
    corners, faces = [], []
    for axis in range(3):
        for sign in (1, -1):
            first, second = np.eye(3, dtype=int)[(axis + 1) % 3], np.eye(3, dtype=int)[(axis + 2) % 3]
            open_side = padded & ~np.roll(padded, -sign, axis=axis)
            for voxel in np.argwhere(open_side):
                base = voxel + np.eye(3, dtype=int)[axis] * (sign > 0)
                square = [base, base + first, base + first + second, base + second]
                start = len(corners)
                corners += square if sign > 0 else square[::-1]
                faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
    return weld(Mesh(np.array(corners, dtype=float), np.array(faces)), 0.1)
