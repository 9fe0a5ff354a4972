"""Colours and normals of the field in the textures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic_fields import BLUE, GREEN, RED, AnalyticField, all_occupied, clear_points, l_field, sphere
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf_bridge.mesh.bake import Source, bake, field_normals, nearest_covered, seen_colors
from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import UnwrappedMesh
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.surface import marching_cubes, sample_density
from nerf_bridge.mesh.unwrap import unwrap
from nerf_bridge.ops.raster import rasterize_uv
from nerf_bridge.ops.texture import look_up

SIZE, CELL = 256, 2 / 48
NO_XATLAS = ("/nowhere",)


def source_of(field: AnalyticField, cell: float = CELL) -> Source:
    return Source(field, all_occupied(), 40.0, cell)


@pytest.fixture(scope="module", params=["xatlas", "grid"])
def unwrapped(request: pytest.FixtureRequest) -> UnwrappedMesh:
    mesh = clean(marching_cubes(sample_density(l_field(), all_occupied(), 48), 40.0), 1e-4, 0.1)
    surface = to_face_count(mesh, 1000, 0.1)
    worker = () if request.param == "xatlas" else (NO_XATLAS,)
    return unwrap(surface, SIZE, 60.0, 4.0, *worker)


def looked_up(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """[n, 3] colours in 0..1 of the nearest texels; v points up."""
    size = len(texture)
    column = (uv[:, 0] * size).astype(int).clip(0, size - 1)
    row = ((1 - uv[:, 1]) * size).astype(int).clip(0, size - 1)
    return texture[row, column] / 255


def on_surface(mesh: UnwrappedMesh, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[f * s, c] `values` of the vertices at s places of each face, by barycentrics [f, s, 3]."""
    corners = mesh.faces[:, None, :].repeat(weights.shape[1], axis=1)
    return np.einsum("fsk,fskd->fsd", weights, values[corners]).reshape(-1, values.shape[1])


def test_every_point_of_the_surface_gets_the_field_s_colour(unwrapped: UnwrappedMesh) -> None:
    field = l_field()
    texture, normal = bake(unwrapped, source_of(field), SIZE, "torch", None)
    assert texture.shape == (SIZE, SIZE, 3) and texture.dtype == np.uint8 and normal is None
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], size=(len(unwrapped.faces), 4))
    points = torch.as_tensor(on_surface(unwrapped, unwrapped.vertices, weights)).float()
    clear = clear_points(field, points).numpy()
    seen = looked_up(texture, on_surface(unwrapped, unwrapped.uv, weights))
    error = np.abs(seen - field(points)[1].numpy()).max(axis=1)[clear]
    assert clear.sum() > 2000
    assert np.quantile(error, 0.99) < 0.01


