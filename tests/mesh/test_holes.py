"""Narrow gaps in the density, and open rims of a mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import all_occupied, l_field, sphere_field

from nerf_bridge.mesh.data import DensityGrid, Mesh
from nerf_bridge.mesh.geometry import face_bodies, face_volumes, is_watertight
from nerf_bridge.mesh.holes import close_boundaries, close_gaps
from nerf_bridge.mesh.surface import marching_cubes, sample_density

N = 32
CUBE = Mesh(
    np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)]),
    np.array(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
    ),
)  # fmt: skip


def plate_with_hole(width: int) -> DensityGrid:
    sigma = torch.zeros(N, N, N)
    sigma[:, :, 10:20] = 50.0
    sigma[8 : 8 + width, 8 : 8 + width] = 0.0
    return DensityGrid(sigma.half(), (0, 0, 0), N, 0)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_holes_up_to_the_width_are_closed_and_wider_ones_stay(width: int) -> None:
    grid = plate_with_hole(width)
    solid = plate_with_hole(0).sigma
    assert torch.equal(close_gaps(grid, width).sigma, solid)
    assert torch.equal(close_gaps(grid, width - 1).sigma, grid.sigma)


def test_the_edge_of_the_kept_box_is_no_hole() -> None:
    sigma = torch.zeros(6, 6, 6)
    sigma[:2, :2, :2] = 9.0
    grid = DensityGrid(sigma.half(), (5, 5, 5), N, 0)
    assert torch.equal(close_gaps(grid, 3).sigma, grid.sigma)


@pytest.mark.parametrize("field", [sphere_field(), l_field()], ids=["sphere", "l"])
def test_shapes_without_gaps_hardly_change(field) -> None:
    grid = sample_density(field, all_occupied(), 64)
    closed = close_gaps(grid, 1)
    assert (closed.sigma >= grid.sigma).all()
    before, after = (face_volumes(marching_cubes(g, 40.0)).sum() for g in (grid, closed))
    assert before <= after < 1.01 * before


def test_missing_faces_come_back() -> None:
    for missing in ([0], [0, 1], [0, 1, 2, 3], [0, 6, 11]):
        closed = close_boundaries(Mesh(CUBE.vertices, np.delete(CUBE.faces, missing, axis=0)))
        assert is_watertight(closed) and face_bodies(closed).max() == 0
    lid = close_boundaries(Mesh(CUBE.vertices, CUBE.faces[2:]))
    assert face_volumes(lid).sum() == pytest.approx(1.0) and len(lid.faces) == 14


def test_what_is_closed_stays_and_what_winds_wrong_is_left_alone() -> None:
    assert close_boundaries(CUBE) is CUBE
    faces = CUBE.faces.copy()
    faces[0] = faces[0, ::-1]
    assert not is_watertight(close_boundaries(Mesh(CUBE.vertices, faces)))


def test_one_triangle_becomes_a_closed_sheet() -> None:
    closed = close_boundaries(Mesh(np.eye(3), np.array([[0, 1, 2]])))
    assert is_watertight(closed) and len(closed.faces) == 4
