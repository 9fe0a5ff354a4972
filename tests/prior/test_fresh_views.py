"""Views rendered while training, in the place of the old ones."""

import time

import pytest
import torch

from nerf_bridge.prior import fresh_views
from nerf_bridge.prior.batches import TrainingData
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.fresh_views import FreshViews
from nerf_bridge.prior.views import camera_numbers, render_library, render_model

PER_MODEL, SIZE = 2, 16


@pytest.fixture(scope="module")
def models() -> list[LibraryModel]:
    return build_primitives(0, n_single=2, n_pairs=1)


def data_of(models: list[LibraryModel]) -> TrainingData:
    """Training data whose words and tints are left empty: fresh views do not touch them."""
    views = render_library(models, PER_MODEL, 0, SIZE, 1, show_progress=False)
    none = torch.zeros(0)
    return TrainingData(views, camera_numbers(views.cameras), *[none] * 9)


def replace(fresh: FreshViews, data: TrainingData, n: int) -> None:
    """Take `n` models' views, waiting for them."""
    deadline = time.monotonic() + 30
    while n and time.monotonic() < deadline:
        n -= fresh.replace_one(data)
    assert n == 0


@pytest.mark.compiler
def test_every_model_gets_new_views_that_fit_its_new_cameras(models: list[LibraryModel]) -> None:
    data = data_of(models)
    before = data.views.layers.clone(), data.views.cameras.c2w.clone()
    fresh = FreshViews(models, PER_MODEL, seed=1, size=SIZE, n_threads=1)
    replace(fresh, data, len(models))
    fresh.stop()
    assert not (data.views.cameras.c2w == before[1]).flatten(1).all(1).any()
    assert not (data.views.layers == before[0]).flatten(1).all(1).any()
    assert torch.equal(data.features, camera_numbers(data.views.cameras))
    for i, model in enumerate(models):
        rows = slice(i * PER_MODEL, (i + 1) * PER_MODEL)
        assert torch.equal(data.views.layers[rows], render_model(model, data.views.cameras[rows], SIZE, 1))


def test_the_rendering_stops_when_told_though_nobody_takes_its_views(
    models: list[LibraryModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_views, "WAITING", 1)
    fresh = FreshViews(models, PER_MODEL, seed=1, size=SIZE, n_threads=1)
    time.sleep(0.2)
    fresh.stop()
    assert not fresh._thread.is_alive()


@pytest.mark.compiler
def test_a_failure_of_the_rendering_reaches_the_training(models: list[LibraryModel]) -> None:
    fresh = FreshViews(models, PER_MODEL, seed=1, size=0, n_threads=1)
    with pytest.raises(ValueError, match="at least 1"):
        replace(fresh, data_of(models), 1)
    fresh.stop()
