"""The training cameras and the rendering of a library from them."""

import math

import pytest
import torch

from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.render_views import render_views
from nerf_bridge.prior.views import DISTANCE, ELEVATION_DEG, FOVY_DEG, compose, render_library, training_cameras


def test_cameras_stand_evenly_on_the_sphere_between_the_elevations():
    cameras = training_cameras(4000, torch.Generator().manual_seed(0))
    low, high = (math.radians(e) for e in ELEVATION_DEG)
    elevation = cameras.elevation_rad
    assert low <= float(elevation.min()) < low + 0.02 and high - 0.02 < float(elevation.max()) <= high
    height = (elevation.sin() - math.sin(low)) / (math.sin(high) - math.sin(low))
    counts = torch.histc(height.float(), 8, 0, 1)
    assert float(counts.min()) > 400 and float(counts.max()) < 600
    azimuth = torch.histc(cameras.azimuth_rad.remainder(2 * math.pi).float(), 8, 0, 2 * math.pi)
    assert float(azimuth.min()) > 400 and float(azimuth.max()) < 600
    distance = cameras.c2w[:, :3, 3].norm(dim=-1)
    assert DISTANCE[0] - 1e-5 <= float(distance.min()) and float(distance.max()) <= DISTANCE[1] + 1e-5
    assert torch.allclose(cameras.fovy_rad, torch.tensor(math.radians(FOVY_DEG), dtype=cameras.fovy_rad.dtype))


@pytest.fixture(scope="module")
def models():
    return build_primitives(0, n_single=1, n_pairs=1)


@pytest.mark.compiler
def test_each_model_is_rendered_from_its_own_cameras(models):
    views = render_library(models, 2, seed=3, size=32, n_threads=1, show_progress=False)
    assert views.layers.shape == (4, 8, 32, 32) and views.layers.dtype == torch.uint8
    assert views.per_model == 2 and len(views.cameras) == 4
    model, rows = models[1], slice(2, 4)
    expected = render_views(
        model.vertices,
        model.faces,
        model.face_colors,
        model.face_tintable,
        views.cameras.c2w[rows].numpy(),
        views.cameras.fovy_rad[rows].numpy(),
        size=32,
    )
    assert torch.equal(views.layers[rows], torch.from_numpy(expected))
    assert bool((views.layers[:, 7].flatten(1).float().mean(1) > 5).all())


@pytest.mark.compiler
def test_the_seed_and_not_the_threads_decides(models):
    first, again, other = (
        render_library(models, 2, seed=seed, size=16, n_threads=n_threads, show_progress=False)
        for seed, n_threads in ((0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(first.layers, again.layers) and torch.equal(first.cameras.c2w, again.cameras.c2w)
    assert not torch.equal(first.layers, other.layers)


@pytest.mark.compiler
def test_composed_views_show_the_background_where_nothing_is(models):
    views = render_library(models, 1, seed=0, size=32, n_threads=1, show_progress=False).to("cpu")
    n = len(views.layers)
    blue = torch.tensor([0.0, 0.0, 1.0]).expand(n, 3)
    plain = compose(views.layers, torch.zeros(n, 3), torch.zeros(n, dtype=torch.bool), blue)
    empty = views.layers[:, 7] == 0
    assert bool(empty.any()) and bool((plain.permute(0, 2, 3, 1)[empty] == torch.tensor([0.0, 0.0, 1.0])).all())
    tinted = compose(views.layers, torch.tensor([[1.0, 0.0, 0.0]]).expand(n, 3), torch.ones(n, dtype=torch.bool), blue)
    tintable = views.layers[:, 6].flatten(1).any(1)
    changed = (tinted - plain).abs().amax((1, 2, 3)) > 0.05
    assert torch.equal(changed, tintable)
