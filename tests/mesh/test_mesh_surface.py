"""Density grids and their surfaces, on shapes with known geometry."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from analytic_fields import (
    RED,
    AnalyticField,
    all_occupied,
    box,
    l_field,
    sphere,
    sphere_field,
    surface_error,
    torus_field,
)
from scipy.spatial import cKDTree

from nerf_bridge.mesh import surface
from nerf_bridge.mesh.data import DensityGrid, Mesh
from nerf_bridge.mesh.geometry import face_bodies, face_volumes, is_watertight, vertex_normals
from nerf_bridge.mesh.surface import marching_cubes, refine_on_edges, sample_density

RESOLUTION = 48
CELL = 2 / RESOLUTION
THRESHOLD = 40.0


def surface_of(field: AnalyticField, occupied: torch.Tensor | None = None, resolution: int = RESOLUTION) -> Mesh:
    occupied = all_occupied() if occupied is None else occupied
    grid = sample_density(field, occupied, resolution)
    return refine_on_edges(marching_cubes(grid, THRESHOLD), grid, field, occupied, THRESHOLD)


def euler_number(mesh: Mesh) -> int:
    edges = np.unique(
        np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1), axis=0
    )
    return len(mesh.vertices) - len(edges) + len(mesh.faces)


def points_on_surface(field: AnalyticField, n: int = 20000) -> np.ndarray:
    """Random points moved onto the surface along the gradient of the distance."""
    points = (
        torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 2 - 1
    ).requires_grad_()
    for _ in range(4):
        distance = field.distances(points).amin(dim=0)
        (gradient,) = torch.autograd.grad(distance.sum(), points)
        points = (points - distance[:, None] * gradient).detach().requires_grad_()
    return points.detach()[surface_error(field, points.detach()) < 1e-3].numpy()


@pytest.mark.parametrize(
    ("field", "euler"), [(sphere_field(), 2), (torus_field(), 0), (l_field(), 2)], ids=["sphere", "torus", "l"]
)
def test_known_shapes_come_out_within_a_cell(field: AnalyticField, euler: int) -> None:
    mesh = surface_of(field)
    truth = points_on_surface(field)
    assert len(truth) > 1000
    to_mesh = cKDTree(mesh.vertices).query(truth)[0]
    to_truth = surface_error(field, torch.as_tensor(mesh.vertices).float())
    assert to_mesh.max() < 1.5 * CELL and to_mesh.mean() < CELL
    assert float(to_truth.max()) < 0.5 * CELL and float(to_truth.mean()) < 0.1 * CELL
    assert is_watertight(mesh)
    assert face_bodies(mesh).max() == 0
    assert euler_number(mesh) == euler
    assert face_volumes(mesh).sum() > 0


def test_a_gap_between_two_bodies_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a whole part of the grid lies in cells that are not occupied."""
    monkeypatch.setattr(surface, "CHUNK", 64)  # a slab is then one row of samples
    field = AnalyticField([(box((x, 0.0, 0.0), (0.15, 0.15, 0.15)), RED) for x in (-0.6, 0.6)])
    occupied = torch.zeros(8, 8, 8, dtype=torch.bool)
    occupied[:3], occupied[5:] = True, True
    progress: list[float] = []
    grid = sample_density(field, occupied, 32, progress.append)
    everywhere = sample_density(field, torch.ones_like(occupied), 32)
    assert progress[-1] == 1.0 and progress == sorted(progress)
    assert torch.equal(grid.sigma[12:20], torch.zeros_like(grid.sigma[12:20]))
    assert torch.equal(grid.sigma[:12], everywhere.sigma[:12]) and torch.equal(grid.sigma[20:], everywhere.sigma[20:])


def test_refinement_finds_the_steep_surface_that_straight_lines_miss() -> None:
    field = sphere_field()
    grid = sample_density(field, all_occupied(), RESOLUTION)
    straight = marching_cubes(grid, 2.0)
    refined = refine_on_edges(straight, grid, field, all_occupied(), 2.0)
    sigma = [field.density(torch.as_tensor(mesh.vertices).float()) for mesh in (straight, refined)]
    errors = [float((value / 2.0).log().abs().mean()) for value in sigma]
    assert errors[1] < 0.2 * errors[0]


def test_normals_point_outward() -> None:
    mesh = surface_of(sphere_field())
    radial = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    normals = vertex_normals(mesh)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    assert (normals * radial).sum(axis=1).min() > 0.95


