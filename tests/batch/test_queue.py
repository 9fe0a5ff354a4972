"""A batch skips what is finished, survives failures, stops when asked to, and says where it stands."""

import errno
import json
import os
from pathlib import Path

import pytest

from nerf_bridge.batch import queue
from nerf_bridge.batch.gallery import write_gallery
from nerf_bridge.batch.jobs import Job, read_jobs
from nerf_bridge.batch.pool import Engine
from nerf_bridge.batch.queue import JobState, raise_for_failures, read_batch, run_batch, summary_table
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.run.directory import RunDirectory, open_run, write_record
from nerf_bridge.run.events import EventLog


def jobs_for(folder: Path, *prompts: str) -> list[Job]:
    (folder / "jobs.txt").write_text("\n".join(prompts))
    return read_jobs(folder / "jobs.txt", folder / "runs")


def finish(job: Job) -> None:
    """What a run that comes to its end leaves."""
    with open_run(job.out, job.config()) as state:
        for path in (state.run.asset, state.run.preview, state.run.turntable, state.run.report):
            path.write_bytes(b"x")
        write_record(state.run, {"state": "done", "seconds": {"optimise": 2.0, "mesh": 0.5}})


def on_disk(folder: Path) -> list[str]:
    return [job["state"] for job in json.loads((folder / "runs" / "batch.json").read_text())["jobs"]]


def test_one_after_another(tmp_path):
    seen = []

    def work(job: Job) -> None:
        seen.append((job.prompt, on_disk(tmp_path)))
        finish(job)

    states = run_batch(jobs_for(tmp_path, "a chair", "a sofa"), tmp_path / "runs", Engine(work))
    assert seen == [("a chair", ["running", "waiting"]), ("a sofa", ["done", "running"])]
    assert [state.state for state in states] == ["done", "done"]
    assert states == read_batch(tmp_path / "runs")
    raise_for_failures(states)


def test_finished_runs_are_skipped(tmp_path):
    jobs = jobs_for(tmp_path, "a chair", "a sofa")
    finish(jobs[0])
    seen = []
    states = run_batch(jobs, tmp_path / "runs", Engine(lambda job: seen.append(job.prompt)))
    assert seen == ["a sofa"]
    assert states[0].state == "done" and states[0].message == "was finished already" and states[0].seconds == 2.5


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (UserError("no such\nprior"), "no such prior"),
        (RunError("memory ran out"), "memory ran out"),
        (OSError(errno.ENOSPC, "disk full"), "disk full"),
        (ZeroDivisionError("bug"), "ZeroDivisionError: bug"),
    ],
)
def test_a_failure_does_not_stop_the_rest(tmp_path, failure, message):
    def work(job: Job) -> None:
        if job.prompt == "a sofa":
            raise failure
        finish(job)

    states = run_batch(jobs_for(tmp_path, "a chair", "a sofa", "a table"), tmp_path / "runs", Engine(work))
    assert [state.state for state in states] == ["done", "failed", "done"] == on_disk(tmp_path)
    assert states[1].message == message
    with pytest.raises(RunError, match=r"1 of 3 jobs failed \(a sofa\)"):
        raise_for_failures(states)


def test_the_second_time_only_what_failed_runs(tmp_path):
    jobs, broken = jobs_for(tmp_path, "a chair", "a sofa"), [True]

    def work(job: Job) -> None:
        if job.prompt == "a chair" and broken.pop():
            raise RunError("out of luck")
        finish(job)

    run_batch(jobs, tmp_path / "runs", Engine(work))
    broken.append(False)
    states = run_batch(jobs, tmp_path / "runs", Engine(work))
    assert [state.state for state in states] == ["done", "done"]
    assert states[0].message == "" and states[1].message == "was finished already"


def test_another_run_in_the_place_is_a_failure_of_that_job(tmp_path):
    jobs = jobs_for(tmp_path, "a chair", "a sofa")
    other = jobs_for(tmp_path, "a cupboard")[0]
    open_run(jobs[0].out, other.config()).close()
    states = run_batch(jobs, tmp_path / "runs", Engine(finish))
    assert [state.state for state in states] == ["failed", "done"]
    assert "another prompt" in states[0].message


