"""Which bodies of a field reach the file: what is clearly visible does, specks do not, and a loss is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import trimesh
from analytic_fields import BLUE, GREEN, RED, AnalyticField, all_occupied, box, silhouettes_of, sphere

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh import export
from nerf_bridge.mesh.data import MeshStatistics
from nerf_bridge.mesh.surface import marching_cubes

SETTINGS = MeshConfig(resolution=64, faces=1500, texture=64)
SPECK = (sphere((0.8, 0.8, -0.8), 0.035), GREEN)
LAMP = [(sphere((0.0, 0.0, 0.5), 0.35), RED), (box((0.0, 0.0, -0.5), (0.05, 0.05, 0.4)), BLUE)]
BALLS = [(sphere((-0.3, 0.0, 0.0), 0.5), RED), (sphere((0.6, 0.0, 0.0), 0.22), BLUE)]


def exported(parts: list, settings: MeshConfig, folder: Path) -> MeshStatistics:
    field = AnalyticField(parts)
    seen = silhouettes_of(field, views=6, size=64)
    return export.export_mesh(field, all_occupied(), seen, settings, folder / "a.glb", {}, "torch", "cpu")


@pytest.mark.parametrize("parts", [LAMP, BALLS], ids=["lamp", "balls"])
@pytest.mark.parametrize("faces", [100, 1500])
def test_visible_bodies_stay_and_specks_go(parts: list, faces: int, tmp_path: Path) -> None:
    statistics = exported([*parts, SPECK], SETTINGS.model_copy(update={"faces": faces}), tmp_path)
    assert statistics.components == 2 and statistics.watertight


@pytest.mark.parametrize("parts", [LAMP, BALLS], ids=["lamp", "balls"])
def test_nothing_lost_is_nothing_told(parts: list, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    statistics = exported(parts, SETTINGS, tmp_path)
    assert statistics.iou > max(iou for _, iou in statistics.curve) - 0.03
    assert "something visible is lost" not in caplog.text


def test_the_fraction_is_a_setting_and_a_loss_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        statistics = exported(LAMP, SETTINGS.model_copy(update={"keep_fraction": 0.1}), tmp_path)
    assert statistics.components == 1
    lines = [line for line in caplog.messages if "something visible is lost" in line]
    best = max(iou for _, iou in statistics.curve)
    assert len(lines) == 1 and f"IoU {statistics.iou:.3f}, the field's surface to {best:.3f}" in lines[0]
    assert "mesh.keep_fraction" in lines[0]


def test_specks_stay_when_asked_for(tmp_path: Path) -> None:
    statistics = exported([*BALLS, SPECK], SETTINGS.model_copy(update={"keep_fraction": 0.0}), tmp_path)
    assert statistics.components == 3


@pytest.mark.parametrize("fill", [True, False])
def test_filling_insides_is_by_choice(fill: bool, tmp_path: Path) -> None:
    shell = [(lambda points: (points.norm(dim=-1) - 0.6).abs() - 0.1, RED)]
    field, settings = AnalyticField(shell), SETTINGS.model_copy(update={"fill": fill})
    grids = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "marching_cubes", lambda grid, level: grids.append(grid) or marching_cubes(grid, level))
        export.export_mesh(
            field, all_occupied(), silhouettes_of(field, 4, 48), settings, tmp_path / "a.glb", {}, "torch", "cpu"
        )
    middle = grids[0].sigma[tuple(n // 2 for n in grids[0].sigma.shape)]
    assert (float(middle) > 1.0) == fill


def pierced_box(points: torch.Tensor) -> torch.Tensor:
    """A box with two square holes along z: at x = -0.25 one sample of 64 wide, at x = 0.25 two."""
    body = box((0.0, 0.0, 0.0), (0.6, 0.5, 0.2))(points)
    narrow = box((-0.265625, 0.015625, 0.0), (1 / 64, 1 / 64, 1.0))(points)
    wide = box((0.25, 0.0, 0.0), (2 / 64, 2 / 64, 1.0))(points)
    return torch.maximum(body, -torch.minimum(narrow, wide))


@pytest.mark.parametrize(("cells", "genus"), [(0, 2), (1, 1), (2, 0)])
def test_holes_wider_than_the_setting_stay(cells: int, genus: int, tmp_path: Path) -> None:
    assert MeshConfig().close_holes == 1
    field = AnalyticField([(pierced_box, RED)], softness=1e-3)
    settings = SETTINGS.model_copy(update={"close_holes": cells, "faces": 20000, "threshold": 40.0})
    path = tmp_path / "a.stl"
    export.export_mesh(field, all_occupied(), silhouettes_of(field, 4, 48), settings, path, {}, "torch", "cpu")
    assert trimesh.load(path).euler_number == 2 - 2 * genus


BAR = [(box((0.3, 0.0, 0.0), (0.02, 0.02, 0.6)), RED), (box((-0.3, 0.1, 0.0), (0.02, 0.02, 0.6)), BLUE)]


def test_what_is_too_thin_for_the_samples_gets_twice_as_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bars of 0.04 between samples 0.0625 apart; a threshold that was given is kept with the samples asked for."""
    field, settings = AnalyticField(BAR, softness=0.005), SETTINGS.model_copy(update={"resolution": 32})
    seen = silhouettes_of(field, views=6, size=96)
    with caplog.at_level(logging.INFO):
        statistics = export.export_mesh(field, all_occupied(), seen, settings, tmp_path / "a.glb", {}, "torch", "cpu")
    coarse, fine = (float(line.split()[-1]) for line in caplog.messages if "silhouettes agree to IoU" in line)
    assert "parts too thin for 32 samples along a side: 64 are taken" in caplog.messages
    assert coarse < export.THIN_IOU and fine > coarse + 0.05
    assert statistics.components == 2 and statistics.iou > fine - 0.03
    caplog.clear()
    given = settings.model_copy(update={"threshold": statistics.threshold})
    with caplog.at_level(logging.INFO):
        export.export_mesh(field, all_occupied(), seen, given, tmp_path / "b.glb", {}, "torch", "cpu")
    assert "silhouettes agree to IoU" not in caplog.text


def test_twice_as_many_samples_are_dropped_where_they_show_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "THIN_IOU", 1.0)
    with caplog.at_level(logging.INFO):
        exported(BALLS, SETTINGS, tmp_path)
        monkeypatch.setattr(export, "MOST_SAMPLES", 127)
        exported(BALLS, SETTINGS, tmp_path)
    assert caplog.messages.count("128 samples along a side show about as much: 64 are kept") == 1
    assert caplog.text.count("silhouettes agree to IoU") == 3  # two of the first, one of the second


def test_solids_are_sampled_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        exported(BALLS, SETTINGS, tmp_path)
    assert caplog.text.count("silhouettes agree to IoU") == 1
