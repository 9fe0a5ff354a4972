"""Colours of the field in the texture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import BLUE, GREEN, RED, AnalyticField, all_occupied, clear_points, l_field, sphere

from nerf_bridge.mesh.bake import bake, pad_charts, seen_colors
from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.surface import marching_cubes, sample_density
from nerf_bridge.mesh.unwrap import unwrap

SIZE = 256


@pytest.fixture(scope="module", params=["xatlas", "grid"])
def unwrapped(request: pytest.FixtureRequest) -> UnwrappedMesh:
    mesh = clean(marching_cubes(sample_density(l_field(), all_occupied(), 48), 40.0), 1e-4, 0.1)
    surface = to_face_count(mesh, 1000, 0.1)
    return unwrap(surface, SIZE, 60.0) if request.param == "xatlas" else unwrap(surface, SIZE, 60.0, ("/nowhere",))


def looked_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """[n, 3] colours in 0..1 of the nearest texels; v points up."""
    size = len(texture)
    column = (uv[:, 0] * size).astype(int).clip(0, size - 1)
    row = ((1 - uv[:, 1]) * size).astype(int).clip(0, size - 1)
    return texture[row, column] / 255


def test_every_point_of_the_surface_gets_the_field_s_colour(unwrapped: UnwrappedMesh) -> None:
    field = l_field()
    texture = bake(unwrapped, field, all_occupied(), SIZE, 2 / 48, "torch")
    assert texture.shape == (SIZE, SIZE, 3) and texture.dtype == np.uint8
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], size=(len(unwrapped.faces), 4))
    corners = unwrapped.faces[:, None, :].repeat(4, axis=1)
    points = torch.as_tensor(np.einsum("fsk,fskd->fsd", weights, unwrapped.vertices[corners]).reshape(-1, 3)).float()
    uv = np.einsum("fsk,fskd->fsd", weights, unwrapped.uv[corners]).reshape(-1, 2)
    clear = clear_points(field, points).numpy()
    error = np.abs(looked_up(texture, uv) - field(points)[1].numpy()).max(axis=1)[clear]
    assert clear.sum() > 2000
    assert np.quantile(error, 0.99) < 0.01


def test_an_eye_outside_sees_the_skin_not_the_core() -> None:
    field = AnalyticField([(sphere((0.0, 0.0, 0.0), 0.5), RED), (sphere((0.0, 0.0, 0.0), 0.5), GREEN)])

    class Layered(AnalyticField):
        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            core = points.norm(dim=-1, keepdim=True) < 0.47
            return 1000 * (points.norm(dim=-1) < 0.5).float(), torch.where(core, torch.tensor(BLUE), torch.tensor(RED))

    point, normal = torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    color = seen_colors(Layered(field.parts), all_occupied(), point, normal, 0.04)
    assert torch.allclose(color, torch.tensor([RED]), atol=1e-3)


def test_colours_that_are_no_numbers_are_left_out() -> None:
    class Broken(AnalyticField):
        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            sigma, albedo = torch.full((len(points),), 50.0), torch.tensor([RED]).repeat(len(points), 1)
            albedo[points[:, 0] > 0.5] = float("nan")
            sigma[points[:, 0] < 0.47] = float("inf")
            return sigma, albedo

    points = torch.tensor([[0.5, 0.0, 0.0], [0.9, 0.0, 0.0]])
    colors = seen_colors(Broken([]), all_occupied(), points, torch.tensor([[1.0, 0, 0]]).repeat(2, 1), 0.04)
    assert torch.allclose(colors, torch.tensor([RED, (0.5, 0.5, 0.5)]), atol=1e-5)


def test_space_between_charts_takes_the_nearest_colour() -> None:
    texture = np.zeros((8, 8, 3), dtype=np.uint8)
    covered = np.zeros((8, 8), dtype=bool)
    texture[2, 2], texture[2, 6] = (10, 20, 30), (40, 50, 60)
    covered[2, 2] = covered[2, 6] = True
    padded = pad_charts(texture, covered)
    assert (padded[:, :4] == (10, 20, 30)).all() and (padded[:, 5:] == (40, 50, 60)).all()
    assert np.array_equal(pad_charts(texture, np.zeros((8, 8), dtype=bool)), texture)
