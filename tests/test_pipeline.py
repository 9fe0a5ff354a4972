"""A whole run in small, with the oracle for a prior: what it leaves, what a second call does, how it resumes."""

import json
import os
import shutil
import signal
import struct
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
import trimesh
import yaml
from tiny_run import (
    FRAME_SIZE,
    FRAMES,
    PROMPT,
    STEPS,
    CountingOracle,
    Killed,
    files,
    leftovers,
    outcome,
    shorten_turntable,
    steps_of,
    tiny_config,
)

from nerf_bridge import pipeline
from nerf_bridge.config import build_config
from nerf_bridge.errors import Interrupted, UserError
from nerf_bridge.mesh.inspect import inspect_file, inspection_record
from nerf_bridge.run.checkpoint import load_checkpoint, save_checkpoint
from nerf_bridge.run.directory import RunDirectory, read_record
from nerf_bridge.run.events import read_events

STAGES = ("start", "prior", "optimise", "mesh", "report")


@pytest.fixture(scope="module", autouse=True)
def _short_turntable():
    with pytest.MonkeyPatch.context() as patch:
        shorten_turntable(patch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    return pipeline.generate(tiny_config(), tmp_path_factory.mktemp("runs") / "chair", CountingOracle())


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it to spoil."""
    return RunDirectory(shutil.copytree(finished.path, tmp_path / "copied"))


class StopsAt(CountingOracle):
    """Ends the run in its own way at a step."""

    def __init__(self, step, stop):
        super().__init__()
        self.stops_at, self.stop = step, stop

    def at_step(self, step, noised):
        if step == self.stops_at:
            self.stop()


def die():
    raise Killed


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_every_file_is_there_and_whole(finished):
    mesh = trimesh.load(finished.asset, force="mesh")
    assert 150 <= len(mesh.faces) <= 200
    assert mesh.visual.uv.min() >= 0 and mesh.visual.uv.max() <= 1
    assert mesh.visual.material.baseColorTexture.size == (64, 64)
    assert iio.imread(finished.preview).shape == (FRAME_SIZE, 4 * FRAME_SIZE, 3)
    assert iio.imread(finished.turntable).shape == (FRAMES, FRAME_SIZE, FRAME_SIZE, 3)
    assert PROMPT in finished.report.read_text()
    assert yaml.safe_load(finished.config.read_text()) == tiny_config().model_dump()
    assert [step for step, _ in finished.list_previews()] == [3, STEPS]
    assert leftovers(finished.path) == []


def test_the_mesh_lasts_as_long_as_its_field(finished):
    """The oracle's chair is not reached in a few steps, but the ball that a run starts from is a body."""
    mesh = trimesh.load(finished.asset, force="mesh")
    assert mesh.extents.max() == pytest.approx(1.0, abs=1e-4)
    assert mesh.extents.min() > 0.5


def test_the_checkpoint_is_of_the_last_step(finished):
    tensors, state = load_checkpoint(finished.checkpoint)
    assert state["step"] == STEPS and state["config"] == tiny_config().hash()
    assert state["guard"]["skipped"] == 0
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert {name.split(".")[0] for name in tensors} == {"field", "occupancy", "environment", "optimiser"}


def test_the_record_tells_what_happened(finished):
    record = json.loads(finished.record.read_text())
    assert (record["prompt"], record["seed"], record["state"]) == (PROMPT, 0, "done")
    assert set(record["seconds"]) == set(STAGES) and all(value > 0 for value in record["seconds"].values())
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["backend"] in ("cpu", "torch") and "CPU" in record["device"]
    assert record["prior"] == {"name": "oracle", "licence": "none", "source": record["prior"]["source"], "sha256": {}}
    mesh = trimesh.load(finished.asset, force="mesh")
    assert record["mesh"]["faces"] == len(mesh.faces)
    assert record["mesh"]["bounds_m"][1] == pytest.approx(mesh.bounds[1].tolist(), abs=1e-6)


def test_the_design_is_that_of_a_prior_that_knows_some(monkeypatch):
    """Words like a design's are no design for a prior that knows none, whatever their number."""
    plain, named = (build_config({"prompt": prompt, "seed": 4}) for prompt in ("a plan", "a plan, design 40"))
    monkeypatch.setattr(pipeline, "designs_of", lambda prior: 0)
    assert pipeline.design_of(plain, None) == pipeline.design_of(named, None) == 0
    monkeypatch.setattr(pipeline, "designs_of", lambda prior: 32)
    assert pipeline.design_of(plain, None) == 5
    assert pipeline.design_of(build_config({"prompt": "a plan, design 7"}), None) == 7
    assert pipeline.design_of(build_config({"prompt": "a plan", "model.design": 0}), None) == 0


def test_the_asset_tells_what_it_is(finished):
    data = finished.asset.read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    extras = json.loads(data[20 : 20 + length])["asset"]["extras"]
    assert extras == {"prompt": PROMPT, "seed": 0, "prior": "oracle", "licence": "none"}


def test_events_tell_the_story_in_order(finished):
    events = read_events(finished.events)
    assert all({"time", "event", "stage", "step", "steps"} <= set(event) for event in events)
    assert all(event["steps"] == STEPS for event in events)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)
    names = [event["event"] for event in events]
    assert names[0] == "start" and names[-1] == "done" and names.count("stage") == 2
    assert steps_of(finished.path, "checkpoint") == [2, 4, 6]
    assert steps_of(finished.path, "preview") == [3, 6]
    last = next(event for event in reversed(events) if event["event"] == "progress")
    assert last["step"] == STEPS and 0 < last["opacity"] < 1 and last["gradient_norm"] > 0 and last["occupied"] > 0


