"""Jobs run one or several at a time; finished ones are skipped, broken ones resumed, and a failure stops no others."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from nerf_bridge.batch.jobs import Job
from nerf_bridge.batch.pool import Engine
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.run.directory import RunDirectory, read_record, run_status
from nerf_bridge.run.events import read_events
from nerf_bridge.run.files import write_json
from nerf_bridge.run.lock import is_locked, take_lock

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "interrupted", "stopped"]


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        prompt: what to make.
        seed: the run's seed.
        out: the run directory, relative to the batch's folder.
        state: `waiting`, `running`, `done`, `failed`, `interrupted` (by the user) or `stopped` (its process is gone).
        message: why it failed, or how far it is.
        seconds: how long it took; None when it has not ended.
    """

    prompt: str
    seed: int
    out: str
    state: State = "waiting"
    message: str = ""
    seconds: float | None = None


def run_batch(jobs: Sequence[Job], out: Path, engine: Engine) -> list[JobState]:
    """Run the jobs in order and keep `batch.json` in `out` up to date.

    Args:
        jobs: what to run.
        out: the batch's folder; made when absent.
        engine: makes the runs, as many at a time as it has workers.

    Returns:
        Where each job stands at the end: `done` or `failed`.

    Raises:
        UserError: `out` cannot be written, or another batch is at work there.
        Interrupted: the user stopped the batch; the jobs not done are as they were.
    """
    states = [JobState(job.prompt, job.config().seed, os.path.relpath(job.out, out)) for job in jobs]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = take_lock(out / ".batch.lock")
        write_json(batch_file(out), _contents(states))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None
    with lock:
        (_one_after_another if engine.workers == 1 else _side_by_side)(jobs, states, out, engine)
    logger.info("%s", summary_table(states))
    return states


def _one_after_another(jobs: Sequence[Job], states: list[JobState], out: Path, engine: Engine) -> None:
    for i, job in enumerate(jobs):
        logger.info("job %d of %d: %s", i + 1, len(jobs), job.prompt)
        states[i] = replace(states[i], state="running")
        _keep(out, states)
        states[i] = _run(job, states[i], engine.run_job)
        _keep(out, states)
        if states[i].state == "interrupted":
            raise Interrupted(
                f"the batch was stopped at job {i + 1} of {len(jobs)}; the same command goes on from there"
            )


def _side_by_side(jobs: Sequence[Job], states: list[JobState], out: Path, engine: Engine) -> None:
    """The same with a thread for each of the engine's workers, and one progress bar over all jobs."""
    keeping = threading.Lock()

    def put(i: int, state: JobState) -> None:
        with keeping:
            states[i] = state
            _keep(out, states)

    def work(i: int) -> None:
        put(i, replace(states[i], state="running"))
        put(i, _run(jobs[i], states[i], engine.run_job))

    with (
        tqdm(total=len(jobs), desc=f"runs, {engine.workers} at a time", unit="run") as bar,
        ThreadPoolExecutor(engine.workers) as threads,
    ):
        begun = [threads.submit(work, i) for i in range(len(jobs))]
        try:
            for ended in as_completed(begun):
                ended.result()
                bar.update()
        except BaseException as error:  # what has not begun does not begin, what has saves its checkpoint
            for future in begun:
                future.cancel()
            engine.interrupt()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("the batch was stopped; the same command goes on from there") from None
            raise
    stopped = sum(state.state == "interrupted" for state in states)
    if stopped:
        raise Interrupted(f"{stopped} of {len(jobs)} jobs were stopped; the same command goes on from there")


def read_batch(out: Path) -> list[JobState]:
    """Where the jobs of the batch in `out` stand, also while it runs.

    Raises:
        UserError: there is no batch in `out`, or its file is damaged.
    """
    path = batch_file(out)
    try:
        states = [JobState(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["jobs"]]
    except FileNotFoundError:
        raise UserError(f"{out} holds no batch: expected the --out of a `batch` command, with its batch.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {path}: {' '.join(str(error).split())}; run the batch again to renew it"
        ) from None
    return [_observed(out, state) for state in states]


def raise_for_failures(states: Sequence[JobState]) -> None:
    """Raise RunError, naming the prompts, when a job failed."""
    failed = [state for state in states if state.state == "failed"]
    if failed:
        names = "; ".join(state.prompt for state in failed)
        raise RunError(f"{len(failed)} of {len(states)} jobs failed ({names}); the same command tries them again")


def summary_table(states: Sequence[JobState]) -> str:
    """A table with a line for each job, and one with the counts."""
    lines = [f"{'state':<12}{'time':>9}  {'prompt':<40}  run"]
    for state in states:
        seconds = "" if state.seconds is None else f"{state.seconds:,.1f} s"
        prompt = state.prompt if len(state.prompt) <= 40 else state.prompt[:39] + "…"
        lines.append(f"{state.state:<12}{seconds:>9}  {prompt:<40}  {state.out}")
        if state.message:
            lines.append(f"{'':<23}{state.message}")
    names = list(dict.fromkeys(state.state for state in states))
    counts = ", ".join(f"{sum(state.state == name for state in states)} {name}" for name in names)
    return "\n".join([*lines, f"{len(states)} jobs: {counts}"])


def batch_file(out: Path) -> Path:
    """The file that says where the jobs of the batch in `out` stand."""
    return out / "batch.json"


def _run(job: Job, state: JobState, run_job: Callable[[Job], object]) -> JobState:
    begin = time.monotonic()
    try:
        if run_status(job.out, job.config()) == "finished":
            return replace(state, state="done", message="was finished already", seconds=_recorded_seconds(job.out))
        run_job(job)
    except (Interrupted, KeyboardInterrupt):
        return replace(state, state="interrupted", seconds=time.monotonic() - begin)
    except (UserError, RunError, OSError) as error:
        message = " ".join((getattr(error, "strerror", None) or str(error)).split())
        logger.error("%s: %s", job.prompt, message)
        return replace(state, state="failed", message=message, seconds=time.monotonic() - begin)
    except Exception as error:  # whatever broke this run, the other ones are not to blame
        logger.exception("%s: failed unexpectedly", job.prompt)
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return replace(state, state="failed", message=message, seconds=time.monotonic() - begin)
    return replace(state, state="done", seconds=time.monotonic() - begin)


def _recorded_seconds(out: Path) -> float | None:
    seconds = read_record(RunDirectory(out)).get("seconds")
    return round(sum(seconds.values()), 3) if isinstance(seconds, dict) else None


def _contents(states: Sequence[JobState]) -> dict[str, object]:
    return {"updated": round(time.time(), 3), "jobs": [asdict(state) for state in states]}


def _keep(out: Path, states: Sequence[JobState]) -> None:
    """Write `batch.json`; a disk that is full now may have room for the next job."""
    try:
        write_json(batch_file(out), _contents(states))
    except OSError as error:
        logger.warning("cannot write %s: %s", batch_file(out), error.strerror or error)


def _observed(out: Path, state: JobState) -> JobState:
    """`state`, with how far a running job is, or that its process is gone."""
    if state.state != "running":
        return state
    run = RunDirectory(out / state.out)
    events = read_events(run.events)
    progress = (
        f"{events[-1].get('stage')}, step {events[-1].get('step')} of {events[-1].get('steps')}" if events else ""
    )
    alive = is_locked(run.lock) or is_locked(out / ".batch.lock")
    return replace(state, state="running" if alive else "stopped", message=progress)
