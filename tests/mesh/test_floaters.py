"""Bodies that let the light through."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from analytic_fields import RED, AnalyticField, all_occupied, sphere

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.floaters import body_opacity, drop_translucent
from nerf_bridge.mesh.geometry import face_bodies
from nerf_bridge.mesh.surface import marching_cubes, sample_density

SOLID, PUFF = sphere((-0.5, 0.0, 0.0), 0.2), sphere((0.4, 0.0, 0.0), 0.5)


class SolidAndPuff(AnalyticField):
    """A small solid ball of density 80 and a large ball of thin haze."""

    haze = 0.6

    def density(self, points: torch.Tensor) -> torch.Tensor:
        solid, puff = (torch.sigmoid(-distance(points) / 0.01) for distance in (SOLID, PUFF))
        return torch.maximum(80 * solid, self.haze * puff)


def surface_of(field: AnalyticField, threshold: float) -> Mesh:
    return marching_cubes(sample_density(field, all_occupied(), 64), threshold)


def test_a_large_puff_of_haze_goes_and_a_small_solid_stays(caplog: pytest.LogCaptureFixture) -> None:
    field = SolidAndPuff([])
    mesh = surface_of(field, 0.3)
    opacity = body_opacity(mesh, face_bodies(mesh), field, all_occupied())
    assert sorted(opacity) == pytest.approx([1 - np.exp(-0.6 * 4 / 3 * 0.5), 1.0], abs=0.05)  # chords of 4/3 r
    with caplog.at_level(logging.INFO):
        kept = drop_translucent(mesh, field, all_occupied())
    assert face_bodies(kept).max() == 0 and kept.vertices[:, 0].max() < -0.2
    assert "dropped 1 translucent" in caplog.text


def test_two_solids_stay_and_so_does_the_only_body() -> None:
    field = AnalyticField([(SOLID, RED), (PUFF, RED)])
    two = surface_of(field, 40.0)
    assert len(drop_translucent(two, field, all_occupied()).faces) == len(two.faces)
    haze = SolidAndPuff([])
    haze_alone = all_occupied()
    haze_alone[:14] = False
    grid = sample_density(haze, haze_alone, 64)
    one = marching_cubes(grid, 0.3)
    assert drop_translucent(one, haze, haze_alone) is one


def test_when_all_are_translucent_the_most_opaque_stays() -> None:
    class Hazes(SolidAndPuff):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            return super().density(points).clamp(max=0.7)

    mesh = drop_translucent(surface_of(Hazes([]), 0.3), Hazes([]), all_occupied())
    assert face_bodies(mesh).max() == 0 and mesh.vertices[:, 0].max() > 0.8


def test_cavities_are_no_floaters_and_nothing_stays_nothing() -> None:
    shell = AnalyticField([(lambda points: (points.norm(dim=-1) - 0.6).abs() - 0.15, RED)])
    mesh = surface_of(shell, 40.0)
    assert face_bodies(mesh).max() == 1
    assert len(drop_translucent(mesh, shell, all_occupied()).faces) == len(mesh.faces)
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert drop_translucent(empty, shell, all_occupied()) is empty