def test_a_second_call_does_nothing(finished):
    before = files(finished.path)
    assert pipeline.generate(tiny_config(), finished.path, StopsAt(1, die)) == finished
    assert files(finished.path) == before


def test_another_prompt_in_its_place_is_refused(finished):
    before = files(finished.path)
    with pytest.raises(UserError, match="another prompt"):
        pipeline.generate(tiny_config(prompt="a red sofa"), finished.path, CountingOracle())
    assert files(finished.path) == before


@pytest.mark.parametrize("name", ["asset.glb", "preview.png", "turntable.mp4", "report.html"])
def test_a_lost_result_is_made_again_without_optimising(finished, copied, name):
    (copied.path / name).unlink()
    prior = StopsAt(1, die)
    pipeline.generate(tiny_config(), copied.path, prior)
    assert prior.steps == 0
    assert outcome(copied.path) == outcome(finished.path)
    assert (copied.path / name).stat().st_size > 0
    assert steps_of(copied.path, "resumed") == [STEPS]


@pytest.mark.parametrize(("step", "resumed"), [(1, []), (2, []), (3, [2]), (5, [4]), (6, [4])])
def test_killed_in_a_step_it_resumes_to_the_same_result(finished, tmp_path, step, resumed):
    with pytest.raises(Killed):
        pipeline.generate(tiny_config(), tmp_path / "run", StopsAt(step, die))
    assert not (tmp_path / "run" / "asset.glb").exists()
    prior = CountingOracle()
    pipeline.generate(tiny_config(), tmp_path / "run", prior)
    assert steps_of(tmp_path / "run", "resumed") == resumed
    assert prior.steps == STEPS - sum(resumed)
    assert outcome(tmp_path / "run") == outcome(finished.path)


@pytest.mark.parametrize("stage", ["make_mesh", "make_pictures", "write_report"])
def test_killed_after_the_last_step_it_resumes_there(finished, tmp_path, monkeypatch, stage):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pipeline, stage, lambda *arguments: die())
        pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert read_record(RunDirectory(tmp_path))["state"] == "running"
    prior = CountingOracle()
    pipeline.generate(tiny_config(), tmp_path, prior)
    assert prior.steps == 0 and steps_of(tmp_path, "resumed") == [STEPS]
    assert read_record(RunDirectory(tmp_path))["state"] == "done"
    assert outcome(tmp_path) == outcome(finished.path)


def test_ctrl_c_saves_and_the_same_call_goes_on(finished, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        pipeline.generate(tiny_config(), tmp_path, StopsAt(3, press_ctrl_c))
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "checkpoint")[1]["step"] == 3
    assert steps_of(tmp_path, "interrupted") == [3]
    record = read_record(RunDirectory(tmp_path))
    assert record["state"] == "interrupted"
    pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert steps_of(tmp_path, "resumed") == [3]
    assert outcome(tmp_path) == outcome(finished.path)


def test_ctrl_c_in_the_last_step_stops_before_the_mesh(finished, tmp_path):
    with pytest.raises(Interrupted):
        pipeline.generate(tiny_config(), tmp_path, StopsAt(STEPS, press_ctrl_c))
    assert not (tmp_path / "asset.glb").exists()
    pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert steps_of(tmp_path, "resumed") == [STEPS]
    assert outcome(tmp_path) == outcome(finished.path)


def test_ctrl_c_in_the_mesh_stage(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "export_mesh", lambda *arguments: press_ctrl_c())
        pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert read_record(RunDirectory(tmp_path))["state"] == "interrupted"
    pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert outcome(tmp_path) == outcome(finished.path)


