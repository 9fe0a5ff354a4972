"""The gallery command: its rule for colour words, what it measures, and what it writes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks import gallery
from nerf_bridge import pipeline
from nerf_bridge.batch.jobs import read_jobs
from nerf_bridge.batch.pool import Engine
from nerf_bridge.config import build_config
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.evaluate.colours import asked_colours
from nerf_bridge.prior.data.holdout import HELD_OUT_PAIRS
from nerf_bridge.run.directory import RunDirectory, write_record

PROMPTS = gallery.ROOT / "data" / "prompts"
GREEN, RED, BLUE = (0.15, 0.6, 0.2), (0.8, 0.1, 0.1), (0.1, 0.3, 0.8)


def glb(*bodies: tuple[tuple[float, float, float], float]) -> bytes:
    """Cubes of (colour, place along x), as one textured mesh with seams at every face."""
    parts, uvs = [], []
    for i, (_, x) in enumerate(bodies):
        box = trimesh.creation.box((0.5, 0.5, 0.5))
        box.apply_translation((x, 0, 0))
        box.unmerge_vertices()
        parts.append(box)
        uvs.append(np.full((len(box.vertices), 2), ((i + 0.5) / len(bodies), 0.5)))
    pixels = (255 * np.array([[colour for colour, _ in bodies]])).astype(np.uint8)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(pixels.repeat(8, axis=0).repeat(8, axis=1)), metallicFactor=0.0
    )
    mesh = trimesh.util.concatenate([trimesh.Trimesh(part.vertices, part.faces, process=False) for part in parts])
    mesh.visual = trimesh.visual.TextureVisuals(uv=np.concatenate(uvs), material=material)
    return mesh.export(file_type="glb")


def finish(run: RunDirectory, asset: bytes) -> RunDirectory:
    """Make `run` look finished, with `asset` as its mesh."""
    run.path.mkdir(parents=True, exist_ok=True)
    run.asset.write_bytes(asset)
    record = {"state": "done", "device": "a CPU", "versions": {"torch": "2"}, "mesh": {"iou": 0.97}}
    write_record(run, record | {"seconds": {"optimise": 60.0, "mesh": 5.5}})
    return run


def test_an_asset_is_measured(tmp_path):
    run = finish(RunDirectory(tmp_path / "one"), glb((GREEN, 0.0)))
    asset = gallery.measure("a green cube", run, target_faces=12)
    assert (asset.faces, asset.bodies, asset.iou, asset.obeyed, asset.sound) == (12, 1, 0.97, True, True)
    assert asset.colour.shares == {"green": 1.0} and asset.colour.main_rgb == pytest.approx(GREEN, abs=0.01)
    assert asset.views.shape[0] == gallery.SHEET_VIEWS and asset.views.min() < 0.3
    assert not gallery.measure("a green cube", run, target_faces=20).sound
    two = gallery.measure("a blue cube", finish(RunDirectory(tmp_path / "two"), glb((RED, -0.4), (BLUE, 0.4))), 24)
    assert two.bodies == 2 and not two.sound
    assert two.colour.shares["red"] == pytest.approx(0.5, abs=0.02)


def test_an_asset_without_texture_is_refused(tmp_path):
    run = finish(RunDirectory(tmp_path / "run"), trimesh.creation.box().export(file_type="glb"))
    with pytest.raises(UserError, match="base colour texture"):
        gallery.measure("a cube", run, 12)


@pytest.fixture
def made(tmp_path):
    """A gallery of three prompts of which the last fails: folder of results, folder of docs."""
    (tmp_path / "prompts.txt").write_text("a green cube\na red cube\na ghost\n")
    docs, found = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    (docs / "README.md").write_text(f"before\n{gallery.TABLE_MARKS[0]}\nold\n{gallery.TABLE_MARKS[1]}\nafter\n")
    jobs = read_jobs(tmp_path / "prompts.txt", tmp_path / "runs")

    def run_job(job):
        if "ghost" in job.prompt:
            raise RunError("the scene is empty")
        finish(RunDirectory(job.out), glb((GREEN, 0.0)))

    with pytest.raises(RunError, match="a ghost"):
        gallery.make_gallery(jobs, tmp_path / "runs", found, docs, Engine(run_job))
    return found, docs


def test_results_tell_device_commit_and_rows(made):
    document = json.loads((made[0] / "gallery-a-cpu.json").read_text())
    assert document["device"] == "a CPU" and document["commit"] and document["date"] and document["versions"]
    rows = {(row["case"], row["metric"]): row["value"] for row in document["rows"]}
    assert all({"case", "metric", "value", "unit"} == row.keys() for row in document["rows"])
    assert rows["a green cube", "colour_obeyed"] == 1 and rows["a red cube", "colour_obeyed"] == 0
    assert rows["a green cube", "seconds"] == 65.5 and rows["a green cube", "silhouette_iou"] == 0.97
    totals = [rows["all", name] for name in ("assets", "failed", "sound", "colour_judged", "colour_obeyed")]
    assert totals == [2, 1, 0, 2, 1]  # not sound: 12 faces where 20,000 are asked for
    assert document["colours"]["a red cube"]["asked"] == ["red"]


def test_the_page_gets_its_table_and_keeps_the_rest(made):
    page = (made[1] / "README.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| a green cube | yes | green 100 % |" in page and "| a red cube | **no** |" in page
    assert "failed runs: 1" in " ".join(page.split())
    with pytest.raises(UserError, match="README.md: the page needs the lines"):
        (made[1] / "README.md").write_text("no marks")
        gallery.put_table(made[1] / "README.md", "x")


def test_the_sheet_is_small_and_shows_every_asset(made, tmp_path):
    sheet = Image.open(made[1] / "sheet.png")
    assert sheet.width == gallery.SHEET_COLUMNS * (gallery.SHEET_VIEWS * 128 + 16)
    pixels = np.asarray(sheet).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)
    half = sheet.width // 2
    assert green[:, :half].sum() > 4000 and green[:, half:].sum() > 4000
    assert (pixels[130:].max(axis=-1) < 120).sum() > 50, "no prompt is to be read"


def test_a_sheet_that_would_be_too_large_becomes_smaller(tmp_path):
    asset = gallery.measure("a cube", finish(RunDirectory(tmp_path / "run"), glb((GREEN, 0.0))), 12)
    full, small = gallery.sheet_bytes([asset]), gallery.sheet_bytes([asset], limit=1)
    assert Image.open(io.BytesIO(small)).width < Image.open(io.BytesIO(full)).width


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    status = gallery.main(["--out", str(tmp_path), "--prompts", str(tmp_path / "none.txt")])
    assert status == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_command_runs_the_pipeline(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("a blue cube\n")
    (tmp_path / "settings.yaml").write_text("mesh:\n  faces: 100\n")
    asked = []

    def fake(config, out):
        asked.append(config)
        finish(RunDirectory(out), glb((BLUE, 0.0)))

    monkeypatch.setattr(pipeline, "generate", fake)
    places = ["--out", tmp_path / "runs", "--results", tmp_path / "results", "--docs", tmp_path / "docs"]
    chosen = ["--prompts", tmp_path / "prompts.txt", "--config", tmp_path / "settings.yaml", "--device", "cpu"]
    assert gallery.main([str(word) for word in [*places, *chosen, "--seed", "3"]]) == 0
    expected = {"prompt": "a blue cube", "mesh.faces": 100, "device": "cpu", "seed": 3}
    assert asked == [build_config(expected)]
    assert "gallery-a-cpu.json" in capsys.readouterr().out
    assert (tmp_path / "docs" / "sheet.png").is_file()


def prompts_of(name: str) -> list[str]:
    return [job.prompt for job in read_jobs(PROMPTS / name, Path("runs"))]


def test_the_lists_of_prompts():
    shown, kept = prompts_of("gallery.txt"), prompts_of("evaluation.txt")
    first = ["a green armchair", "a red sofa", "a blue chair", "a yellow cupboard", "a wooden table"]
    assert shown[:5] == first and len(set(shown)) == len(shown) >= 6
    assert len(set(kept)) == len(kept) == 60 and not set(kept) & set(shown)
    assert all(asked_colours(prompt) for prompt in kept)


def test_the_last_prompts_for_evaluation_are_the_pairs_kept_out_of_training():
    pairs = [tuple(prompt.split(" ", 2)[1:]) for prompt in prompts_of("evaluation.txt")]
    held_out = [(noun, colour) in HELD_OUT_PAIRS for colour, noun in pairs]
    assert held_out == [False] * 45 + [True] * 15


@pytest.mark.parametrize(("file", "n"), [("tuning.txt", 20), ("tuning-everyday.txt", 16), ("tuning-thin.txt", 8)])
def test_the_prompts_for_tuning_touch_nothing_that_is_kept_for_evaluation(file, n):
    tuning = prompts_of(file)
    assert len(set(tuning)) == len(tuning) == n
    assert not set(tuning) & {*prompts_of("evaluation.txt"), *prompts_of("gallery.txt")}
    pairs = [tuple(prompt.split(" ", 2)[1:]) for prompt in tuning]
    assert all((noun, colour) not in HELD_OUT_PAIRS and asked_colours(colour) for colour, noun in pairs)
