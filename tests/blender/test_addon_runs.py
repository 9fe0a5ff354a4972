"""The list of runs, their progress and the words of a GLB, without Blender."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from addon_runs import make_run
from nerf_bridge_addon.errors import AddonError
from nerf_bridge_addon.events import Progress, end_of_lines, read_progress
from nerf_bridge_addon.glb import read_metadata
from nerf_bridge_addon.runs import list_runs, read_run

from nerf_bridge.paths import data_path
from nerf_bridge.run.events import EventLog
from nerf_bridge.run.lock import take_lock


def test_runs_are_listed_the_latest_first_also_those_of_batches(tmp_path: Path) -> None:
    make_run(tmp_path, "a green armchair", "done", seed=3, changed=100)
    make_run(tmp_path / "gallery", "a red sofa", "done", changed=300)
    make_run(tmp_path, "a blue chair", "failed", changed=200, reason="out of memory;\nuse fewer views")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("no run", encoding="utf-8")
    sofa, chair, armchair = list_runs(tmp_path)
    assert (sofa.prompt, sofa.state, sofa.faces, sofa.licence) == ("a red sofa", "done", 20000, "Apache-2.0")
    assert (chair.state, chair.note, chair.faces) == ("failed", "out of memory; use fewer views", None)
    assert (armchair.seed, armchair.note) == (3, "")
    assert armchair.preview.is_file() and armchair.asset == armchair.path / "asset.glb"


def test_a_run_directory_itself_can_be_the_folder(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a chair", "done")
    assert [run.path for run in list_runs(path)] == [path]


def test_a_run_at_work_is_told_from_one_whose_process_is_gone(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a chair", "running")
    assert (read_run(path).state, read_run(path).note) == ("stopped", "optimise, step 120 of 300")
    with take_lock(path / ".lock"):
        assert read_run(path).state == "running"


def test_a_run_that_has_only_just_begun_is_named_after_its_folder(tmp_path: Path) -> None:
    path = make_run(tmp_path, "a chair", "running")
    (path / "run.json").unlink()
    (path / "events.jsonl").unlink()
    run = read_run(path)
    assert (run.prompt, run.seed, run.state, run.note) == ("a-chair-s0", None, "stopped", "")


@pytest.mark.parametrize("text", ['{"prompt": ', "[1]"])
def test_a_damaged_record_does_not_hide_the_other_runs(tmp_path: Path, text: str) -> None:
    make_run(tmp_path, "a chair", "done")
    (make_run(tmp_path, "a sofa", "done") / "run.json").write_text(text, encoding="utf-8")
    assert {run.prompt: run.state for run in list_runs(tmp_path)} == {"a-sofa-s0": "damaged", "a chair": "done"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddonError, match="there is no folder .*nothing: choose"):
        list_runs(tmp_path / "nothing")


def test_progress_is_the_last_whole_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_progress(path) is None
    with EventLog(path) as log:
        log.append("progress", "optimise", 30, 120)
    with open(path, "ab") as file:
        file.write(b'{"stage": "optimise", "step": 4')
    progress = read_progress(path)
    assert progress == Progress("optimise", 30, 120)
    assert (progress.fraction, str(progress)) == (0.25, "optimise, step 30 of 120")


def test_progress_of_an_earlier_start_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("progress", "optimise", 90, 120)
    with open(path, "ab") as file:
        file.write(b'{"half')  # a killed process left this; the next start cuts it off
    start = end_of_lines(path)
    assert read_progress(path, start) is None
    with EventLog(path) as log:
        log.append("resumed", "optimise", 60, 120)
    assert read_progress(path, start) == Progress("optimise", 60, 120)


def test_progress_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        for step in range(2000):
            log.append("progress", "optimise", step, 2000, {"opacity": 0.1})
    assert path.stat().st_size > 1 << 16
    assert read_progress(path) == Progress("optimise", 1999, 2000)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else altogether", b"glTF" + bytes(40)])
def test_what_is_no_glb_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.glb").write_bytes(content)
    with pytest.raises(AddonError, match="x.glb is not a GLB file"):
        read_metadata(tmp_path / "x.glb")


def test_a_missing_glb_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddonError, match="cannot read .*x.glb: No such file"):
        read_metadata(tmp_path / "x.glb")


def test_the_listing_needs_nothing_beyond_the_standard_library() -> None:
    modules = ("runs", "events", "generation", "glb")
    code = "import json, sys; sys.path.insert(0, sys.argv[1])\n"
    code += "".join(f"import nerf_bridge_addon.{name}\n" for name in modules)
    code += "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    words = [sys.executable, "-I", "-S", "-c", code, str(data_path("blender"))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - set(sys.builtin_module_names)
    assert loaded - {"__main__", "__mp_main__"} == {"nerf_bridge_addon"}