def test_seconds_add_up_over_interruptions(tmp_path):
    with pytest.raises(Interrupted):
        pipeline.generate(tiny_config(), tmp_path, StopsAt(2, press_ctrl_c))
    first = read_record(RunDirectory(tmp_path))["seconds"]
    assert first["optimise"] > 0 and "mesh" not in first
    pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    record = read_record(RunDirectory(tmp_path))
    assert record["state"] == "done" and "reason" not in record
    assert all(record["seconds"][stage] > first[stage] for stage in first)
    to_asset = sum(record["seconds"][stage] for stage in ("start", "prior", "optimise", "mesh"))
    assert record["seconds_to_asset"] == pytest.approx(to_asset, abs=0.01)


def test_the_same_seed_gives_the_same_asset_and_another_another(finished, tmp_path):
    again = pipeline.generate(tiny_config(), tmp_path / "again", CountingOracle())
    other = pipeline.generate(tiny_config(seed=1), tmp_path / "other", CountingOracle())
    assert outcome(again.path) == outcome(finished.path)
    assert other.asset.read_bytes() != finished.asset.read_bytes()


def test_export_with_other_settings_leaves_the_run_untouched(finished, tmp_path):
    before = files(finished.path)
    out = tmp_path / "small.glb"
    assert pipeline.export(finished.path, {"faces": 100, "texture": 128, "height_m": 0.5}, out)[0] == out
    assert files(finished.path) == before
    mesh = trimesh.load(out, force="mesh")
    assert len(mesh.faces) <= 100 and mesh.extents[1] == pytest.approx(0.5, abs=1e-4)
    assert mesh.visual.material.baseColorTexture.size == (128, 128)


def test_export_with_the_settings_of_the_run_gives_the_same_shape(copied):
    path, written = pipeline.export(copied.path, {})
    assert path == copied.path / "export.glb" and written.faces == read_record(copied)["mesh"]["faces"]
    ours, theirs = trimesh.load(path, force="mesh"), trimesh.load(copied.asset, force="mesh")
    assert (ours.vertices == theirs.vertices).all() and (ours.faces == theirs.faces).all()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gltf", ".obj", ".ply", ".stl", ".usdz"])
def test_export_in_every_format_keeps_shape_and_origin(finished, tmp_path, suffix):
    out = tmp_path / f"chair{suffix}"
    path, _ = pipeline.export(finished.path, {"faces": 200, "texture": 64, "height_m": 0.5}, out)
    found = inspect_file(path)
    size = inspection_record(found)["size_m"]
    assert found.sound and size["xyz".index(found.up)] == pytest.approx(0.5, abs=1e-5)
    assert str(found.metadata["prompt"]).startswith("a gr") and found.metadata["licence"]


def test_settings_that_a_glb_cannot_hold_are_refused_before_the_run(tmp_path):
    for mesh, words in (({"mesh.up": "z"}, "mesh.up"), ({"mesh.millimetres": True}, "mesh.millimetres")):
        with pytest.raises(UserError, match=words):
            pipeline.generate(tiny_config(**mesh), tmp_path / "run", CountingOracle())
    assert not (tmp_path / "run").exists()


def test_export_does_not_replace_the_asset_that_the_report_describes(finished, monkeypatch):
    before = files(finished.path)
    monkeypatch.chdir(finished.path)
    for out in (finished.asset, finished.path / ".." / finished.path.name / "asset.glb", Path("asset.glb")):
        with pytest.raises(UserError, match=r"cannot export to .*asset\.glb: .* without --out it becomes export\.glb$"):
            pipeline.export(finished.path, {"faces": 200}, out)
    assert files(finished.path) == before


def test_export_of_what_cannot_be_exported(finished, copied, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        pipeline.export(tmp_path / "nothing", {})
    with pytest.raises(UserError, match=r"must be at least 100|greater than or equal|100"):
        pipeline.export(finished.path, {"faces": 1})
    for name, words in (("chair.fbx", r"\.glb, \.gltf"), ("nowhere/chair.glb", "no folder"), ("a.obj", "millimetres")):
        with pytest.raises(UserError, match=words):
            pipeline.export(finished.path, {"millimetres": name == "a.obj"}, tmp_path / name)
    tensors, state = load_checkpoint(copied.checkpoint)
    save_checkpoint(copied.checkpoint, tensors, state | {"step": 1})
    with pytest.raises(UserError, match="stands at step 1 of"):
        pipeline.export(copied.path, {})
    shutil.rmtree(copied.checkpoint)
    with pytest.raises(UserError, match="stands at step 0 of"):
        pipeline.export(copied.path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]
