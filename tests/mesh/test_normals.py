"""Vertex normals from the density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import AnalyticField, all_occupied, l_field, sphere_field, torus_field

from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import vertex_normals
from nerf_bridge.mesh.normals import gradient_normals
from nerf_bridge.mesh.simplify import decimate
from nerf_bridge.mesh.surface import marching_cubes, refine_on_edges, sample_density

STEP = 2 * 2 / 64


def surface_of(field: AnalyticField, faces: int) -> Mesh:
    grid = sample_density(field, all_occupied(), 64)
    mesh = refine_on_edges(marching_cubes(grid, 40.0), grid, field, all_occupied(), 40.0)
    return decimate(clean(mesh, 1e-4, 0.1), faces)


def normals_of(field: AnalyticField, mesh: Mesh, outward: np.ndarray | None = None) -> np.ndarray:
    outward = vertex_normals(mesh) if outward is None else outward
    return gradient_normals(mesh.vertices, outward, field, all_occupied(), 40.0, STEP)


def true_normals(field: AnalyticField, points: np.ndarray) -> np.ndarray:
    at = torch.as_tensor(points, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(field.distances(at).amin(dim=0).sum(), at)
    return (gradient / gradient.norm(dim=1, keepdim=True)).numpy()


def angles_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos((a * b).sum(axis=1).clip(-1, 1)))


@pytest.mark.parametrize("field", [sphere_field(), torus_field()], ids=["sphere", "torus"])
def test_few_faces_have_the_normals_of_the_true_surface(field: AnalyticField) -> None:
    mesh = surface_of(field, 400)
    truth = true_normals(field, mesh.vertices)
    error, of_faces = (angles_deg(normals, truth).mean() for normals in (normals_of(field, mesh), vertex_normals(mesh)))
    assert error < 2 and error < 1.3 * of_faces


@pytest.mark.parametrize("field", [sphere_field(), torus_field()], ids=["sphere", "torus"])
def test_noise_in_the_density_counts_less_than_in_the_faces(field: AnalyticField) -> None:
    class Noisy(AnalyticField):
        def density(self, points: torch.Tensor) -> torch.Tensor:
            grain = (90.0 * points).sin().prod(dim=1)
            return self.peak * torch.sigmoid(-self.distances(points).amin(dim=0) / 0.01 + 1.5 * grain)

    noisy = Noisy(field.parts)
    mesh = surface_of(noisy, 4000)
    truth = true_normals(field, mesh.vertices)
    error, of_faces = (angles_deg(normals, truth).mean() for normals in (normals_of(noisy, mesh), vertex_normals(mesh)))
    assert error < 0.7 * of_faces


def test_they_are_unit_outward_and_equal_at_equal_points() -> None:
    mesh = surface_of(l_field(), 1000)
    outward = vertex_normals(mesh)
    normals = normals_of(l_field(), mesh)
    assert np.linalg.norm(normals, axis=1) == pytest.approx(1.0)
    assert ((normals * outward).sum(axis=1) >= 0.49).all()
    twice = Mesh(np.concatenate([mesh.vertices, mesh.vertices]), mesh.faces)
    double = normals_of(l_field(), twice, np.concatenate([outward, outward]))
    assert np.array_equal(double[: len(outward)], double[len(outward) :])


def test_where_the_density_is_flat_or_leans_away_the_faces_decide() -> None:
    points = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]])
    outward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])
    normals = gradient_normals(points, outward, sphere_field(), all_occupied(), 40.0, STEP)
    assert np.allclose(normals, outward)
