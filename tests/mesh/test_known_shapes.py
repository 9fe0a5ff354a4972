"""Shapes with a known surface through the whole export: distance, genus, bodies, closedness, normals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import manifold3d
import numpy as np
import pytest
import torch
import trimesh
from analytic_fields import BLUE, GREEN, RED, AnalyticField, all_occupied, box, silhouettes_of, sphere, torus_field
from scipy.spatial import cKDTree

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.data import Mesh, MeshStatistics
from nerf_bridge.mesh.export import export_mesh
from nerf_bridge.mesh.geometry import face_areas, face_bodies, vertex_normals

RESOLUTION = 64
CELL = 2 / RESOLUTION
TO_WORLD = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


def pierced_box(points: torch.Tensor) -> torch.Tensor:
    """A box with a round hole along z."""
    hole = 0.22 - torch.hypot(points[:, 0], points[:, 1])
    return torch.maximum(box((0.0, 0.0, 0.0), (0.55, 0.5, 0.3))(points), hole)


def slanted_tube(points: torch.Tensor) -> torch.Tensor:
    """A tube along a horizontal line between the axes and the diagonals."""
    cosine, sine = math.cos(math.radians(22.5)), math.sin(math.radians(22.5))
    along = cosine * points[:, 0] + sine * points[:, 1]
    across = torch.hypot(cosine * points[:, 1] - sine * points[:, 0], points[:, 2])
    return torch.maximum((across - 0.21).abs() - 0.09, along.abs() - 0.85)


class SharpField(AnalyticField):
    """The density rises within a tenth of a cell, so that there is no doubt where the surface is."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return self.peak * torch.sigmoid(-self.distances(points).amin(dim=0) / (0.1 * CELL))


@dataclass(frozen=True)
class Shape:
    """A field and what its surface is like."""

    field: AnalyticField
    genus: int
    bodies: int


SHAPES = {
    "sphere": Shape(SharpField([(sphere((0.1, 0.0, -0.1), 0.6), RED)]), 0, 1),
    "torus": Shape(SharpField(torus_field().parts), 1, 1),
    "box with a hole": Shape(SharpField([(pierced_box, GREEN)]), 1, 1),
    "slanted tube": Shape(SharpField([(slanted_tube, RED)]), 1, 1),
    "two bodies": Shape(
        SharpField([(sphere((-0.45, 0.0, 0.0), 0.38), RED), (box((0.5, 0.1, 0.1), (0.3, 0.3, 0.3)), BLUE)]), 0, 2
    ),
    "thin plate": Shape(SharpField([(box((0.0, 0.0, 0.05), (0.6, 0.5, CELL)), BLUE)]), 0, 1),
}


@dataclass(frozen=True)
class Exported:
    """A shape, its file back in the world's axes and the box's units, its normals, and what was told of it."""

    shape: Shape
    mesh: Mesh
    normals: np.ndarray
    statistics: MeshStatistics


@pytest.fixture(scope="module", params=list(SHAPES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    shape = SHAPES[request.param]
    path = tmp_path_factory.mktemp("shape") / "asset.glb"
    silhouettes = silhouettes_of(shape.field, views=6, size=96)
    settings = MeshConfig(resolution=RESOLUTION, faces=4000, texture=128)
    statistics = export_mesh(shape.field, all_occupied(), silhouettes, settings, path, {}, "torch", "cpu")
    return read_back(shape, path, statistics)


def read_back(shape: Shape, path: Path, statistics: MeshStatistics) -> Exported:
    (part,) = trimesh.load(path, process=False).geometry.values()
    vertices = np.asarray(part.vertices) @ TO_WORLD
    low, high = np.array(statistics.bounds)
    placed = (vertices - vertices.min(axis=0)) * ((high - low) / np.ptp(vertices, axis=0)).mean() + low
    unique, first, group = np.unique(placed.round(6), axis=0, return_index=True, return_inverse=True)
    normals = np.asarray(part.vertex_normals) @ TO_WORLD
    return Exported(shape, Mesh(unique, group.reshape(-1)[part.faces]), normals[first], statistics)


def signed_distance(field: AnalyticField) -> Callable[[np.ndarray], np.ndarray]:
    return lambda points: field.distances(torch.as_tensor(points).float()).amin(dim=0).numpy()


def true_points(field: AnalyticField, n: int = 60_000) -> np.ndarray:
    """Random points of the box moved onto the surface along the gradient of the distance."""
    points = (torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    for _ in range(6):
        distance = field.distances(points).amin(dim=0)
        (gradient,) = torch.autograd.grad(distance.sum(), points)
        points = (points - distance[:, None] * gradient).detach().requires_grad_()
    on_surface = field.distances(points).amin(dim=0).abs() < 1e-3
    return points.detach()[on_surface].numpy()


def test_the_chamfer_distance_is_within_a_cell(exported: Exported) -> None:
    triangles = trimesh.Trimesh(exported.mesh.vertices, exported.mesh.faces, process=False)
    ours = trimesh.sample.sample_surface(triangles, 40_000, seed=0)[0]
    truth = true_points(exported.shape.field)
    to_truth, to_ours = np.abs(signed_distance(exported.shape.field)(ours)), cKDTree(ours).query(truth)[0]
    assert len(truth) > 5000
    assert to_truth.mean() + to_ours.mean() < CELL
    assert to_truth.max() < CELL and to_ours.max() < 2 * CELL


def test_genus_and_bodies_are_right(exported: Exported) -> None:
    faces = exported.mesh.faces
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    euler = len(exported.mesh.vertices) - len(edges) + len(faces)
    bodies = int(face_bodies(exported.mesh).max()) + 1
    assert bodies == exported.shape.bodies == exported.statistics.components
    assert euler == 2 * bodies - 2 * exported.shape.genus


def test_it_is_a_solid_that_others_accept(exported: Exported) -> None:
    assert exported.statistics.watertight
    triangles = trimesh.Trimesh(exported.mesh.vertices, exported.mesh.faces, process=False)
    assert triangles.is_watertight and triangles.is_winding_consistent and triangles.volume > 0
    corners, faces = exported.mesh.vertices.astype(np.float32), exported.mesh.faces.astype(np.uint32)
    solid = manifold3d.Manifold(manifold3d.Mesh(corners, faces))
    assert solid.status() == manifold3d.Error.NoError
    assert solid.volume() == pytest.approx(triangles.volume, rel=1e-3)
    assert len(solid.decompose()) == exported.shape.bodies


def test_no_face_is_degenerate_or_double_and_the_target_is_met(exported: Exported) -> None:
    faces = exported.mesh.faces
    assert len(np.unique(np.sort(faces, axis=1), axis=0)) == len(faces) == pytest.approx(4000, rel=0.01)
    assert face_areas(exported.mesh).min() > 1e-12


def test_the_normals_of_the_file_point_outward(exported: Exported) -> None:
    assert np.linalg.norm(exported.normals, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (exported.normals * vertex_normals(exported.mesh)).sum(axis=1).min() > 0.45
    outside = signed_distance(exported.shape.field)(exported.mesh.vertices + 0.5 * CELL * exported.normals)
    inside = signed_distance(exported.shape.field)(exported.mesh.vertices - 0.5 * CELL * exported.normals)
    assert (outside > inside).mean() > 0.99
