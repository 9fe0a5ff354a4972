"""A run that is refused before its first step leaves nothing that would stand in the way of its remedy."""

import json
import shutil

import pytest
from tiny_run import PROMPT, CountingOracle, Killed, files, options, shorten_turntable, tiny_config

from nerf_bridge import cli, pipeline
from nerf_bridge.batch.jobs import Job
from nerf_bridge.batch.pool import Engine
from nerf_bridge.batch.queue import run_batch
from nerf_bridge.errors import UserError
from nerf_bridge.run.directory import open_run, read_record


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """No model on the disk, and a short film."""
    monkeypatch.setenv("NERF_BRIDGE_LOCK", str(tmp_path / "settings" / "my.lock.json"))
    monkeypatch.setenv("NERF_BRIDGE_CACHE", str(tmp_path / "cache"))
    shorten_turntable(monkeypatch)


def refused(path, capfd, *words):
    """What `generate` says on its last line when it refuses."""
    assert cli.main(["generate", PROMPT, "--out", str(path), *options(), *words]) == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_each_remedy_can_be_followed(tmp_path, capfd, monkeypatch):
    """A licence, then a model that is not there, then another prior: none finds the settings of the one before."""
    path = tmp_path / "run"
    assert "say --model.non_commercial true" in refused(path, capfd, "--prior", "if-m")
    assert not path.exists()
    more = ("--model.non_commercial", "true", "--model.offline", "true")
    assert "if-m is not on this disk" in refused(path, capfd, "--prior", "if-m", *more)
    assert not path.exists()
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: CountingOracle())
    assert cli.main(["generate", PROMPT, "--out", str(path), *options()]) == 0
    assert read_record(open_run(path, tiny_config()).run)["state"] == "done"


def test_also_where_the_prior_refuses_a_setting(tmp_path, capfd):
    assert "model.dtype is for other priors" in refused(tmp_path / "run", capfd, "--model.dtype", "float16")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays_and_is_taken_by_the_next_run(tmp_path, capfd):
    path = tmp_path / "run"
    path.mkdir()
    refused(path, capfd, "--prior", "if-m")
    assert set(files(path)) <= {".lock"}
    pipeline.generate(tiny_config(), path, CountingOracle())


def test_what_an_earlier_refusal_left_is_taken_back_by_the_next(tmp_path, capfd):
    config = tiny_config(prior="if-m")
    open_run(tmp_path / "run", config).close()
    refused(tmp_path / "run", capfd, "--prior", "if-m")
    assert set(files(tmp_path / "run")) <= {".lock"}


def test_a_run_with_a_checkpoint_is_never_taken_back(tmp_path, capfd, monkeypatch):
    class Dies(CountingOracle):
        def at_step(self, step, noised):
            if step == 3:
                raise Killed

    with pytest.raises(Killed):
        pipeline.generate(tiny_config(), tmp_path / "run", Dies())
    kept = {name for name in files(tmp_path / "run") if name.startswith(("checkpoint/", "config"))}
    assert len(kept) == 3

    def refuse(*_):
        raise UserError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "load_prior", refuse)
        assert refused(tmp_path / "run", capfd) == "nerf-bridge: error: not now"
    assert kept <= set(files(tmp_path / "run"))
    pipeline.generate(tiny_config(), tmp_path / "run", CountingOracle())


def test_foreign_files_and_pictures_are_never_taken_back(tmp_path):
    for name in ("notes.txt", "previews/step-000003.png"):
        with open_run(tmp_path / "run", tiny_config()) as state:
            (state.run.path / name).write_text("mine")
            state.take_back()
            assert state.run.config.is_file() and (state.run.path / name).read_text() == "mine"
        shutil.rmtree(tmp_path / "run")


def test_a_batch_still_tells_why_a_job_was_refused(tmp_path):
    job = Job(PROMPT, {"prior": "if-m"}, tmp_path / "runs" / "a", 1)
    (state,) = run_batch([job], tmp_path / "runs", Engine(lambda job: pipeline.generate(job.config(), job.out)))
    assert state.state == "failed" and "say --model.non_commercial true" in state.message
    (told,) = json.loads((tmp_path / "runs" / "batch.json").read_text())["jobs"]
    assert told["message"] == state.message and not job.out.exists()
