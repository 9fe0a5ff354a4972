"""Runs side by side: shared out, told apart when they fail, stopped once, and gone with who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from batch.test_queue import finish, jobs_for, on_disk
from tiny_run import options

from nerf_bridge import cli
from nerf_bridge.batch.jobs import Job
from nerf_bridge.batch.pool import Engine, Pool, Worker, open_engine, visible_gpus, worker_environments
from nerf_bridge.batch.queue import run_batch
from nerf_bridge.batch.worker import job_line, read_job
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.run.directory import RunDirectory, is_finished

TESTS = Path(__file__).parents[1]
COMMAND = (sys.executable, str(Path(__file__).with_name("stub_worker.py")), "cpu")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


@pytest.fixture
def pool(tmp_path):
    """Two workers that make stub runs."""
    (tmp_path / "runs").mkdir()
    made = Pool([Worker(COMMAND, environment(), tmp_path / "runs" / f"worker-{i}.log") for i in range(2)])
    yield made
    made.close()


def wait_for(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def test_two_jobs_are_at_work_at_the_same_time(tmp_path):
    both = threading.Barrier(2, timeout=10)

    def work(job: Job) -> None:
        both.wait()
        finish(job)

    states = run_batch(jobs_for(tmp_path, "a", "b", "c", "d"), tmp_path / "runs", Engine(work, 2))
    assert [state.state for state in states] == ["done"] * 4 == on_disk(tmp_path)


def test_a_failure_side_by_side_does_not_stop_the_rest(tmp_path):
    def work(job: Job) -> None:
        if job.prompt == "b":
            raise RunError("memory ran out")
        finish(job)

    states = run_batch(jobs_for(tmp_path, "a", "b", "c"), tmp_path / "runs", Engine(work, 2))
    assert [state.state for state in states] == ["done", "failed", "done"]
    assert states[1].message == "memory ran out"


def test_a_run_that_was_stopped_from_outside_is_not_taken_for_done(tmp_path):
    def work(job: Job) -> None:
        if job.prompt == "b":
            raise Interrupted("stopped")
        finish(job)

    with pytest.raises(Interrupted, match="1 of 3 jobs were stopped; the same command goes on"):
        run_batch(jobs_for(tmp_path, "a", "b", "c"), tmp_path / "runs", Engine(work, 2))
    assert on_disk(tmp_path) == ["done", "interrupted", "done"]


def test_ctrl_c_interrupts_what_is_at_work_and_begins_nothing_else(tmp_path):
    begun, stopped = [], threading.Event()

    def work(job: Job) -> None:
        begun.append(job.prompt)
        if len(begun) == 2:
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        assert stopped.wait(10)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted, match="the same command goes on"):
        run_batch(jobs_for(tmp_path, "a", "b", "c", "d"), tmp_path / "runs", Engine(work, 2, stopped.set))
    assert sorted(begun) == ["a", "b"]
    assert on_disk(tmp_path) == ["interrupted", "interrupted", "waiting", "waiting"]


def test_a_job_comes_through_as_it_is(tmp_path):
    job = Job('a "red"\nsofa é', {"seed": 3, "mesh": {"faces": 100}}, tmp_path / "a b", 7)
    assert "\n" not in job_line(job)
    assert read_job(job_line(job)) == job


def test_workers_make_run_after_run(tmp_path, pool):
    states = run_batch(jobs_for(tmp_path, "a", "b", "c", "d"), tmp_path / "runs", Engine(pool.run, 2))
    assert [state.state for state in states] == ["done"] * 4
    makers = {(tmp_path / "runs" / state.out / "made-by").read_text().split()[0] for state in states}
    assert len(makers) <= 2
    assert "printed by a run" in (tmp_path / "runs" / "worker-0.log").read_text()


def test_each_way_to_fail_is_told_and_a_dead_worker_is_replaced(tmp_path, pool):
    prompts = ["broken", "broken words", "broken disk", "dies", "dies too", "a", "b"]
    states = run_batch(jobs_for(tmp_path, *prompts), tmp_path / "runs", Engine(pool.run, 2))
    assert [state.state for state in states] == ["failed"] * 5 + ["done"] * 2
    assert [state.message for state in states[:3]] == ["it broke"] * 3
    assert "ended with status 3" in states[3].message and "worker-" in states[3].message


@pytest.mark.parametrize(("prompt", "kind"), [("broken words", UserError), ("broken disk", RunError)])
def test_errors_keep_their_kind(tmp_path, pool, prompt, kind):
    (job,) = jobs_for(tmp_path, prompt)
    with pytest.raises(kind, match="it broke"):
        pool.run(job)


def test_an_interrupted_worker_saves_its_checkpoint_and_takes_no_more(tmp_path, pool):
    slow, other = jobs_for(tmp_path, "slow", "a")
    threading.Thread(target=lambda: (wait_for(slow.out / "begun"), pool.interrupt())).start()
    with pytest.raises(Interrupted):
        pool.run(slow)
    assert (slow.out / "checkpoint").exists()
    for _ in range(2):
        with pytest.raises(Interrupted):
            pool.run(other)


def test_a_worker_ends_when_its_starter_is_gone(tmp_path):
    (slow,) = jobs_for(tmp_path, "slow")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(COMMAND, text=True, env=environment(), **pipes) as process:
        print(job_line(slow), file=process.stdin, flush=True)
        wait_for(slow.out / "begun")
        process.stdin.close()
        assert process.wait(20) == -signal.SIGTERM


def test_the_gpus_are_taken_in_turn_and_the_processors_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    made = worker_environments(3, ["0", "1"], {"HOME": "/home"})
    assert [each["CUDA_VISIBLE_DEVICES"] for each in made] == ["0", "1", "0"]
    assert {each["OMP_NUM_THREADS"] for each in made} == {"2"}
    (given,) = worker_environments(1, [], {"OMP_NUM_THREADS": "5"})
    assert given["OMP_NUM_THREADS"] == "5" and "CUDA_VISIBLE_DEVICES" not in given
    assert worker_environments(99, [], {})[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert worker_environments(2, [], {})[0]["OMP_NUM_THREADS"] == "3"


def test_which_gpus_a_batch_may_use():
    named = {"CUDA_VISIBLE_DEVICES": "2, GPU-1f"}
    assert visible_gpus("cpu", named) == []
    assert visible_gpus("auto", named) == ["2", "GPU-1f"]
    assert visible_gpus("cuda", {"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus("auto", {"CUDA_VISIBLE_DEVICES": "0,-1,1"}) == ["0"]


def test_one_worker_is_this_process(tmp_path, monkeypatch):
    from nerf_bridge import pipeline

    seen = []
    monkeypatch.setattr(pipeline, "generate", lambda config, out: seen.append((config.prompt, os.getpid())))
    with open_engine(1, tmp_path, "cpu") as engine:
        engine.run_job(jobs_for(tmp_path, "a")[0])
    assert seen == [("a", os.getpid())]


@pytest.mark.slow
def test_the_command_makes_real_runs_in_two_workers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    Path("jobs.txt").write_text("a red chair\na green sofa\n")
    assert cli.main(["batch", "jobs.txt", "--out", "made", "--workers", "2", *options(steps=2)]) == 0
    for name in ("a-red-chair-s0", "a-green-sofa-s0"):
        assert is_finished(RunDirectory(tmp_path / "made" / name)), Path("made/worker-0.log").read_text()
    assert Path("made/gallery.html").is_file() and "gallery" in capsys.readouterr().out