def test_strips_and_chunks_change_nothing(unwrapped: UnwrappedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(l_field())
    told: list[float] = []
    whole = bake(unwrapped, source, 128, "torch", field_normals(source), told.append)
    assert told[-1] == 1.0
    monkeypatch.setattr("nerf_bridge.mesh.texels.STRIP", 128 * 20)  # 20 rows, and 8 at the end
    monkeypatch.setattr("nerf_bridge.mesh.texels.CHUNK", 999)
    told.clear()
    for a, b in zip(whole, bake(unwrapped, source, 128, "torch", field_normals(source), told.append), strict=True):
        assert (np.abs(a.astype(int) - b) > 1).mean() < 0.02  # rounding decides of texels on an edge
    assert told == sorted(told) and len(told) > 7 and told[-1] == 1.0


def test_colours_are_those_of_the_field_s_surface_though_the_mesh_lies_elsewhere() -> None:
    """A ball whose skin is a cell thick, and a mesh that lies up to two cells off it."""
    cell = 0.04

    class Skin(AnalyticField):
        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            core = points.norm(dim=-1, keepdim=True) < 0.5 - cell
            return self.density(points), torch.where(core, torch.tensor(BLUE), torch.tensor(RED))

    field = Skin([(sphere((0.0, 0.0, 0.0), 0.5), RED)])
    ball = AnalyticField([(sphere((0.0, 0.0, 0.0), 0.5), RED)])
    mesh = clean(marching_cubes(sample_density(ball, all_occupied(), 48), 40.0), 1e-4, 0.1)
    unwrapped = unwrap(to_face_count(mesh, 300, 0.1), 128, 60.0, 4.0, NO_XATLAS)
    for shift in (-1.5 * cell, 1.5 * cell):
        moved = UnwrappedMesh(
            unwrapped.vertices + shift * unwrapped.normals, unwrapped.normals, unwrapped.uv, unwrapped.faces, "grid"
        )
        texture, _ = bake(moved, source_of(field, cell), 128, "torch", None)
        assert np.abs(texture / 255 - RED).max(axis=2).mean() < 0.1  # the core shows through a little


def test_an_eye_outside_sees_the_skin_not_the_core() -> None:
    class Layered(AnalyticField):
        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            core = points.norm(dim=-1, keepdim=True) < 0.47
            return 1000 * (points.norm(dim=-1) < 0.5).float(), torch.where(core, torch.tensor(BLUE), torch.tensor(RED))

    point, normal = torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.allclose(seen_colors(source_of(Layered([]), 0.04), point, normal)[0], torch.tensor([RED]), atol=1e-3)


def test_colours_that_are_no_numbers_are_left_out() -> None:
    class Broken(AnalyticField):
        def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            sigma, albedo = torch.full((len(points),), 50.0), torch.tensor([RED]).repeat(len(points), 1)
            albedo[points[:, 0] > 0.5] = float("nan")
            sigma[points[:, 0] < 0.47] = float("inf")
            return sigma, albedo

    points = torch.tensor([[0.5, 0.0, 0.0], [0.9, 0.0, 0.0]])
    colors, known = seen_colors(source_of(Broken([]), 0.04), points, torch.tensor([[1.0, 0, 0]]).repeat(2, 1))
    assert torch.allclose(colors, torch.tensor([RED, (0.5, 0.5, 0.5)]), atol=1e-5)
    assert known.tolist() == [True, False]


class ColourlessAbove(AnalyticField):
    """Colours are not numbers where z is above 0."""

    def __call__(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma, albedo = super().__call__(points)
        return sigma, torch.where(points[:, 2:] > 0, float("nan"), albedo)


def test_colours_that_are_no_numbers_are_counted_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    parts = [(sphere((0.0, 0.0, 0.0), 0.6), GREEN)]
    mesh = clean(marching_cubes(sample_density(AnalyticField(parts), all_occupied(), 32), 40.0), 1e-4, 0.1)
    unwrapped = unwrap(to_face_count(mesh, 500, 0.1), 64, 60.0, 4.0, NO_XATLAS)
    bake(unwrapped, source_of(AnalyticField(parts), 2 / 32), 64, "torch", None)
    assert "not a number" not in caplog.text
    bake(unwrapped, source_of(ColourlessAbove(parts), 2 / 32), 64, "torch", None)
    (line,) = (message for message in caplog.messages if "colour is not a number" in message)
    grey, of = (int(word) for word in line.replace(";", "").split() if word.isdigit())
    assert 0.3 * of < grey < 0.6 * of and "grey" in line


def test_space_between_charts_takes_the_nearest_colour() -> None:
    texture = np.zeros((8, 8, 3), dtype=np.uint8)
    covered = np.zeros((8, 8), dtype=bool)
    texture[2, 2], texture[2, 6] = (10, 20, 30), (40, 50, 60)
    covered[2, 2] = covered[2, 6] = True
    padded = texture[nearest_covered(covered)]
    assert (padded[:, :4] == (10, 20, 30)).all() and (padded[:, 5:] == (40, 50, 60)).all()
    assert np.array_equal(texture[nearest_covered(np.zeros((8, 8), dtype=bool))], texture)


def pooled(texture: np.ndarray, level: int) -> np.ndarray:
    block = 2**level
    size = len(texture) // block
    return texture.reshape(size, block, size, block, 3).mean(axis=(1, 3))


@pytest.mark.compiler
@pytest.mark.parametrize("size", [512, 1024])
def test_neither_filtering_nor_mip_maps_mix_two_charts(size: int) -> None:
    """Each chart in a colour of its own: what a renderer blends on the charts must be that colour."""
    mesh = clean(marching_cubes(sample_density(l_field(), all_occupied(), 48), 40.0), 1e-4, 0.1)
    unwrapped = unwrap(to_face_count(mesh, 2000, 0.1), size, 60.0, 4.0)
    assert unwrapped.method == "xatlas"
    charts, n_charts = charts_of(unwrapped)
    palette = np.random.default_rng(0).integers(0, 256, (n_charts, 3)).astype(np.uint8)
    from_chart, covered = painted(unwrapped, palette[charts], size)
    texture = from_chart[nearest_covered(covered)]
    weights = np.random.default_rng(1).dirichlet([0.3, 0.3, 0.3], size=(len(unwrapped.faces), 20))  # near edges too
    uv = torch.as_tensor(on_surface(unwrapped, unwrapped.uv, weights)).float()
    expected = palette[charts].repeat(20, axis=0) / 255
    for level, allowed in ((0, 0.0), (1, 0.01)):
        seen = look_up(torch.as_tensor(pooled(texture.astype(np.float64), level) / 255), uv).numpy()
        wrong = np.abs(seen - expected).max(axis=1) > 0.02
        assert wrong.mean() <= allowed, (level, wrong.mean())


def charts_of(mesh: UnwrappedMesh) -> tuple[np.ndarray, int]:
    """Number of the chart of each face [f], and how many there are: vertices are split between charts."""
    ends = mesh.faces[:, [0, 1, 1, 2]].reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(mesh.vertices),) * 2)
    n_charts, of_vertex = connected_components(graph, directed=False)
    return of_vertex[mesh.faces[:, 0]], n_charts


def painted(mesh: UnwrappedMesh, colors: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A texture with each face in its own of `colors` [f, 3], black elsewhere, and where the faces are."""
    face = rasterize_uv(torch.as_tensor(mesh.uv), torch.as_tensor(mesh.faces), size, "cpu").face_index.numpy()
    return np.where((face >= 0)[..., None], colors[face], 0), face >= 0


def test_a_green_field_is_left_green() -> None:
    field = AnalyticField([(sphere((0.0, 0.0, 0.0), 0.6), GREEN)])
    mesh = clean(marching_cubes(sample_density(field, all_occupied(), 32), 40.0), 1e-4, 0.1)
    unwrapped = unwrap(to_face_count(mesh, 500, 0.1), 64, 60.0, 4.0, NO_XATLAS)
    texture, _ = bake(unwrapped, source_of(field, 2 / 32), 64, "torch", None)
    assert np.abs(texture / 255 - GREEN).max() < 0.01
