"""Numbers of pictures against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nerf_bridge.evaluate import measures
from nerf_bridge.evaluate.measures import Spread, frechet_distance, mean_spread, seed_spread


def gaussian(n, mean, spread, seed):
    return torch.tensor(mean) + torch.tensor(spread) * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_of_gaussians():
    a, b = gaussian(200_000, [0.0, 0.0], [1.0, 2.0], 0), gaussian(200_000, [3.0, 4.0], [2.0, 1.0], 1)
    assert frechet_distance(a, b) == pytest.approx(25 + 1 + 1, rel=0.01)  # means 5 apart, deviations 1 and 1 apart
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_the_frechet_distance_knows_correlation():
    flat = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    round_ = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(flat, round_) == pytest.approx(2 + 2 - 2 * 2**0.5, rel=0.02)  # trace of the root is sqrt 2


def test_fewer_pictures_than_features_are_no_problem_but_one_is():
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(few[:1], few)


def test_spreads():
    figure = mean_spread([[0.0, 1.0], [1.0], [0.0, 0.0]])
    assert figure.value == pytest.approx(0.5) and 0.1 < figure.p10 < 0.5 < figure.p90 < 0.9
    assert mean_spread([[1.0]] * 9) == Spread(1.0, 1.0, 1.0)
    wide, narrow = mean_spread([[0.0], [1.0]] * 4), mean_spread([[0.0], [1.0]] * 100)
    assert wide.p90 - wide.p10 > 3 * (narrow.p90 - narrow.p10)
    assert seed_spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(1.2), pytest.approx(5.2))


def test_saturation():
    assert measures.saturation(np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]])) == pytest.approx(0.5)
    assert measures.saturation(np.zeros((0, 3))) == 0.0


def test_sharpness_is_of_the_surface_and_not_of_the_outline():
    coverage = torch.zeros(1, 16, 16)
    coverage[:, 4:12, 4:12] = 1
    plain = coverage[:, None].expand(-1, 3, -1, -1)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
    assert measures.sharpness(plain, coverage) == 0.0
    assert measures.sharpness(plain * board, coverage) == pytest.approx(4.0)
    assert measures.sharpness(plain * board, torch.zeros(1, 16, 16)) == 0.0


def test_silhouettes():
    square, bar = torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)
    square[2:6, 2:6] = True
    bar[2:6, 3:5] = True
    assert measures.overlap(square, bar) == pytest.approx(0.5)
    assert measures.overlap(~square & square, ~bar & bar) == 1.0
    body_of_revolution = torch.stack([square] * 8)
    plank = torch.stack([square, square, bar, bar] * 2)
    assert measures.silhouette_change(body_of_revolution) == 0.0
    assert measures.silhouette_change(plank) == pytest.approx(0.25)  # half at 90 degrees, the same at 180
    assert measures.silhouette_agreement(body_of_revolution, plank) == pytest.approx(0.75)
