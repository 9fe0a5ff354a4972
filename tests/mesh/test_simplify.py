"""The face count asked for, from above and from below."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from analytic_fields import AnalyticField, all_occupied, l_field, sphere_field, surface_error, torus_field

from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_areas, face_bodies, face_volumes, is_watertight
from nerf_bridge.mesh.simplify import split_long_edges, to_face_count
from nerf_bridge.mesh.surface import marching_cubes, sample_density


@pytest.mark.parametrize("field", [sphere_field(), torus_field(), l_field()], ids=["sphere", "torus", "l"])
@pytest.mark.parametrize("target", [100, 2000, 9001, 30000])
def test_the_face_target_is_met(field: AnalyticField, target: int) -> None:
    mesh = clean(marching_cubes(sample_density(field, all_occupied(), 48), 40.0), 1e-4, 0.1)
    reached = to_face_count(mesh, target, 0.1)
    assert len(reached.faces) == pytest.approx(target, rel=0.05)
    assert is_watertight(reached) and face_bodies(reached).max() == 0
    error = surface_error(field, torch.as_tensor(reached.vertices).float())
    assert float(error.max()) < (0.1 if target == 100 else 2 / 48)


def test_a_rough_surface_stays_closed() -> None:
    """White noise makes hundreds of thin necks that decimation pinches."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 24, 24, 24, generator=generator)

    class Rough(AnalyticField):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            grain = torch.nn.functional.grid_sample(noise, points[None, None, None], align_corners=True).flatten()
            return 40 * torch.sigmoid((0.6 - points.norm(dim=-1)) * 10 + 1.5 * grain)

    mesh = clean(marching_cubes(sample_density(Rough([]), all_occupied(), 64), 20.0), 1e-4, 0.1)
    reached = to_face_count(mesh, 4000, 0.1)
    assert len(mesh.faces) > 8000
    assert len(reached.faces) == pytest.approx(4000, rel=0.05)
    assert is_watertight(reached) and face_bodies(reached).max() == 0


def test_splitting_keeps_the_shape_and_makes_even_faces() -> None:
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    solid = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]))
    fine = split_long_edges(solid, 1001)
    assert len(fine.faces) == 1000 and is_watertight(fine)
    assert face_volumes(fine).sum() == pytest.approx(1 / 6)
    assert face_areas(fine).max() < 5 * face_areas(fine).min()


def test_one_triangle_can_be_split() -> None:
    fine = split_long_edges(Mesh(np.eye(3), np.array([[0, 1, 2]])), 100)
    assert len(fine.faces) == pytest.approx(100, rel=0.05)
    assert face_areas(fine).sum() == pytest.approx(np.sqrt(3) / 2)


def test_what_cannot_be_reduced_is_said(caplog: pytest.LogCaptureFixture) -> None:
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    solid = Mesh(corners, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]))
    with caplog.at_level(logging.WARNING):
        reached = to_face_count(solid, 2, 0.1)
    assert is_watertight(reached) and len(reached.faces) == 4
    assert "cannot be reduced to 2 faces" in caplog.text
