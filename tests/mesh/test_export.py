"""The whole way from a field to a GLB: shape, colours, axes, size, and the fields that cannot be exported."""

from __future__ import annotations

import functools
import json
import logging
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from analytic_fields import (
    GREEN,
    RED,
    AnalyticField,
    all_occupied,
    clear_points,
    l_field,
    silhouettes_of,
    sphere,
    torus_field,
)

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.mesh import export
from nerf_bridge.mesh.data import MeshStatistics, Silhouettes
from nerf_bridge.mesh.export import STAGES, export_mesh
from nerf_bridge.mesh.unwrap import unwrap

SMALL = MeshConfig(resolution=64, faces=3000, texture=256)
METADATA = {"prompt": "an L", "seed": 7, "prior": "oracle", "licence": "Apache-2.0"}
L_LOW, L_HIGH = np.array([-0.5, -0.45, -0.6]), np.array([0.7, 0.3, 0.6])


def export_field(
    field: AnalyticField, path: Path, settings: MeshConfig = SMALL, occupied: torch.Tensor | None = None
) -> MeshStatistics:
    occupied = all_occupied() if occupied is None else occupied
    return export_mesh(
        field, occupied, silhouettes_of(field, views=6, size=48), settings, path, METADATA, "torch", "cpu"
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MeshStatistics]:
    path = tmp_path_factory.mktemp("export") / "asset.glb"
    return path, export_field(l_field(), path)


def read(path: Path) -> trimesh.Trimesh:
    (mesh,) = trimesh.load(path).geometry.values()
    return mesh


def in_world(points: np.ndarray, low: np.ndarray = L_LOW, high: np.ndarray = L_HIGH) -> torch.Tensor:
    """The file's points back in the field's box, for an object whose longest side is 1 m."""
    world = np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1) * (high - low).max()
    return torch.as_tensor(world + [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]).float()