@pytest.mark.parametrize("stop", [Interrupted("saved"), KeyboardInterrupt()])
def test_interrupted_stops_the_batch(tmp_path, stop):
    def work(job: Job) -> None:
        if job.prompt == "a sofa":
            raise stop
        finish(job)

    jobs = jobs_for(tmp_path, "a chair", "a sofa", "a table")
    with pytest.raises(Interrupted, match="job 2 of 3"):
        run_batch(jobs, tmp_path / "runs", Engine(work))
    assert on_disk(tmp_path) == ["done", "interrupted", "waiting"]
    assert [state.state for state in run_batch(jobs, tmp_path / "runs", Engine(finish))] == ["done"] * 3


def test_a_killed_batch_shows_as_stopped(tmp_path):
    class Killed(BaseException):
        """Stands for the end of the process."""

    def work(job: Job) -> None:
        with open_run(job.out, job.config()) as state, EventLog(state.run.events) as log:
            log.append("progress", "optimise", 120, 300)
            assert read_batch(tmp_path / "runs")[0].state == "running"
            assert read_batch(tmp_path / "runs")[0].message == "optimise, step 120 of 300"
            raise Killed

    with pytest.raises(Killed):
        run_batch(jobs_for(tmp_path, "a chair"), tmp_path / "runs", Engine(work))
    assert [state.state for state in read_batch(tmp_path / "runs")] == ["stopped"]


def test_two_batches_cannot_share_a_folder(tmp_path):
    jobs = jobs_for(tmp_path, "a chair")

    def work(job: Job) -> None:
        with pytest.raises(UserError, match="another process"):
            run_batch(jobs, tmp_path / "runs", Engine(finish))
        finish(job)

    assert run_batch(jobs, tmp_path / "runs", Engine(work))[0].state == "done"


def test_an_unwritable_place(tmp_path):
    jobs = jobs_for(tmp_path, "a chair")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write to"):
        run_batch(jobs, tmp_path / "file" / "below", Engine(finish))


def test_a_disk_that_fills_up_does_not_stop_the_rest(tmp_path, monkeypatch, caplog):
    written = []

    def write(path, value):
        written.append(value)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(queue, "write_json", write)
    states = run_batch(jobs_for(tmp_path, "a chair", "a sofa"), tmp_path / "runs", Engine(finish))
    assert [state.state for state in states] == ["done", "done"] and len(written) == 5
    assert "No space left" in caplog.text


def test_no_batch_and_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="holds no batch"):
        read_batch(tmp_path)
    for text in ("{", "[]", '{"jobs": [{"colour": 1}]}'):
        (tmp_path / "batch.json").write_text(text)
        with pytest.raises(UserError, match="cannot read"):
            read_batch(tmp_path)


def test_the_table_says_it_all():
    long = "a very long prompt that goes on and on beyond its column"
    states = [
        JobState("a chair", 0, "a-chair-s0", "done", "", 61.25),
        JobState(long, 1, "b-s1", "failed", "memory ran out", 3.0),
        JobState("a sofa", 0, "a-sofa-s0"),
    ]
    lines = summary_table(states).split("\n")
    assert lines[1].split() == ["done", "61.2", "s", "a", "chair", "a-chair-s0"]
    assert "…  b-s1" in lines[2] and lines[3].strip() == "memory ran out"
    assert lines[4].split() == ["waiting", "a", "sofa", "a-sofa-s0"]
    assert lines[5] == "3 jobs: 1 done, 1 failed, 1 waiting"


def test_the_gallery_links_to_what_is_there(tmp_path):
    run = RunDirectory(tmp_path / "a chair#1")
    run.path.mkdir()
    run.preview.write_bytes(b"x")
    run.report.write_bytes(b"x")
    states = [JobState("a <chair>", 0, "a chair#1", "done", "", 1.0), JobState("b", 0, "b", "failed", "ran out")]
    html = write_gallery(tmp_path, states).read_text()
    assert "a &lt;chair&gt;" in html and "<chair>" not in html
    assert 'src="a%20chair%231/preview.png"' in html and 'href="a%20chair%231/report.html"' in html
    assert "asset.glb" not in html and "no picture" in html and "ran out" in html and "1 of 2 done" in html
