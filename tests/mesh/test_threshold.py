"""The threshold that matches the silhouettes, and the fields that have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import RED, AnalyticField, all_occupied, l_field, silhouettes_of, sphere, torus_field

from nerf_bridge.errors import RunError
from nerf_bridge.mesh.data import DensityGrid, Silhouettes
from nerf_bridge.mesh.surface import marching_cubes, sample_density
from nerf_bridge.mesh.threshold import choose_threshold, silhouette_iou


def soft_ball(points: torch.Tensor) -> torch.Tensor:
    return 30 * torch.exp(-((points.norm(dim=-1) / 0.4) ** 2))


class SoftBall(AnalyticField):
    """No edge at all, so that the threshold alone decides the size of the mesh."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return soft_ball(points)


def test_the_chosen_threshold_beats_the_others() -> None:
    field = SoftBall([(sphere((0.0, 0.0, 0.0), 0.4), RED)])
    grid = sample_density(field, all_occupied(), 48)
    silhouettes = silhouettes_of(field, views=4, size=48)
    choice = choose_threshold(grid, silhouettes, "torch")
    assert choice.iou > 0.95
    assert choice.iou == max(iou for _, iou in choice.curve)
    assert [t for t, _ in choice.curve] == sorted(t for t, _ in choice.curve)
    wrong = silhouette_iou(marching_cubes(grid, 15.0), silhouettes, "torch")
    assert wrong < 0.6
    # sigma(r) sqrt(pi) 0.4 = ln 2 on the ray that grazes the silhouette: the field is half opaque there
    assert choice.threshold == pytest.approx(np.log(2) / (np.sqrt(np.pi) * 0.4), rel=0.3)


@pytest.mark.parametrize("field", [torus_field(), l_field()], ids=["torus", "l"])
def test_sharp_shapes_agree(field: AnalyticField) -> None:
    grid = sample_density(field, all_occupied(), 64)
    assert choose_threshold(grid, silhouettes_of(field, views=4), "torch").iou > 0.95


def test_a_finer_grid_is_thinned_out_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf_bridge.mesh.threshold.SEARCH_RESOLUTION", 32)
    field = torus_field()
    grid = sample_density(field, all_occupied(), 64)
    assert choose_threshold(grid, silhouettes_of(field, views=4), "torch").iou > 0.9


def test_an_empty_field_is_an_error_with_advice() -> None:
    silhouettes = silhouettes_of(torus_field(), views=2, size=16)
    with pytest.raises(RunError, match=r"scene is empty.*0.*--steps"):
        choose_threshold(DensityGrid(np.zeros((16, 16, 16), dtype=np.float32), 0), silhouettes, "torch")


def test_a_field_that_is_nowhere_finite_is_an_error_that_says_so() -> None:
    silhouettes = silhouettes_of(torus_field(), views=2, size=16)
    with pytest.raises(RunError, match="not finite"):
        choose_threshold(DensityGrid(np.zeros((16, 16, 16), dtype=np.float32), 16**3), silhouettes, "torch")


def test_thin_fog_is_an_error_with_advice() -> None:
    cameras = silhouettes_of(torus_field(), views=2, size=16).cameras
    fog = Silhouettes(cameras, torch.full((2, 16, 16), 0.4))
    with pytest.raises(RunError, match=r"fog.*not opaque.*--steps"):
        choose_threshold(DensityGrid(np.full((16, 16, 16), 0.6, dtype=np.float32), 0), fog, "torch")


def test_silhouettes_that_no_mesh_makes_are_an_error() -> None:
    field = torus_field()
    here = silhouettes_of(field, views=2, size=32)
    corner = torch.zeros_like(here.opacity)
    corner[:, :4, :4] = 1
    with pytest.raises(RunError, match="fog without a surface"):
        choose_threshold(sample_density(field, all_occupied(), 32), Silhouettes(here.cameras, corner), "torch")


def test_opacity_that_is_not_a_number_counts_as_nothing() -> None:
    field = torus_field()
    silhouettes = silhouettes_of(field, views=2, size=32)
    holed = silhouettes.opacity.clone()
    holed[:, 0, 0] = float("nan")
    grid = sample_density(field, all_occupied(), 32)
    with_nan = choose_threshold(grid, Silhouettes(silhouettes.cameras, holed), "torch")
    assert with_nan == choose_threshold(grid, silhouettes, "torch")
