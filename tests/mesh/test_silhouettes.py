"""Silhouettes of a field, and agreement with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import AnalyticField, all_occupied, l_field, silhouettes_of, sphere_field

from nerf_bridge.mesh.data import Mesh, Silhouettes
from nerf_bridge.mesh.silhouettes import (
    ELEVATIONS_DEG,
    SIZE,
    VIEWS,
    mean_iou,
    opaque_masks,
    render_silhouettes,
    silhouette_iou,
)
from nerf_bridge.mesh.surface import marching_cubes, sample_density


def test_a_field_is_seen_from_all_around() -> None:
    seen = render_silhouettes(sphere_field(), all_occupied(), 1 / 10, "torch")
    assert seen.opacity.shape == (VIEWS, SIZE, SIZE) and len(seen.cameras) == VIEWS
    assert set(torch.rad2deg(seen.cameras.elevation_rad).round().tolist()) == set(ELEVATIONS_DEG)
    assert len(seen.cameras.azimuth_rad.unique()) == VIEWS
    shares = opaque_masks(seen).float().mean(dim=(1, 2))
    radius = 0.6 / (3**2 - 0.6**2) ** 0.5 / np.tan(np.radians(20)) * SIZE / 2  # of the ball in pixels, seen from 3
    assert shares.numpy() == pytest.approx(np.pi * radius**2 / SIZE**2, rel=0.12)


@pytest.mark.parametrize("field", [sphere_field(), l_field()], ids=["sphere", "l"])
def test_a_mesh_of_the_field_agrees_and_a_shifted_one_does_not(field: AnalyticField) -> None:
    seen = silhouettes_of(field, views=6, size=96)
    mesh = marching_cubes(sample_density(field, all_occupied(), 64), 10.0)
    assert silhouette_iou(mesh, seen, "torch") > 0.96
    assert silhouette_iou(Mesh(mesh.vertices + [0, 0, 0.2], mesh.faces), seen, "torch") < 0.85


def test_the_mean_iou_of_masks() -> None:
    empty, whole = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    half = whole.clone()
    half[:2] = False
    seen, masks = torch.stack([empty, half, whole, empty]), torch.stack([empty, whole, whole, half])
    assert mean_iou(seen, masks) == pytest.approx((1 + 0.5 + 1 + 0) / 4)


def test_opacity_that_is_no_number_is_not_opaque() -> None:
    cameras = render_silhouettes(sphere_field(), all_occupied(8), 0.5, "torch").cameras[[0]]
    opacity = torch.tensor([[[0.4, 0.6], [float("nan"), 1.0]]])
    assert opaque_masks(Silhouettes(cameras, opacity)).tolist() == [[[False, True], [False, True]]]