def colors_at(mesh: trimesh.Trimesh, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    texture = np.asarray(mesh.visual.material.baseColorTexture)[..., :3] / 255
    uv = np.einsum("nk,nkd->nd", weights, mesh.visual.uv[mesh.faces[faces]])
    row = ((1 - uv[:, 1]) * len(texture)).astype(int)
    return texture[row, (uv[:, 0] * len(texture)).astype(int)]


def test_the_object_stands_upright_faces_front_and_is_a_metre_long(exported: tuple[Path, MeshStatistics]) -> None:
    mesh = read(exported[0])
    low, high = mesh.bounds
    assert (high - low).max() == pytest.approx(1.0, abs=1e-5)
    assert low[1] == pytest.approx(0.0, abs=1e-6)
    assert low[[0, 2]] + high[[0, 2]] == pytest.approx([0, 0], abs=1e-5)
    expected = (L_HIGH - L_LOW)[[0, 2, 1]] / 1.2
    assert high - low == pytest.approx(expected, abs=0.02)


def test_colours_lie_at_the_right_places_unmirrored(exported: tuple[Path, MeshStatistics]) -> None:
    mesh, field = read(exported[0]), l_field()
    points, faces = trimesh.sample.sample_surface(mesh, 4000, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    world = in_world(points)
    clear = clear_points(field, world).numpy()
    error = np.abs(colors_at(mesh, faces, weights) - field(world)[1].numpy()).max(axis=1)[clear]
    assert clear.sum() > 2000 and np.quantile(error, 0.98) < 0.02
    mirrored = world * torch.tensor([-1.0, 1.0, 1.0]) + torch.tensor([0.2, 0.0, 0.0])
    wrong = np.abs(colors_at(mesh, faces, weights) - field(mirrored)[1].numpy()).max(axis=1)
    assert (wrong > 0.5).mean() > 0.2


def test_the_nose_is_at_the_front(exported: tuple[Path, MeshStatistics]) -> None:
    mesh = read(exported[0])
    centers = mesh.triangles_center
    colors = colors_at(mesh, np.arange(len(mesh.faces)), np.full((len(mesh.faces), 3), 1 / 3))
    yellow = centers[(colors[:, 0] > 0.6) & (colors[:, 1] > 0.6)]
    blue = centers[colors[:, 2] > 0.6]
    assert yellow[:, 2].mean() > 0.1 and yellow[:, 0].mean() > 0.2 and yellow[:, 1].mean() < 0.3
    assert blue[:, 0].mean() < -0.2 and blue[:, 1].max() > 0.95


def test_the_surface_is_one_closed_body_of_the_right_volume(exported: tuple[Path, MeshStatistics]) -> None:
    mesh = read(exported[0])
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
    probes = (torch.rand(20000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.8
    truth = float((l_field().distances(probes).amin(dim=0) < 0).float().mean()) * 1.6**3
    assert mesh.volume * 1.2**3 == pytest.approx(truth, rel=0.1)


def test_the_statistics_are_those_of_the_file(exported: tuple[Path, MeshStatistics]) -> None:
    path, statistics = exported
    mesh = read(path)
    assert statistics.faces == len(mesh.faces) == pytest.approx(3000, rel=0.05)
    assert statistics.vertices == len(mesh.vertices)
    assert statistics.components == 1 and statistics.watertight
    assert np.allclose(statistics.bounds_m, mesh.bounds, atol=1e-6)
    assert statistics.texture == 256 == mesh.visual.material.baseColorTexture.size[0]
    assert statistics.unwrap == "xatlas" and statistics.iou > 0.95
    assert (statistics.threshold, max(iou for _, iou in statistics.curve)) in statistics.curve
    assert set(statistics.seconds) == set(STAGES)


def test_the_file_tells_where_it_comes_from(exported: tuple[Path, MeshStatistics]) -> None:
    data = exported[0].read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    assert json.loads(data[20 : 20 + length])["asset"]["extras"] == METADATA


def test_height_in_metres(tmp_path: Path) -> None:
    settings = MeshConfig(resolution=32, faces=500, texture=64, height_m=0.45)
    statistics = export_field(torus_field(), tmp_path / "a.glb", settings)
    low, high = read(tmp_path / "a.glb").bounds
    assert high[1] - low[1] == pytest.approx(0.45, rel=1e-4) and high[0] - low[0] > 1
    assert np.allclose(statistics.bounds_m, [low, high], atol=1e-5)


def test_progress_and_repeatability(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    settings = MeshConfig(resolution=32, faces=500, texture=64, threshold=20.0)
    for name in ("a.glb", "b.glb"):
        statistics = export_mesh(
            torus_field(),
            all_occupied(),
            silhouettes_of(torus_field(), 2, 32),
            settings,
            tmp_path / name,
            METADATA,
            "torch",
            "cpu",
            lambda stage, fraction: told.append((stage, fraction)),
        )
    assert list(dict.fromkeys(stage for stage, _ in told)) == [*STAGES, "done"]
    half = told[: len(told) // 2]
    assert half[0][1] == 0 and half[-1] == ("done", 1) and sorted(half, key=lambda step: step[1]) == half
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()
    assert statistics.threshold == 20.0 and statistics.curve == () and statistics.iou > 0.8


def test_floaters_are_dropped_and_what_is_not_occupied_is_not_there(tmp_path: Path) -> None:
    parts = [
        (sphere((0.0, 0.0, 0.0), 0.4), RED),
        (sphere((0.7, 0.7, 0.7), 0.04), GREEN),
        (sphere((-0.7, 0.0, 0.0), 0.25), GREEN),
    ]
    occupied = all_occupied()
    occupied[:9] = False
    statistics = export_field(
        AnalyticField(parts), tmp_path / "a.glb", MeshConfig(resolution=48, faces=500, texture=64), occupied
    )
    low, high = read(tmp_path / "a.glb").bounds
    assert statistics.components == 1
    assert high - low == pytest.approx([1, 1, 1], abs=0.05)


class Hazy(AnalyticField):
    """A solid ball, and beside it a larger ball of haze through which most of the light passes."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        haze = torch.sigmoid(-sphere((0.45, 0.0, 0.0), 0.5)(points) / 0.01)
        return torch.maximum(super().density(points), 0.8 * haze)


def test_haze_is_dropped_though_it_is_larger_than_the_object(tmp_path: Path) -> None:
    field = Hazy([(sphere((-0.5, 0.0, 0.0), 0.25), RED)])
    settings = MeshConfig(resolution=48, faces=500, texture=64, threshold=0.6)
    statistics = export_field(field, tmp_path / "a.glb", settings)
    assert statistics.components == 1 and statistics.bounds[1][0] < -0.2


def test_a_body_of_one_sample_is_a_sound_file(tmp_path: Path) -> None:
    center = (1 / 32, 1 / 32, 1 / 32)
    statistics = export_field(
        AnalyticField([(sphere(center, 0.05), RED)]),
        tmp_path / "a.glb",
        MeshConfig(resolution=32, faces=100, texture=64, threshold=20.0),
    )
    assert statistics.watertight and statistics.components == 1 and statistics.faces == pytest.approx(100, rel=0.05)
    assert read(tmp_path / "a.glb").area > 0


def test_a_field_that_fills_the_box_is_closed_at_its_walls(tmp_path: Path) -> None:
    field = AnalyticField([(sphere((0.0, 0.0, 0.0), 3.0), RED)])
    statistics = export_field(field, tmp_path / "a.glb", MeshConfig(resolution=32, faces=1000, texture=64))
    assert statistics.watertight and statistics.components == 1
    assert np.allclose(statistics.bounds, [[-1, -1, -1], [1, 1, 1]], atol=2 / 32)


def test_smoothing_and_open_holes_are_by_choice(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"smooth": 5, "close_holes": 0, "watertight": False})
    smooth = export_field(l_field(), tmp_path / "a.glb", settings)
    sharp = export_field(l_field(), tmp_path / "b.glb")
    areas = [read(tmp_path / name).area for name in ("a.glb", "b.glb")]
    assert smooth.watertight and smooth.iou > 0.93 and smooth.faces == sharp.faces
    assert areas[0] != pytest.approx(areas[1], rel=1e-4)


def test_a_hanging_xatlas_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = (sys.executable, "-c", "import time; time.sleep(120)")
    monkeypatch.setattr(export, "unwrap", functools.partial(unwrap, worker=hangs))
    settings = MeshConfig(resolution=32, faces=500, texture=128, unwrap_seconds=0.5)
    assert export_field(torus_field(), tmp_path / "a.glb", settings).unwrap == "grid"
    mesh = read(tmp_path / "a.glb")
    texture = np.asarray(mesh.visual.material.baseColorTexture)[..., :3]
    assert np.abs(texture / 255 - GREEN).max() < 0.02


class NanAbove(AnalyticField):
    """Not a number where x is above 0.3."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.where(points[:, 0] > 0.3, float("nan"), super().density(points))


def test_holes_of_nan_are_repaired_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    field = NanAbove(l_field().parts)
    with caplog.at_level(logging.WARNING):
        statistics = export_field(field, tmp_path / "a.glb")
    assert "not finite" in caplog.text
    assert statistics.watertight and statistics.faces == pytest.approx(3000, rel=0.05)
    mesh = read(tmp_path / "a.glb")
    assert np.isfinite(mesh.vertices).all()


class Constant(AnalyticField):
    """The same density everywhere."""

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.full((len(points),), self.peak)


@pytest.mark.parametrize(
    ("field", "occupied", "words"),
    [
        (Constant([], peak=0.0), True, "scene is empty"),
        (Constant([], peak=float("nan")), True, "not finite"),
        (l_field(), False, "scene is empty"),
        (Constant([], peak=0.2), True, "scene is empty"),
    ],
    ids=["empty", "nan", "unoccupied", "thin fog"],
)
def test_what_has_no_surface_is_an_error_with_advice_and_no_file(
    field: AnalyticField, occupied: bool, words: str, tmp_path: Path
) -> None:
    silhouettes = silhouettes_of(torus_field(), views=2, size=16)
    cells = torch.full((8, 8, 8), occupied)
    with pytest.raises(RunError, match=f"{words}.*--steps.*--mesh.resolution"):
        export_mesh(field, cells, silhouettes, SMALL, tmp_path / "a.glb", METADATA, "torch", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_fog_that_no_ray_is_stopped_by_is_an_error(tmp_path: Path) -> None:
    here = silhouettes_of(torus_field(), views=2, size=16)
    clear = Silhouettes(here.cameras, torch.full_like(here.opacity, 0.45))
    with pytest.raises(RunError, match="fog"):
        export_mesh(Constant([], peak=0.6), all_occupied(), clear, SMALL, tmp_path / "a.glb", METADATA, "torch", "cpu")


def test_a_threshold_above_every_density_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"mesh.threshold: expected less than the field's highest density 80, got 100"):
        export_field(torus_field(), tmp_path / "a.glb", MeshConfig(resolution=32, threshold=100.0))


@pytest.mark.parametrize(
    ("name", "words"), [("asset.fbx", "asset.fbx"), ("nowhere/asset.glb", "no folder"), ("taken.glb", "is a folder")]
)
def test_a_target_that_cannot_be_written_is_told_before_the_work(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "taken.glb").mkdir()
    with pytest.raises(UserError, match=words):
        export_field(torus_field(), tmp_path / name)


def test_a_folder_without_the_right_to_write_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nerf_bridge.mesh.write.os.access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written"):
        export_field(torus_field(), tmp_path / "a.glb")
