"""A run directory is fresh, resumed or finished, and never somebody else's."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nerf_bridge.config import build_config
from nerf_bridge.errors import UserError
from nerf_bridge.run import directory
from nerf_bridge.run.checkpoint import save_checkpoint
from nerf_bridge.run.directory import RunDirectory, default_run_path, load_run, open_run, run_status, slug, write_record
from nerf_bridge.run.lock import is_locked

CHAIR = build_config({"prompt": "a green armchair"})


def finish(run: RunDirectory) -> None:
    for path in (run.asset, run.preview, run.turntable, run.report):
        path.write_bytes(b"x")
    write_record(run, {"state": "done"})


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a green armchair", "a-green-armchair"),
        ("  A Green, armchair!! ", "a-green-armchair"),
        ("ein grüner Sessel", "ein-gruner-sessel"),
        ("../../etc/passwd", "etc-passwd"),
    ],
)
def test_slug(prompt, name):
    assert slug(prompt) == name


def test_slugs_that_leave_something_out_stay_distinct():
    long = "a very tall and narrow cupboard made of dark wood with many small "
    names = [slug(text) for text in (long + "doors", long + "drawers", "椅子", "机", "!!!", "x" * 200)]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and 0 < len(name) <= 56 and "/" not in name for name in names)
    assert default_run_path("a green armchair", 3) == Path("runs/a-green-armchair-s3")


def test_fresh_run_writes_all_settings(tmp_path):
    with open_run(tmp_path / "runs" / "chair", CHAIR) as state:
        assert state.status == "fresh"
        assert yaml.safe_load(state.run.config.read_text()) == CHAIR.model_dump()
        assert state.run.previews.is_dir()
        assert state.run.preview_at(50).name == "step-000050.png"
    run, config = load_run(tmp_path / "runs" / "chair")
    assert config == CHAIR and config.hash() == CHAIR.hash()
    assert run == RunDirectory(tmp_path / "runs" / "chair")


def test_an_empty_folder_and_what_a_kill_left_count_as_fresh(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.0123abcd.tmp.yaml").write_text("prom")
    with open_run(tmp_path, CHAIR) as state:
        assert state.status == "fresh"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml", "previews"]


def test_resume_needs_a_checkpoint(tmp_path):
    open_run(tmp_path, CHAIR).close()
    assert run_status(tmp_path, CHAIR) == "fresh"
    save_checkpoint(RunDirectory(tmp_path).checkpoint, {"w": torch.ones(2)}, {"step": 1})
    with open_run(tmp_path, CHAIR) as state:
        assert state.status == "resume"


def test_finished_only_when_everything_is_there(tmp_path):
    with open_run(tmp_path, CHAIR) as state:
        finish(state.run)
    before = snapshot(tmp_path)
    with open_run(tmp_path, CHAIR) as state:
        assert state.status == "finished" and state.lock is None
    assert snapshot(tmp_path) == before
    state.run.report.unlink()
    assert run_status(tmp_path, CHAIR) == "fresh"
    finish(state.run)
    write_record(state.run, {"state": "failed"})
    assert run_status(tmp_path, CHAIR) == "fresh"
    state.run.record.write_text("{")
    assert run_status(tmp_path, CHAIR) == "fresh"


def test_another_prompt_is_refused_and_touches_nothing(tmp_path):
    with open_run(tmp_path, CHAIR) as state:
        finish(state.run)
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, build_config({"prompt": "a red sofa"}))
    assert "a green armchair" in one_line(caught) and "--out" in str(caught.value)
    assert snapshot(tmp_path) == before


def test_other_settings_are_named(tmp_path):
    open_run(tmp_path, CHAIR).close()
    before = snapshot(tmp_path)
    other = build_config({"prompt": "a green armchair", "steps": 7, "optim": {"lr_grid": 0.5}})
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, other)
    message = one_line(caught)
    assert (
        f"steps: {CHAIR.steps} there, 7 asked for" in message and "optim.lr_grid" in message and "seed" not in message
    )
    assert snapshot(tmp_path) == before


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path):
    with open_run(tmp_path, CHAIR) as state:
        settings = yaml.safe_load(state.run.config.read_text())
        del settings["memory"], settings["guidance"]["perp_neg"], settings["occupancy"]
        state.run.config.write_text(yaml.safe_dump(settings))
    assert run_status(tmp_path, CHAIR) == "fresh"
    other = build_config({"prompt": "a green armchair", "occupancy": {"every": 3}})
    with pytest.raises(UserError, match="occupancy.every: 4 there, 3 asked for"):
        open_run(tmp_path, other)


def test_what_changes_speed_alone_may_differ(tmp_path):
    open_run(tmp_path, CHAIR).close()
    faster = {"prompt": "a green armchair", "memory": "8gb", "model": {"compile": "off", "offline": True}}
    open_run(tmp_path, build_config(faster)).close()


def test_many_other_settings_are_counted(tmp_path):
    open_run(tmp_path, CHAIR).close()
    mesh = {"resolution": 32, "faces": 500, "texture": 64, "height_m": 2.0, "unwrap_seconds": 1.0}
    other = build_config({"prompt": "a green armchair", "steps": 7, "seed": 9, "mesh": mesh})
    with pytest.raises(UserError, match="and 1 more"):
        open_run(tmp_path, other)


def test_unreadable_settings_of_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("prompt: [")
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, CHAIR)
    assert "config.yaml" in one_line(caught)
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path / "nothing")


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, CHAIR)
    assert "thesis.txt" in one_line(caught)
    assert snapshot(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_in_the_place(tmp_path):
    place = tmp_path / "chair"
    place.write_text("mine")
    with pytest.raises(UserError) as caught:
        open_run(place, CHAIR)
    assert "is a file" in one_line(caught)
    with pytest.raises(UserError) as caught:
        open_run(place / "below", CHAIR)
    assert "cannot write" in one_line(caught)
    assert place.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write, root included")
def test_an_unwritable_place():
    with pytest.raises(UserError) as caught:
        open_run(Path("/proc/chair"), CHAIR)
    assert "cannot write" in one_line(caught) and "/proc/chair" in str(caught.value)


def test_a_full_disk_at_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        open_run(tmp_path / "chair", CHAIR)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_cannot_share_a_run(tmp_path):
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom nerf_bridge.run.lock import take_lock\n"
        "lock = take_lock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"
    )
    open_run(tmp_path, CHAIR).close()
    lock = RunDirectory(tmp_path).lock
    assert not is_locked(lock)
    other = subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert is_locked(lock)
        with pytest.raises(UserError, match="another process"):
            open_run(tmp_path, CHAIR)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    open_run(tmp_path, CHAIR).close()


def test_previews_are_listed_by_step(tmp_path):
    with open_run(tmp_path, CHAIR) as state:
        for step in (100, 50, 1000000):
            state.run.preview_at(step).write_bytes(b"x")
        assert [step for step, _ in state.run.list_previews()] == [50, 100, 1000000]
