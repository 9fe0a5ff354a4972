"""Smoothing that keeps the volume."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_fields import RED, AnalyticField, all_occupied, sphere, sphere_field

from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_bodies, face_crosses, face_volumes, is_watertight
from nerf_bridge.mesh.smooth import smooth
from nerf_bridge.mesh.surface import marching_cubes, sample_density


def rough(field: AnalyticField) -> Mesh:
    mesh = clean(marching_cubes(sample_density(field, all_occupied(), 40), 40.0), 1e-4, 0.01)
    noise = np.random.default_rng(0).normal(scale=0.01, size=mesh.vertices.shape)
    return Mesh(mesh.vertices + noise, mesh.faces)


def roughness(mesh: Mesh) -> float:
    """Mean angle in radians between the faces' normals and the directions from the origin."""
    crosses = face_crosses(mesh)
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    cosine = (crosses * middles).sum(axis=1) / np.linalg.norm(crosses, axis=1) / np.linalg.norm(middles, axis=1)
    return float(np.arccos(cosine.clip(-1, 1)).mean())


def test_noise_goes_and_shape_and_volume_stay() -> None:
    mesh = rough(sphere_field())
    smoothed = smooth(mesh, 10)
    assert roughness(smoothed) < 0.3 * roughness(mesh)
    assert face_volumes(smoothed).sum() == pytest.approx(face_volumes(mesh).sum(), rel=1e-9)
    assert np.linalg.norm(smoothed.vertices, axis=1).std() < 0.5 * np.linalg.norm(mesh.vertices, axis=1).std()
    assert np.array_equal(smoothed.faces, mesh.faces) and is_watertight(smoothed)


def test_a_hundred_passes_do_not_shrink_it() -> None:
    mesh = rough(sphere_field())
    radius = np.linalg.norm(smooth(mesh, 100).vertices, axis=1)
    assert radius.mean() == pytest.approx(np.linalg.norm(mesh.vertices, axis=1).mean(), rel=0.01)
    assert radius.std() < 0.01


def test_each_body_keeps_its_volume_and_place() -> None:
    field = AnalyticField([(sphere((-0.5, 0.0, 0.0), 0.35), RED), (sphere((0.5, 0.1, 0.2), 0.2), RED)])
    mesh = rough(field)
    smoothed = smooth(mesh, 5)
    body = face_bodies(mesh)
    before, after = (np.bincount(body, face_volumes(m)) for m in (mesh, smoothed))
    assert after == pytest.approx(before, rel=1e-9) and len(before) == 2
    for number in (0, 1):
        used = np.unique(mesh.faces[body == number])
        assert smoothed.vertices[used].mean(axis=0) == pytest.approx(mesh.vertices[used].mean(axis=0), abs=2e-3)


def test_no_pass_and_no_face_change_nothing() -> None:
    mesh = rough(sphere_field())
    assert smooth(mesh, 0) is mesh
    empty = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert smooth(empty, 3) is empty
