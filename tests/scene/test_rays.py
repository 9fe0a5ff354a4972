"""Rays: unit length, through pixel centres, unmirrored; projecting a point on a ray gives its pixel back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerf_bridge.scene.cameras import Cameras, orbit_cameras, turntable_cameras
from nerf_bridge.scene.rays import camera_rays


def project(cameras: Cameras, points: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pixel coordinates (column, row), [b, n, 2], of world points [b, n, 3]; written apart from the ray code."""
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    local = (torch.linalg.inv(cameras.c2w.double()) @ homogeneous.double().mT).mT
    focal = 0.5 * height / torch.tan(0.5 * cameras.fovy_rad.double())
    column = 0.5 * width + focal[:, None] * local[..., 0] / -local[..., 2]
    row = 0.5 * height - focal[:, None] * local[..., 1] / -local[..., 2]
    return torch.stack([column, row], dim=-1)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 2 * math.pi),
    st.floats(-1.5, 1.5),
    st.floats(1.5, 6.0),
    st.floats(0.2, 2.0),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0.5, 8.0),
)
def test_points_on_rays_project_to_their_pixel_centres(
    a: float, e: float, d: float, fovy: float, height: int, width: int, along: float
) -> None:
    cameras = orbit_cameras(*(torch.tensor([x, x + 0.1]) for x in (a, e, d, fovy)))
    rays = camera_rays(cameras, height, width)
    points = (rays.origins + along * rays.directions).view(2, height * width, 3)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    expected = torch.stack([columns, rows], dim=-1).view(1, -1, 2).double()
    assert (project(cameras, points, height, width) - expected).abs().max() < 1e-3
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(len(rays)), atol=1e-6)


def test_front_view_has_x_to_the_right_and_z_at_the_top() -> None:
    rays = camera_rays(turntable_cameras(1, 0.0, 3.0, math.radians(40)), 4, 4)
    directions = rays.directions.view(4, 4, 3)
    assert (directions[:, 0, 0] < 0).all() and (directions[:, 3, 0] > 0).all()
    assert (directions[0, :, 2] > 0).all() and (directions[3, :, 2] < 0).all()
    assert (directions[..., 1] > 0.9).all()
    assert torch.allclose(rays.origins, torch.tensor([0.0, -3.0, 0.0]).expand(16, 3), atol=1e-6)


def test_middle_pixel_looks_at_the_centre_and_the_edge_at_half_the_field_of_view() -> None:
    fovy = math.radians(40)
    directions = camera_rays(turntable_cameras(1, 0.0, 3.0, fovy), 101, 7).directions.view(101, 7, 3)
    assert torch.allclose(directions[50, 3], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    top = math.atan2(directions[0, 3, 2].item(), directions[0, 3, 1].item())
    assert math.tan(top) == pytest.approx(math.tan(fovy / 2) * 100 / 101, rel=1e-5)


def test_rays_of_each_view_start_at_its_camera() -> None:
    cameras = turntable_cameras(3, 0.2, 3.0, 0.7)
    origins = camera_rays(cameras, 2, 5).origins.view(3, 10, 3)
    assert torch.equal(origins, cameras.c2w[:, None, :3, 3].expand(3, 10, 3))


def test_no_cameras_no_rays() -> None:
    assert len(camera_rays(turntable_cameras(3, 0.0, 3.0, 0.7)[:0], 4, 4)) == 0
