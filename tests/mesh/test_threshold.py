"""The threshold that matches the silhouettes, and the fields that have none."""

from __future__ import annotations

import math

import pytest
import torch
from analytic_fields import RED, AnalyticField, all_occupied, l_field, silhouettes_of, sphere, torus_field

from nerf_bridge.errors import RunError
from nerf_bridge.mesh.data import DensityGrid, Silhouettes
from nerf_bridge.mesh.silhouettes import silhouette_iou
from nerf_bridge.mesh.surface import marching_cubes, sample_density
from nerf_bridge.mesh.threshold import choose_threshold, highest_along_rays, sigma_at


def soft_ball(points: torch.Tensor) -> torch.Tensor:
    return 30 * torch.exp(-((points.norm(dim=-1) / 0.4) ** 2))


def even_grid(sigma: float, non_finite: int = 0) -> DensityGrid:
    return DensityGrid(torch.full((16, 16, 16), sigma).half(), (0, 0, 0), 16, non_finite)


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
    assert choice.threshold == pytest.approx(math.log(2) / (math.sqrt(math.pi) * 0.4), rel=0.3)


@pytest.mark.parametrize("field", [torus_field(), l_field()], ids=["torus", "l"])
def test_sharp_shapes_agree(field: AnalyticField) -> None:
    grid = sample_density(field, all_occupied(), 64)
    assert choose_threshold(grid, silhouettes_of(field, views=4), "torch").iou > 0.95


@pytest.mark.parametrize("field", [torus_field(), l_field()], ids=["torus", "l"])
def test_the_curve_tells_the_agreement_of_the_meshes(field: AnalyticField) -> None:
    grid = sample_density(field, all_occupied(), 64)
    silhouettes = silhouettes_of(field, views=4)
    curve = choose_threshold(grid, silhouettes, "torch").curve
    for threshold, iou in curve[::8]:
        mesh = marching_cubes(grid, threshold)
        assert silhouette_iou(mesh, silhouettes, "torch") == pytest.approx(iou, abs=0.02)


def test_the_highest_density_along_a_ray() -> None:
    field = SoftBall([(sphere((0.0, 0.0, 0.0), 0.4), RED)])
    silhouettes = silhouettes_of(field, views=2, size=33)
    highest = highest_along_rays(sample_density(field, all_occupied(), 96), silhouettes, "torch")
    assert highest.shape == (2, 33, 33)
    assert highest[:, 16, 16].tolist() == pytest.approx([30, 30], rel=0.02)  # through the middle
    assert not highest[:, 0, 0].any()


def test_density_between_the_samples_is_linear() -> None:
    sigma = torch.arange(4.0)[:, None, None] + 10 * torch.arange(5.0)[None, :, None] + 100 * torch.arange(6.0)
    grid = DensityGrid(sigma.half(), (2, 3, 4), 16, 0)
    index = torch.tensor([[0.0, 0, 0], [1.25, 2.5, 4.5], [3, 4, 5], [3.4, 4.4, 5.4], [3.6, 4, 5], [-0.6, 0, 0]])
    points = (index + torch.tensor(grid.low) + 0.5) * grid.cell - 1
    assert sigma_at(grid, points).tolist() == pytest.approx([0, 476.25, 543, 543, 0, 0], rel=1e-3)


def test_an_empty_field_is_an_error_with_advice() -> None:
    silhouettes = silhouettes_of(torus_field(), views=2, size=16)
    with pytest.raises(RunError, match=r"scene is empty.*0.*--steps"):
        choose_threshold(even_grid(0.0), silhouettes, "torch")


def test_a_field_that_is_nowhere_finite_is_an_error_that_says_so() -> None:
    silhouettes = silhouettes_of(torus_field(), views=2, size=16)
    with pytest.raises(RunError, match="not finite"):
        choose_threshold(even_grid(0.0, 16**3), silhouettes, "torch")


def test_thin_fog_is_an_error_with_advice() -> None:
    cameras = silhouettes_of(torus_field(), views=2, size=16).cameras
    fog = Silhouettes(cameras, torch.full((2, 16, 16), 0.4))
    with pytest.raises(RunError, match=r"fog.*not opaque.*--steps"):
        choose_threshold(even_grid(0.6), fog, "torch")


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
