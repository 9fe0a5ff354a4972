"""The whole training as one command: its runs in order, each from the one before, and what is done is kept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import retrain, train
from nerf_bridge.prior.retrain import LEAST_MINUTES, RUNS, SEED_APART, Trained

PACKAGE = __file__  # any file: packing is stood in for
NOTHING = Trained(0.0, 0)


@pytest.fixture
def calls(monkeypatch):
    """What is called in place of packing and training; a training leaves weights."""
    found: list[list[str]] = []

    def pack(arguments):
        found.append(["pack", *arguments])
        out = arguments[arguments.index("--out") + 1]
        with open(out, "w") as file:
            file.write("library")

    def run(call, check):
        found.append(call)
        failed = len(found) == getattr(run, "fails_at", None)
        (retrain.Path(option(call, "--out"))).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(call, int(failed))

    monkeypatch.setattr(retrain.pack, "main", pack)
    monkeypatch.setattr(retrain.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return found, run


def option(call, name):
    return call[call.index(name) + 1]


def test_it_packs_once_and_trains_each_run_from_the_one_before(calls, tmp_path):
    found, _ = calls
    out = tmp_path / "new" / "retrained"
    assert retrain.main(["--package", PACKAGE, "--out", str(out)]) == 0
    packed, *trained = found
    assert packed == ["pack", "--package", PACKAGE, "--out", str(out / "library.npz")] and len(trained) == len(RUNS)
    starts = [option(call, "--start-from") for call in trained[1:]]
    assert "--start-from" not in trained[0] and starts == [str(out / f"run-{n}") for n in range(1, len(RUNS))]
    assert [float(option(call, "--minutes")) for call in trained] == [run.minutes for run in RUNS]
    assert ["torch.distributed.run" in call for call in trained] == [run.gpus == 2 for run in RUNS]
    kept = sorted(path.name for path in out.iterdir())
    assert kept == ["library.npz", *(f"run-{n}" for n in range(1, len(RUNS))), "weights"]
    assert retrain.main(["--package", PACKAGE, "--out", str(out)]) == 0 and len(found) == 1 + len(RUNS)


def test_a_run_that_failed_is_done_again_and_those_before_are_kept(calls, tmp_path, capsys):
    found, run = calls
    run.fails_at = 4  # packing and two runs went well
    assert retrain.main(["--package", PACKAGE, "--out", str(tmp_path)]) == 1
    assert "run 3 failed" in capsys.readouterr().err and not (tmp_path / "run-3").exists()
    run.fails_at = None
    assert retrain.main(["--package", PACKAGE, "--out", str(tmp_path)]) == 0
    assert option(found[4], "--out") == option(found[3], "--out") and len(found) == 4 + len(RUNS) - 2
    assert not list(tmp_path.glob("*.unfinished"))


def keep(folder, *trainings):
    """Weights in `folder` after trainings of (GPUs, seconds)."""
    folder.mkdir()
    *earlier, last = [{"gpus": gpus, "log": [{"seconds": 1.0}, {"seconds": seconds}]} for gpus, seconds in trainings]
    (folder / "index.json").write_text(json.dumps({"training": last | {"earlier": earlier}}))


def test_a_stopped_run_goes_on_from_its_weights_for_the_minutes_that_are_left(calls, tmp_path):
    found, _ = calls
    keep(tmp_path / "run-1", (2, 600.0))
    keep(tmp_path / "run-2.unfinished", (2, 600.0), (1, 120.0), (1, 60.0))  # in two parts: 3 of its minutes
    assert retrain.main(["--package", PACKAGE, "--out", str(tmp_path), "--gpus", "1"]) == 0
    call = found[1]
    assert "--resume" in call and "--start-from" not in call
    assert float(option(call, "--minutes")) == RUNS[1].minutes - 3
    assert int(option(call, "--seed")) == RUNS[1].seed + 2 * SEED_APART
    assert option(found[2], "--start-from") == str(tmp_path / "run-2")


def test_a_run_that_is_all_but_done_is_taken_as_it_is(calls, tmp_path):
    found, _ = calls
    keep(tmp_path / "run-1.unfinished", (2, 30 * (2 * RUNS[0].minutes - LEAST_MINUTES / 2)))
    assert retrain.main(["--package", PACKAGE, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "run-1" / "index.json").exists() and len(found) == 1 + len(RUNS) - 1


def test_one_gpu_takes_as_much_longer_and_a_share_as_much_less(tmp_path):
    calls = [retrain.command(run, tmp_path, tmp_path, None, 1, 0.5, NOTHING) for run in RUNS]
    assert [float(option(call, "--minutes")) for call in calls] == [run.minutes * run.gpus / 2 for run in RUNS]
    assert not any("torch.distributed.run" in call for call in calls)


def test_every_option_is_one_of_the_training(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(train, "run", lambda arguments, rank, world: taken.append(arguments))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for run in RUNS:
        call = retrain.command(run, tmp_path / "library.npz", tmp_path / "out", tmp_path / "before", 1, 1.0, NOTHING)
        monkeypatch.setattr(sys, "argv", call[2:])
        train.main()
    assert [arguments.seed for arguments in taken] == [0, 0, 5, 6, 7, 8]
    assert [arguments.astray_every for arguments in taken] == [0, 0, 0, 0, 0, train.ASTRAY_EVERY]
    assert {arguments.views for arguments in taken} == {80}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "0"], "--gpus: expected at least 1"),
        (["--share", "0"], "--share: expected"),
        (["--package", "no.deb"], "--package: no such file or folder: no.deb"),
    ],
)
def test_what_cannot_be_is_one_line(calls, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as stopped:
        retrain.main(["--package", PACKAGE, "--out", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
    assert calls[0] == [] and not (tmp_path / "out").exists()


def test_without_a_gpu_nothing_is_begun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        retrain.usable_gpus(None)
