"""What goes wrong on the way of a run: one clear line, the right status, nothing half-written, and it goes on."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import (
    PROMPT,
    STEPS,
    CountingOracle,
    Killed,
    files,
    leftovers,
    options,
    outcome,
    shorten_turntable,
    steps_of,
    tiny_config,
)

import nerf_bridge
from nerf_bridge import cli, pipeline
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.run import events
from nerf_bridge.run import files as run_files
from nerf_bridge.run.checkpoint import load_checkpoint
from nerf_bridge.run.directory import RunDirectory, read_record
from nerf_bridge.run.events import read_events
from nerf_bridge.run.health import RESTORES, SKIPS_IN_A_ROW


@pytest.fixture(scope="module", autouse=True)
def _short_turntable():
    with pytest.MonkeyPatch.context() as patch:
        shorten_turntable(patch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    return pipeline.generate(tiny_config(), tmp_path_factory.mktemp("runs") / "chair", CountingOracle())


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A run that was killed after its checkpoint of step 4."""
    path = tmp_path_factory.mktemp("runs") / "half"
    with pytest.raises(Killed):
        pipeline.generate(tiny_config(), path, Answers({5: Killed()}))
    return path


class Answers(CountingOracle):
    """Answers some questions (by number, from 1) in another way: with NaN or by raising."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def at_step(self, step, noised):
        answer = self.answers.get(step)
        if isinstance(answer, BaseException):
            raise answer
        return None if answer is None else torch.full_like(noised, answer)


def command(capfd, monkeypatch, path, prior, **changes):
    """`nerf-bridge generate` with `prior`: its status and the error lines."""
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: prior)
    status = cli.main(["generate", PROMPT, "--out", str(path), *options(**changes)])
    logging.getLogger("nerf_bridge").handlers.clear()  # they would write to the stream that is captured here
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return status, [line for line in err.splitlines() if line.startswith("nerf-bridge: ")]


def failure(path, prior, **changes):
    """The message of the RunError that `prior` brings about; it names the checkpoint, and the record tells the same."""
    with pytest.raises(RunError) as caught:
        pipeline.generate(tiny_config(**changes), path, prior)
    message = str(caught.value)
    assert "\n" not in message and str(path / "checkpoint") in message
    assert leftovers(path) == []
    return message


def recorded_failure(path):
    """The reason in the record, which is also that of the last event."""
    record, event = read_record(RunDirectory(path)), read_events(path / "events.jsonl")[-1]
    assert record["state"] == "failed" and event["event"] == "failed"
    assert event["reason"] == record["reason"]
    assert event["stage"] in ("prior", "optimise", "mesh", "report")
    return record["reason"]


def goes_on(path, finished):
    """The same call now comes to the same end as a run that nothing disturbed."""
    pipeline.generate(tiny_config(), path, CountingOracle())
    assert outcome(path) == outcome(finished.path)
    record = read_record(RunDirectory(path))
    assert record["state"] == "done" and "reason" not in record


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_state(path):
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


@pytest.mark.parametrize(
    ("pattern", "spoil"),
    [
        ("tensors-*.safetensors", truncate),
        ("tensors-*.safetensors", Path.unlink),
        ("state.json", truncate),
        ("state.json", damage_state),
    ],
    ids=["truncated tensors", "no tensors", "truncated state", "changed state"],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(half_done, tmp_path, monkeypatch, capfd, pattern, spoil):
    path = Path(shutil.copytree(half_done, tmp_path / "run"))
    (damaged,) = (path / "checkpoint").glob(pattern)
    spoil(damaged)
    before = files(path / "checkpoint")
    prior = CountingOracle()
    status, lines = command(capfd, monkeypatch, path, prior)
    assert status == 2 and len(lines) == 1
    assert str(damaged) in lines[0] and f"delete the directory {path / 'checkpoint'}" in lines[0]
    assert files(path / "checkpoint") == before
    assert prior.steps == 0 and not (path / "asset.glb").exists()
    assert str(damaged) in recorded_failure(path)


def test_after_a_damaged_checkpoint_is_deleted_it_starts_over(half_done, finished, tmp_path):
    path = Path(shutil.copytree(half_done, tmp_path / "run"))
    shutil.rmtree(path / "checkpoint")
    goes_on(path, finished)
    assert steps_of(path, "resumed") == []


def test_export_of_a_damaged_checkpoint(half_done, tmp_path):
    path = Path(shutil.copytree(half_done, tmp_path / "run"))
    truncate(path / "checkpoint" / "state.json")
    with pytest.raises(UserError, match=r"state\.json cannot be used"):
        pipeline.export(path, {})
    assert not (path / "export.glb").exists()


def test_cuda_asked_for_and_absent(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, lines = command(capfd, monkeypatch, tmp_path / "run", CountingOracle(), device="cuda")
    assert status == 2 and len(lines) == 1 and "cuda was asked for" in lines[0]
    assert not (tmp_path / "run").exists()


def test_an_unwritable_place_and_a_file_there(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        status, lines = command(capfd, monkeypatch, place, CountingOracle())
        assert status == 2 and len(lines) == 1 and str(place) in lines[0]
    assert (tmp_path / "file").read_text() == "mine"


def fill_disk(monkeypatch, stem):
    """From now on there is no room for files whose names start with `stem`."""

    def sync(path):
        if Path(path).name.startswith(f".{stem}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(run_files, "sync", sync)


FILES = {
    "tensors-": "the first checkpoint",
    "state.": "its other half",
    "step-000003": "a picture on the way",
    "asset": "the mesh",
    "preview": "the picture of the result",
    "turntable": "the film",
    "report": "the report",
    "run.": "the record",
}


@pytest.mark.slow
@pytest.mark.parametrize("stem", FILES, ids=FILES.values())
def test_a_disk_that_fills_up(tmp_path, monkeypatch, finished, stem):
    with monkeypatch.context() as patch:
        fill_disk(patch, stem)
        message = failure(tmp_path, CountingOracle())
    assert "No space left" in message
    assert not [name for name in files(tmp_path) if Path(name).name.startswith(stem)]
    if stem != "run.":
        assert "No space left" in recorded_failure(tmp_path)
    goes_on(tmp_path, finished)


def test_a_disk_that_fills_up_later_keeps_the_checkpoint_before(half_done, finished, tmp_path, monkeypatch):
    path = Path(shutil.copytree(half_done, tmp_path / "run"))
    before = files(path / "checkpoint")
    with monkeypatch.context() as patch:
        fill_disk(patch, "tensors-")
        failure(path, CountingOracle())
    assert files(path / "checkpoint") == before
    goes_on(path, finished)


def test_a_disk_with_no_room_for_events(tmp_path, monkeypatch, finished):
    def full(log, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(events.EventLog, "_write", full)
        assert "No space left" in failure(tmp_path, CountingOracle())
    goes_on(tmp_path, finished)


def test_a_full_disk_has_status_1(tmp_path, monkeypatch, capfd):
    fill_disk(monkeypatch, "asset")
    status, lines = command(capfd, monkeypatch, tmp_path, CountingOracle())
    assert status == 1 and len(lines) == 1 and str(tmp_path / "checkpoint") in lines[0]


def test_export_to_a_full_disk(finished, monkeypatch):
    before = files(finished.path)
    fill_disk(monkeypatch, "export")
    with pytest.raises(RunError, match=r"cannot write .*export\.glb.*No space left"):
        pipeline.export(finished.path, {})
    assert files(finished.path) == before


def cpu_allocation_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("kind", ["gpu", "python", "cpu"])
def test_memory_that_runs_out_below_the_last_rung(tmp_path, kind):
    error = {"gpu": torch.OutOfMemoryError("CUDA out of memory"), "python": MemoryError()}.get(kind)
    error = error or cpu_allocation_error()
    message = failure(tmp_path, Answers(dict.fromkeys(range(5, 5 + len(RUNGS)), error)))
    assert "out of memory below the last rung" in message and "model.image_size" in message and "--memory" in message
    assert all(rung.does in message for rung in RUNGS[1:])
    assert "out of memory" in recorded_failure(tmp_path)
    state = load_checkpoint(tmp_path / "checkpoint")[1]
    assert (state["step"], state["rung"]) == (4, len(RUNGS) - 1)
    pipeline.generate(tiny_config(), tmp_path, CountingOracle())
    assert read_record(RunDirectory(tmp_path))["state"] == "done"


def test_memory_that_runs_out_while_the_mesh_is_made(tmp_path, monkeypatch, finished):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "export_mesh", full)
        message = failure(tmp_path, CountingOracle())
    told = "out of memory; close other programs, go on with a smaller --memory, or use a smaller prior, mesh.resolution"
    assert told in message
    goes_on(tmp_path, finished)


def test_a_bug_is_not_called_a_lack_of_memory(tmp_path):
    told = r"unexpected RuntimeError: shapes do not match \([\w/]+\.py, line \d+\)"
    with pytest.raises(RunError, match=told) as raised:
        pipeline.generate(tiny_config(), tmp_path, Answers({2: RuntimeError("shapes do not match")}))
    assert "memory" not in str(raised.value)
    assert read_record(RunDirectory(tmp_path))["state"] == "failed"


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    pipeline.generate(tiny_config(), tmp_path, Answers({3: float("nan"), 5: float("inf")}))
    skipped = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "skipped"]
    assert [event["skipped"] for event in skipped] == [1, 2]
    tensors, state = load_checkpoint(tmp_path / "checkpoint")
    assert state["step"] == STEPS and state["guard"]["skipped"] == 2 and state["guard"]["rate"] == 1.0
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    assert steps_of(tmp_path, "restored") == []


def test_bad_steps_in_a_row_restore_the_last_good_state_at_a_lower_rate(tmp_path):
    """Bad from the fourth step on: the checkpoint of step 2 stays the last good one while bad steps pass by 4 and 6."""
    bad = {question: float("nan") for question in range(4, 4 + SKIPS_IN_A_ROW)}
    prior = Answers(bad)
    pipeline.generate(tiny_config(steps=12), tmp_path, prior)
    (restored,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "restored"]
    assert restored["step"] == 2 and restored["rate"] == 0.5
    assert prior.steps == 3 + SKIPS_IN_A_ROW + 10
    state = load_checkpoint(tmp_path / "checkpoint")[1]
    assert state["guard"] == {"in_a_row": 0, "skipped": SKIPS_IN_A_ROW, "restores": 1, "rate": 0.5}
    assert (tmp_path / "asset.glb").is_file()


def test_gradients_that_are_never_finite_are_a_clear_failure(tmp_path, monkeypatch, capfd):
    prior = Answers({question: float("nan") for question in range(3, 200)})
    status, lines = command(capfd, monkeypatch, tmp_path, prior, steps=100)
    assert status == 1 and len(lines) == 1
    assert "not finite" in lines[0] and "try another seed" in lines[0] and str(tmp_path / "checkpoint") in lines[0]
    assert prior.steps == 2 + SKIPS_IN_A_ROW * (RESTORES + 1)
    assert steps_of(tmp_path, "restored") == [2] * RESTORES
    assert "not finite" in recorded_failure(tmp_path)
    assert not (tmp_path / "asset.glb").exists()
    assert all(bool(torch.isfinite(value).all()) for value in load_checkpoint(tmp_path / "checkpoint")[0].values())


def test_bad_from_the_start_begins_again_without_a_checkpoint(tmp_path):
    bad = {question: float("nan") for question in range(1, 1 + SKIPS_IN_A_ROW)}
    prior = Answers(bad)
    pipeline.generate(tiny_config(), tmp_path, prior)
    assert steps_of(tmp_path, "restored") == [0]
    assert prior.steps == SKIPS_IN_A_ROW + STEPS


def test_a_scene_that_becomes_empty_is_an_error_with_advice(tmp_path, monkeypatch, capfd):
    changes = {"steps": 200, "optim__weight_opacity": 1e4, "optim__lr_grid": 1.0, "optim__lr_decoder": 1.0}
    status, lines = command(capfd, monkeypatch, tmp_path, CountingOracle(), **changes)
    assert status == 1 and len(lines) == 1
    assert "the scene is empty" in lines[0] and "lower optim.weight_opacity" in lines[0]
    assert "the scene is empty" in recorded_failure(tmp_path)
    assert not (tmp_path / "asset.glb").exists()


def test_a_scene_that_is_found_empty_only_at_the_end(tmp_path, monkeypatch, capfd):
    changes = {"steps": 30, "optim__weight_opacity": 1e4, "optim__lr_grid": 1.0, "optim__lr_decoder": 1.0}
    status, lines = command(capfd, monkeypatch, tmp_path, CountingOracle(), **changes)
    assert status == 1 and len(lines) == 1
    assert "the scene is empty" in lines[0] and "try another --seed" in lines[0]
    assert "the scene is empty" in recorded_failure(tmp_path)
    assert read_events(tmp_path / "events.jsonl")[-1]["stage"] == "mesh"
    assert not (tmp_path / "asset.glb").exists()


RUN_WITH_THE_ORACLE = """
import sys
from nerf_bridge import cli, pipeline
from tiny_run import CountingOracle
pipeline.load_prior = lambda *_: CountingOracle()
sys.exit(cli.main(sys.argv[1:]))
"""


def start(path, steps):
    """The command in a process of its own."""
    roots = [str(Path(nerf_bridge.__file__).parents[1]), str(Path(__file__).parent)]
    words = ["generate", PROMPT, "--out", str(path), *options(steps=steps, checkpoint_every=10**6)]
    return subprocess.Popen(
        [sys.executable, "-c", RUN_WITH_THE_ORACLE, *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
    )


def test_ctrl_c_ends_the_process_with_130_and_a_checkpoint(tmp_path):
    steps = 100_000
    process = start(tmp_path / "run", steps)
    while process.poll() is None and not steps_of(tmp_path / "run", "progress"):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (stopped,) = steps_of(tmp_path / "run", "interrupted")
    line = err.splitlines()[-1]
    assert line == f"nerf-bridge: stopped at step {stopped} of {steps}; the same command goes on"
    assert load_checkpoint(tmp_path / "run" / "checkpoint")[1]["step"] == stopped
    assert leftovers(tmp_path / "run") == []
    with pytest.raises(Killed):
        pipeline.generate(tiny_config(steps=steps, checkpoint_every=10**6), tmp_path / "run", Answers({1: Killed()}))
    assert steps_of(tmp_path / "run", "resumed") == [stopped]
