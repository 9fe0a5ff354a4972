"""The benchmark of exported meshes: what it measures and what it writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh.analytic_fields import all_occupied, l_field

from benchmarks import mesh as benchmark
from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.silhouettes import render_silhouettes

SMALL = MeshConfig(resolution=48, faces=2000, texture=256)


@pytest.fixture(scope="module", autouse=True)
def few_small_views() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "VIEWS", 4)
        patch.setattr(benchmark, "SIZE", 64)
        yield


@pytest.fixture(scope="module")
def case() -> benchmark.Case:
    return {case.name: case for case in benchmark.analytic_cases()}["analytic l"]


@pytest.fixture(scope="module")
def result(case: benchmark.Case) -> benchmark.Result:
    return benchmark.measure(case, SMALL)


def test_a_faithful_mesh_measures_well(result: benchmark.Result) -> None:
    assert result.iou.shape == result.psnr.shape == (benchmark.VIEWS,)
    assert 0.9 < result.iou.min() <= result.iou.max() <= 1
    assert result.psnr.mean() > 22
    assert result.statistics.faces == pytest.approx(2000, rel=0.02)
    assert 0 < result.memory_gib < 64 and result.seconds > 0 and result.cpu_seconds > 0


def test_what_is_moved_or_coloured_wrong_measures_badly(case: benchmark.Case, tmp_path: Path) -> None:
    silhouettes = benchmark.render_silhouettes(case.field, case.occupied, case.step_size, case.backend)
    path = tmp_path / "asset.glb"
    statistics = benchmark.export_mesh(
        case.field, case.occupied, silhouettes, SMALL, path, {}, case.backend, case.device
    )
    mesh = benchmark.read_in_box(path, statistics)
    assert mesh.vertices.amin(dim=0).tolist() == pytest.approx(statistics.bounds[0], abs=1e-5)
    assert mesh.vertices.amax(dim=0).tolist() == pytest.approx(statistics.bounds[1], abs=1e-5)
    mirrored = dataclasses.replace(mesh, vertices=mesh.vertices * torch.tensor([-1.0, 1.0, 1.0]))
    assert benchmark.compare(case, mirrored)[0].mean() < 0.8
    swapped = dataclasses.replace(mesh, look=dataclasses.replace(mesh.look, image=mesh.look.image.flip(-1)))
    assert benchmark.compare(case, swapped)[1].mean() < 12


def test_the_results_file_and_the_table(result: benchmark.Result) -> None:
    rows = benchmark.result_rows([result], "cpu")
    values = {row["metric"]: row for row in rows}
    assert values["silhouette_iou"]["value"] == pytest.approx(result.iou.mean(), abs=1e-4)
    assert values["silhouette_iou"]["p10"] <= values["silhouette_iou"]["value"] <= values["silhouette_iou"]["p90"]
    assert values["silhouette_iou"]["floor"] == 0.97 and values["colour_psnr"]["floor"] == 26
    assert {f"seconds_{stage}" for stage in result.statistics.seconds} < set(values)
    assert values["watertight"]["value"] == 1 and {row["case"] for row in rows} == {"analytic l"}
    assert json.loads(json.dumps(rows)) == rows
    assert benchmark.table([result]).splitlines()[2].startswith("| analytic l | 0.9")


def test_the_judging_cameras_are_not_those_of_the_export() -> None:
    cameras = benchmark.judging_cameras()
    positions = cameras.c2w[:, :3, 3]
    assert np.unique(positions.numpy().round(4), axis=0).shape[0] == len(positions) == benchmark.VIEWS
    assert positions.norm(dim=1).tolist() == pytest.approx([3.0] * benchmark.VIEWS)
    export = render_silhouettes(l_field(), all_occupied(8), 0.5, "torch").cameras.c2w[:, :3, 3]
    assert torch.cdist(positions, export).min() > 0.1


def test_nothing_to_measure_and_no_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--results", str(tmp_path)]) == 2
    assert "nothing to measure" in capsys.readouterr().err
    assert benchmark.main([str(tmp_path / "none"), "--results", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and list(tmp_path.iterdir()) == []
