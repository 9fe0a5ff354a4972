"""Killed at a random step and in the mesh stage, the real command with the real prior comes to the same bytes."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import leftovers, outcome, steps_of

import nerf_bridge
from nerf_bridge.ops.build import cache_dir
from nerf_bridge.run.directory import RunDirectory, read_record
from nerf_bridge.run.events import read_events

pytestmark = pytest.mark.slow

STEPS, CHECKPOINT_EVERY = 9, 2
SECONDS = 600  # for a process to come as far as it must
SETTINGS = {
    "device": "cpu",
    "steps": STEPS,
    "checkpoint_every": CHECKPOINT_EVERY,
    "preview_every": 6,
    "camera.views": 1,
    "field.n_levels": 4,
    "occupancy.every": 4,
    "render.samples_across": 48,
    "mesh.resolution": 48,
    "mesh.faces": 500,
    "mesh.texture": 128,
}


def start(path, settings=SETTINGS):
    """The command in a process of its own, with two threads; a big prior's prompts are kept beside the run."""
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    own = {"NERF_BRIDGE_CACHE": str(path.parent / "cache")} if "prior" in settings else {}
    return subprocess.Popen(
        [sys.executable, "-m", "nerf_bridge", "generate", "a green armchair", "--out", str(path), *options],
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(Path(nerf_bridge.__file__).parents[1])} | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_to_the_end(path, settings=SETTINGS):
    """What it says on standard error; it must succeed."""
    process = start(path, settings)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return err


def kill_when(path, reached, then=0.0, settings=SETTINGS):
    """Kill -9 the command `then` seconds after `reached(events)` holds for its events."""
    process = start(path, settings)
    deadline = time.monotonic() + SECONDS
    while not reached(read_events(path / "events.jsonl")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(then)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -9, err


def at_checkpoint(step):
    """Whether the checkpoint of `step` is among the events."""
    return lambda events: any(event["event"] == "checkpoint" and event["step"] >= step for event in events)


def in_mesh_stage(events):
    return any(event["event"] == "stage" and event["stage"] == "mesh" for event in events)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    run_to_the_end(path)
    return path


def test_killed_at_a_random_step_and_in_the_mesh_stage_it_comes_to_the_same_bytes(unbroken, tmp_path):
    chance = random.Random(0)
    step = chance.choice(range(CHECKPOINT_EVERY, STEPS - CHECKPOINT_EVERY + 1, CHECKPOINT_EVERY))
    path = tmp_path / "run"
    kill_when(path, at_checkpoint(step), then=chance.uniform(0.0, 0.4))
    assert read_record(RunDirectory(path))["state"] == "running"
    kill_when(path, in_mesh_stage, then=chance.uniform(0.0, 0.4))
    run_to_the_end(path)
    first, second = steps_of(path, "resumed")
    assert 0 < step <= first <= second == STEPS
    assert outcome(path) == outcome(unbroken)
    assert leftovers(path) == []
    assert read_record(RunDirectory(path))["state"] == "done"


def test_the_unbroken_run_is_left_alone_by_the_same_command(unbroken):
    events = (unbroken / "events.jsonl").read_bytes()
    assert "nothing to do" in run_to_the_end(unbroken)
    assert (unbroken / "events.jsonl").read_bytes() == events
    assert steps_of(unbroken, "resumed") == []


BRIDGED = {
    "device": "cpu",
    "steps": 8,
    "checkpoint_every": 1,
    "preview_every": 4,
    "field.n_levels": 2,
    "field.log2_table_size": 10,
    "field.finest_resolution": 16,
    "occupancy.resolution": 16,
    "occupancy.every": 2,
    "occupancy.late_every": 3,
    "render.size": 64,
    "render.early_size": 16,
    "render.early_until": 0.25,
    "render.grow_until": 0.5,
    "render.samples_across": 24,
    "guidance.bridge_from": 0.75,
    "guidance.t_max_from": 0.25,
    "guidance.t_max_until": 0.25,
    "model.image_size": 16,
    "mesh.resolution": 24,
    "mesh.faces": 200,
    "mesh.texture": 64,
}


@pytest.mark.parametrize("views", [1, 4])
def test_a_big_prior_killed_before_the_stage_switch_goes_on_in_the_right_stage(views, tiny_model, tmp_path):
    """Stage two starts at step 6: killed at 5 or a little later, the run comes to the state of one that was not."""
    settings = BRIDGED | {"prior": str(tiny_model("sd-epsilon")), "camera.views": views}
    if cache_dir().is_dir():
        shutil.copytree(cache_dir(), tmp_path / "cache", ignore=shutil.ignore_patterns("prompts"))
    kill_when(tmp_path / "run", at_checkpoint(5), settings=settings)
    kill_when(tmp_path / "run", in_mesh_stage, settings=settings)
    kill_when(tmp_path / "unbroken", in_mesh_stage, settings=settings)
    (resumed,) = steps_of(tmp_path / "run", "resumed")
    assert 5 <= resumed <= 8 and steps_of(tmp_path / "unbroken", "resumed") == []
    states = [outcome(tmp_path / name) for name in ("run", "unbroken")]
    assert states[0] == states[1] and any(name.startswith("checkpoint/tensors") for name in states[0])
