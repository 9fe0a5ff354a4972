"""Cameras: where they stand, what they look at, how they are drawn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nerf_bridge.config import CameraConfig
from nerf_bridge.scene.cameras import Cameras, orbit_cameras, sample_cameras, turntable_cameras

azimuths = st.floats(-2 * math.pi, 4 * math.pi)
elevations = st.floats(-math.pi / 2, math.pi / 2)
distances = st.floats(0.5, 10.0)


def one_camera(azimuth: float, elevation: float = 0.0, distance: float = 3.0, fovy: float = 0.7) -> Cameras:
    return orbit_cameras(
        *(torch.tensor([value], dtype=torch.float64) for value in (azimuth, elevation, distance, fovy))
    )


@settings(max_examples=50, deadline=None)
@given(azimuths, elevations, distances)
def test_camera_is_a_rotation_that_looks_at_the_centre(a: float, e: float, d: float) -> None:
    c2w = one_camera(a, e, d).c2w[0].double()
    rotation, position = c2w[:3, :3], c2w[:3, 3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=1e-6)
    expected = d * torch.tensor([math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)]).double()
    assert torch.allclose(position, expected, atol=1e-5)
    assert torch.allclose(position - d * rotation[:, 2], torch.zeros(3).double(), atol=1e-5)  # along -z lies the centre
    assert rotation[2, 0].abs() < 1e-6 and rotation[2, 1] > -1e-6  # right is level, up is not below the horizon
    assert torch.equal(c2w[3], torch.tensor([0.0, 0.0, 0.0, 1.0]).double())


def test_azimuth_zero_sees_the_front_with_x_to_the_right() -> None:
    c2w = one_camera(0.0).c2w[0]
    assert torch.allclose(c2w[:3, 3], torch.tensor([0.0, -3.0, 0.0]), atol=1e-6)
    assert torch.allclose(c2w[:3, 0], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(c2w[:3, 1], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)


def test_azimuth_grows_counter_clockwise_seen_from_above() -> None:
    assert torch.allclose(one_camera(math.pi / 2).c2w[0, :3, 3], torch.tensor([3.0, 0.0, 0.0]), atol=1e-6)


def test_straight_from_above_is_still_a_rotation() -> None:
    c2w = one_camera(0.0, math.pi / 2).c2w[0]
    assert torch.allclose(c2w[:3, 1], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert torch.linalg.det(c2w[:3, :3]).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("views", [1, 3, 4, 8])
def test_azimuths_are_stratified(views: int) -> None:
    generator = torch.Generator().manual_seed(views)
    for _ in range(20):
        azimuth = sample_cameras(CameraConfig(views=views), generator).azimuth_rad
        sectors = (azimuth / (2 * math.pi / views)).floor().long() % views
        assert sorted(sectors.tolist()) == list(range(views))


def test_draws_stay_in_their_ranges_and_elevation_is_uniform_on_the_sphere() -> None:
    config = CameraConfig(views=64, elevation_min_deg=-10, elevation_max_deg=80, fovy_min_deg=30, fovy_max_deg=50)
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_cameras(config, generator) for _ in range(100)]
    elevation = torch.cat([cameras.elevation_rad for cameras in drawn])
    distance = torch.cat([cameras.distance for cameras in drawn])
    fovy_deg = torch.rad2deg(torch.cat([cameras.fovy_rad for cameras in drawn]))
    low, high = math.sin(math.radians(-10)), math.sin(math.radians(80))
    sine = torch.sin(elevation)
    assert low - 1e-6 <= sine.min() and sine.max() <= high + 1e-6
    quarters = torch.histc((sine - low) / (high - low), bins=4, min=0, max=1) / len(sine)
    assert torch.allclose(quarters, torch.full((4,), 0.25), atol=0.03)
    assert 2.8 <= distance.min() < 2.85 and 3.15 < distance.max() <= 3.2
    assert 30 - 1e-4 <= fovy_deg.min() < 31 and 49 < fovy_deg.max() <= 50 + 1e-4


def test_same_generator_state_draws_the_same_cameras() -> None:
    first, again, other = (sample_cameras(CameraConfig(), torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first.c2w, again.c2w)
    assert not torch.equal(first.c2w, other.c2w)


def test_turntable_starts_at_the_front_and_goes_round_evenly() -> None:
    cameras = turntable_cameras(8, elevation_rad=0.3, distance=3.0, fovy_rad=0.7)
    assert torch.allclose(cameras.azimuth_rad, torch.arange(8) * (math.pi / 4))
    assert torch.allclose(cameras.c2w[:, :3, 3].norm(dim=-1), torch.full((8,), 3.0))
    assert torch.allclose(cameras.elevation_rad, torch.full((8,), 0.3))


def test_selection_keeps_the_batch_dimension() -> None:
    cameras = turntable_cameras(5, 0.0, 3.0, 0.7)
    assert len(cameras[1:3]) == 2
    assert torch.equal(cameras[[4, 0]].azimuth_rad, cameras.azimuth_rad[[4, 0]])
    assert len(cameras[:0]) == 0
    assert cameras.to("cpu").c2w.dtype == torch.float32
    with pytest.raises(TypeError, match=r"cameras\[\[2\]\]"):
        cameras[2]


@pytest.mark.parametrize("views", [4, 8, 12])
def test_views_of_a_group_share_all_but_an_even_azimuth(views):
    config = CameraConfig(views=views, distance_min=2, distance_max=4, fovy_min_deg=30, fovy_max_deg=60)
    cameras = sample_cameras(config, torch.Generator().manual_seed(5), group=4)
    for group in (range(i, i + 4) for i in range(0, views, 4)):
        some = cameras[list(group)]
        for shared in (some.elevation_rad, some.distance, some.fovy_rad):
            assert (shared == shared[0]).all()
        steps = torch.remainder(some.azimuth_rad.roll(-1) - some.azimuth_rad, 2 * math.pi)
        assert torch.allclose(steps, torch.full((4,), math.pi / 2), atol=1e-5)
    spread = torch.remainder(cameras.azimuth_rad, 2 * math.pi).sort().values
    assert torch.allclose(spread.diff(), torch.full((views - 1,), 2 * math.pi / views), atol=1e-5)


def test_the_whole_list_comes_again_and_again() -> None:
    cameras = turntable_cameras(3, 0.2, 3.0, 0.7)
    again = cameras.repeat(2)
    for name in ("c2w", "fovy_rad", "azimuth_rad", "elevation_rad", "distance"):
        values = getattr(cameras, name)
        assert torch.equal(getattr(again, name), torch.cat([values, values]))