def test_a_body_that_touches_the_wall_is_closed_at_the_wall() -> None:
    mesh = surface_of(AnalyticField([(box((0.0, 0.0, -0.8), (0.4, 0.4, 0.6)), RED)]))
    assert is_watertight(mesh)
    assert mesh.vertices[:, 2].min() == pytest.approx(-1.0, abs=0.05 * CELL)


def test_nothing_above_the_threshold_gives_an_empty_mesh() -> None:
    grid = sample_density(sphere_field(), all_occupied(), 16)
    assert len(marching_cubes(grid, 1e6).faces) == 0


@pytest.mark.parametrize("field", [sphere_field(), l_field(), torus_field()], ids=["sphere", "l", "torus"])
def test_slabs_make_the_same_surface_as_the_whole(field: AnalyticField, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sample_density(field, all_occupied(), 128)
    whole = marching_cubes(grid, THRESHOLD)
    monkeypatch.setattr(surface, "SLAB", 100_000)
    slabs = marching_cubes(grid, THRESHOLD)
    assert len(slabs.vertices) == len(whole.vertices) and len(slabs.faces) == len(whole.faces)
    assert cKDTree(slabs.vertices).query(whole.vertices)[0].max() < 1e-12
    assert is_watertight(slabs) and face_volumes(slabs).sum() == pytest.approx(face_volumes(whole).sum())


def test_samples_exactly_on_the_threshold_leave_no_crack(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sigma = torch.randint(0, 3, (20, 20, 20), generator=generator).half()
    monkeypatch.setattr(surface, "SLAB", 3 * 22**2)
    mesh = marching_cubes(DensityGrid(sigma, (2, 2, 2), 24, 0), 1.0)
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there, back = (set(map(tuple, np.unique(pairs, axis=0))) for pairs in (edges, edges[:, ::-1]))
    assert there == back and len(there) == len(edges)


def test_the_field_is_asked_in_bounded_chunks_and_only_where_occupied(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Recording(AnalyticField):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            asked.append(points)
            return super().density(points)

    monkeypatch.setattr(surface, "CHUNK", 1000)
    occupied = torch.zeros(8, 8, 8, dtype=torch.bool)
    occupied[4:, 2:6, :4] = True
    grid = sample_density(Recording([(sphere((0.0, 0.0, 0.0), 0.6), RED)]), occupied, 32)
    points = torch.cat(asked)
    assert max(len(part) for part in asked) <= 1000
    assert len(points) == 16 * 16 * 16
    assert points[:, 0].min() > 0 and points[:, 1].abs().max() < 0.5 and points[:, 2].max() < 0
    assert grid.low == (16, 8, 0) and grid.sigma.shape == (16, 16, 16)  # nothing is kept around it
    centers = (torch.cartesian_prod(torch.arange(16, 32), torch.arange(8, 24), torch.arange(16)) + 0.5) / 16 - 1
    expected = sphere_field().density(centers).reshape(16, 16, 16)
    assert torch.allclose(grid.sigma.float(), expected, rtol=1e-3, atol=1e-4)


def test_values_that_are_not_finite_count_as_empty(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(AnalyticField):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            sigma = super().density(points)
            sigma[points[:, 0] > 0.9] = float("nan")
            sigma[points[:, 0] < -0.9] = float("inf")
            return sigma

    with caplog.at_level(logging.WARNING):
        grid = sample_density(Broken([(sphere((0.0, 0.0, 0.0), 0.6), RED)]), all_occupied(), 40)
    assert torch.isfinite(grid.sigma).all() and grid.highest == 80
    assert grid.non_finite == 2 * 2 * 40 * 40
    assert "not finite" in caplog.text


def test_small_holes_of_values_that_are_not_finite_are_closed() -> None:
    holes = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.2], [0.0, 0.58, 0.0]])

    class Holed(AnalyticField):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            near = torch.cdist(points, holes).amin(dim=1) < 1.2 * CELL
            return torch.where(near, torch.nan, super().density(points))

    field = Holed([(sphere((0.0, 0.0, 0.0), 0.6), RED)])
    grid = sample_density(field, all_occupied(), RESOLUTION)
    assert grid.non_finite > 10
    mesh = marching_cubes(grid, THRESHOLD)
    assert face_bodies(mesh).max() == 0 and is_watertight(mesh)
    assert face_volumes(mesh).sum() == pytest.approx(face_volumes(surface_of(sphere_field())).sum(), rel=0.005)
