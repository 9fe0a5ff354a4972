"""The add-on in real Blender: installed from its zip, it lists, imports, generates, stops, fails and goes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from addon_runs import make_run
from box_asset import METADATA, SIZE, write_box
from tiny_run import options

import nerf_bridge

HERE = Path(__file__).resolve().parent
ROOT = Path(nerf_bridge.__file__).resolve().parents[1]
WHERE = [1.0, 2.0, 0.5]
LONG_REASON = "the scene stayed empty for 200 steps; use another seed, more steps or a larger guidance.scale than 12"

pytestmark = [pytest.mark.slow, pytest.mark.blender]


def packed(folder: Path) -> Path:
    """The add-on's zip, made by the command that docs/blender.md gives."""
    text = (ROOT / "docs" / "blender.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\.venv/bin/(python -c .+pack.+)$", text, re.MULTILINE)
    words = [sys.executable, *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return folder / done.stdout.strip()


def in_blender(folder: Path, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in a Blender whose user's files lie in `folder`."""
    here = {"BLENDER_USER_RESOURCES": str(folder / "user"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *words]
    return subprocess.run(
        command, env=os.environ | here | settings, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The box with the exporter's defaults; and with the pivot in its middle, WebP and no normal map."""
    folder = tmp_path_factory.mktemp("assets")
    other = {"pivot": "center", "texture_format": "webp", "normal_map": False, "roughness": 0.4, "metallic": 0.2}
    return [write_box(folder / "usual.glb"), write_box(folder / "other.glb", **other)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, assets: list[Path]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("session")
    make_run(folder / "runs", "a green armchair", "done", seed=3, changed=200)
    make_run(folder / "runs", "a blue chair", "failed", changed=100, reason=LONG_REASON)
    stub = shlex.join([sys.executable, str(HERE / "stub_nerf_bridge.py")])
    report = folder / "report.json"
    words = [str(packed(folder)), str(folder / "runs"), *map(str, assets), stub, str(report)]
    done = in_blender(folder, "session_in_blender.py", *words, STUB_ASSET=str(assets[0]))
    assert report.is_file(), done.stdout + done.stderr
    return json.loads(report.read_text(encoding="utf-8"))


def test_blender_installs_the_zip_and_switches_it_on(seen: dict[str, Any]) -> None:
    assert seen["install"]["done"] == ["FINISHED"] and seen["install"]["on"]
    panels = {"NERF_BRIDGE_PT_generate", "NERF_BRIDGE_PT_runs", "NERF_BRIDGE_UL_runs"}
    assert panels <= set(seen["install"]["kinds"])


def test_blender_lists_the_runs(seen: dict[str, Any]) -> None:
    armchair, chair = seen["listing"]["entries"]
    assert (armchair["name"], armchair["seed"], armchair["state"]) == ("a green armchair", "3", "done")
    assert (armchair["faces"], armchair["licence"]) == ("20,000", "Apache-2.0")
    assert (chair["state"], chair["note"], chair["faces"]) == ("failed", LONG_REASON, "")


def test_thumbnails_show_the_front_view_and_are_made_by_a_timer(seen: dict[str, Any]) -> None:
    listing = seen["listing"]
    assert listing["timed"] and listing["ticks"] == 1  # one of the two runs has a picture
    assert listing["front"] == pytest.approx([1.0, 0.0, 0.0, 1.0] * 32 * 32)
    assert listing["images_left"] == [] and seen["damaged"] is None


def test_an_asset_stands_on_the_ground_where_it_was_asked_for(seen: dict[str, Any]) -> None:
    for place, where in (("cursor", WHERE), ("origin", [0.0, 0.0, 0.0]), ("other", WHERE)):
        found = seen[place]
        assert found["done"] == ["FINISHED"] and found["active"]
        assert found["location"][:2] == pytest.approx(where[:2])
        assert found["low"][2] == pytest.approx(where[2], abs=1e-5)
        extent = [high - low for low, high in zip(found["low"], found["high"], strict=True)]
        assert extent == pytest.approx([side * 0.45 / SIZE[2] for side in SIZE], rel=1e-4)


def test_an_asset_carries_its_name_and_origin(seen: dict[str, Any]) -> None:
    assert seen["cursor"]["name"] == "a letter box" and seen["origin"]["name"] == "a letter box.002"
    assert METADATA.items() <= seen["cursor"]["properties"].items()


def test_an_asset_has_one_material_with_the_right_colour_spaces(seen: dict[str, Any]) -> None:
    (material,) = seen["cursor"]["materials"]
    assert material["name"] == "a letter box"
    assert material["images"]["Base Color"] == ["a letter box base colour", "sRGB", [128, 128], []]
    assert material["images"]["Normal"] == ["a letter box normal", "Non-Color", [128, 128], ["NORMAL_MAP"]]
    assert (material["Roughness"], material["Metallic"]) == (pytest.approx(0.9), 0.0)
    (material,) = seen["other"]["materials"]
    assert material["images"] == {"Base Color": ["a letter box base colour.001", "sRGB", [128, 128], []]}
    assert (material["Roughness"], material["Metallic"]) == (pytest.approx(0.4), pytest.approx(0.2))


def test_what_is_no_asset_is_refused_in_one_line_and_leaves_the_scene_alone(seen: dict[str, Any]) -> None:
    errors = seen["wrong"]["errors"]
    assert "text.glb is not a GLB file" in errors["text.glb"]
    assert "cube.glb is not an asset of nerf_bridge: expected one mesh with one material" in errors["cube.glb"]
    assert "cut.glb: Bad GLB: file size" in errors["cut.glb"] and "cannot read" in errors["nothing.glb"]
    assert "unlit.glb is not an asset of nerf_bridge: expected a material that takes light" in errors["unlit.glb"]
    assert "its entry `asset` is no object" in errors["list.glb"]
    assert all(error and "\n" not in error for error in errors.values())
    assert seen["wrong"]["left"] == [] and seen["wrong"]["selected"]


def test_a_generation_shows_its_progress_and_ends_as_an_object(seen: dict[str, Any]) -> None:
    found = seen["generation"]
    assert found["timed"] == [True, True]  # also after another file was loaded
    assert not found["second"] and found["again"]
    assert any(re.fullmatch(r"optimise, step \d+ of 20", text) for text in found["texts"])
    assert found["texts"][-1] == "made a-stub-chair-s5" and found["error"] == ""
    assert found["active"].startswith("a letter box")
    assert found["listed"] == [["a stub chair", "5", "done"]]
    assert ["progress", "starting"] in found["drawn"] and ["operator", "Generate"] not in found["drawn"]


def test_an_import_waits_for_object_mode(seen: dict[str, Any]) -> None:
    found = seen["edit"]
    assert found["text"] == "done; it is imported as soon as Blender is in Object Mode"
    assert (found["new"], found["imported"]) == (0, 1) and found["again"] == 0.5


def test_bad_ends_are_shown_in_one_line(seen: dict[str, Any]) -> None:
    bad = seen["bad"]
    assert bad["failed"] == "the run failed: the scene stayed empty"
    assert ["label", "the run failed: the scene stayed"] in bad["drawn"]
    assert bad["empty"].startswith("the prompt is empty")
    assert bad["missing"].startswith("there is no program '/no/such/nerf-bridge'")
    assert bad["nowhere"].startswith("there is no folder") and bad["after"] == ""


def test_stopping_keeps_the_run_for_later(seen: dict[str, Any]) -> None:
    bad = seen["bad"]
    assert bad["stopping"].startswith("stopping after optimise, step") or bad["stopping"].startswith("stopped")
    assert bad["stopped"] == "stopped; generate again with the same settings to go on"
    assert bad["states"]["slow chair"] == "interrupted" and bad["states"]["broken chair"] == "failed"


def test_the_panels_draw_what_is_there(seen: dict[str, Any]) -> None:
    drawn = seen["drawn"]
    assert ["operator", "nerf_bridge.generate"] in drawn and ["operator", "Import"] in drawn
    assert ["label", "seed 3, 20,000 faces, done"] in drawn and ["prop", "command"] in drawn


def test_switching_off_stops_the_generation_and_leaves_nothing(seen: dict[str, Any]) -> None:
    assert seen["off"] == {"record": "interrupted", "left": [], "back": True}


def test_a_real_run_comes_into_the_scene(tmp_path: Path) -> None:
    """All of generate, in small, with an oracle for the prior: its own events, pictures, mesh and texture."""
    report, runs = tmp_path / "report.json", tmp_path / "runs"
    words = [shlex.join(options()), shlex.join([sys.executable, str(HERE / "oracle_nerf_bridge.py")]), str(report)]
    done = in_blender(tmp_path, "real_run_in_blender.py", str(packed(tmp_path)), str(runs), *words)
    assert report.is_file(), done.stdout + done.stderr
    seen = json.loads(report.read_text(encoding="utf-8"))
    assert seen["error"] == "" and seen["texts"][-1] == "made a-green-chair-s0"
    assert seen["name"] == "a green chair" and seen["properties"]["seed"] == 0
    assert 0 < seen["faces"] <= 220 and seen["picture"].startswith("step-00000")
    (material,) = seen["materials"]
    assert material["images"]["Base Color"][1:3] == ["sRGB", [64, 64]]


def test_a_run_saves_its_state_when_blender_quits(tmp_path: Path) -> None:
    stub = shlex.join([sys.executable, str(HERE / "stub_nerf_bridge.py")])
    in_blender(tmp_path, "real_run_in_blender.py", str(packed(tmp_path)), str(tmp_path / "runs"), "", stub)
    record, end = tmp_path / "runs" / "slow-chair-s0" / "run.json", time.monotonic() + 60
    while "interrupted" not in record.read_text(encoding="utf-8"):
        assert time.monotonic() < end
        time.sleep(0.05)
