"""Processes that make runs side by side, spread over the GPUs."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nerf_bridge.batch.jobs import Job
from nerf_bridge.batch.worker import END, job_line
from nerf_bridge.errors import Interrupted, RunError, UserError

PATIENCE = 60.0  # seconds in which a worker that was told to end must have ended


@dataclass(frozen=True)
class Engine:
    """What makes the runs of a batch.

    Attributes:
        run_job: makes the run of a job, resuming what lies in its directory; raises when that fails.
        workers: how many threads may call it at the same time.
        interrupt: makes the calls in progress end soon, with Interrupted; their runs can be resumed.
    """

    run_job: Callable[[Job], object]
    workers: int = 1
    interrupt: Callable[[], None] = lambda: None


@contextmanager
def open_engine(workers: int, out: Path, device: str) -> Iterator[Engine]:
    """Give the engine for `workers` runs at a time: one in this process, several in processes of their own.

    Args:
        workers: at least 1.
        out: the batch's folder, which receives the workers' logs.
        device: the setting `device` of the runs.
    """
    if workers == 1:
        from nerf_bridge import pipeline

        yield Engine(lambda job: pipeline.generate(job.config(), job.out))
        return
    command = (sys.executable, "-m", "nerf_bridge.batch.worker", device)
    environments = worker_environments(workers, visible_gpus(device, os.environ), os.environ)
    pool = Pool([Worker(command, each, out / f"worker-{i}.log") for i, each in enumerate(environments)])
    try:
        yield Engine(pool.run, workers, pool.interrupt)
    finally:
        pool.close()


def visible_gpus(device: str, environment: Mapping[str, str]) -> list[str]:
    """The GPUs that runs on `device` may use, as CUDA_VISIBLE_DEVICES names them."""
    if device == "cpu":
        return []
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",") if name.strip()]
        return list(itertools.takewhile(lambda name: not name.startswith("-"), names))  # CUDA stops there too
    import torch  # takes seconds to load, and a batch on the CPU needs it here for nothing

    return [str(i) for i in range(torch.cuda.device_count())]


def worker_environments(workers: int, gpus: Sequence[str], environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each worker: one of the `gpus` in turn, and its share of the processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, processors // workers)
    same = {"OMP_NUM_THREADS": str(share), **environment, "TQDM_DISABLE": "1"}
    return [same | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(workers)]


class Worker:
    """A process that makes one run after another: started with the first, and again when it has died.

    It stands apart from this process's terminal, so that a Ctrl-C reaches it once, through `interrupt`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start nothing yet; what the process, `command` in `environment`, prints goes to the file `log`."""
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._guard = threading.Lock()  # so that none starts when all are being stopped

    def run(self, job: Job) -> None:
        """Make the run of `job`.

        Raises:
            UserError, RunError: as `generate` does; RunError also when the process died.
            Interrupted: `interrupt` was called.
        """
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            print(job_line(job), file=process.stdin, flush=True)
        said = process.stdout.readline()
        if not said and not self._stopped:
            raise RunError(f"the worker's process ended with status {process.wait()}: {self.log} tells more")
        answer = json.loads(said) if said else {"error": "Interrupted", "message": "stopped"}
        if answer["error"]:
            raise {"Interrupted": Interrupted, "UserError": UserError}.get(answer["error"], RunError)(answer["message"])

    def interrupt(self) -> None:
        """Let the process save its checkpoint and end its run, as by Ctrl-C, and take no more."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Tell the process that it is done, and wait for its end; kill it when it does not come."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(END, file=self._process.stdin, flush=True)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None

    def _running(self) -> subprocess.Popen[str]:
        with self._guard:
            if self._stopped:
                raise Interrupted("stopped")
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if self._process is None:
                with open(self.log, "ab") as log:
                    self._process = subprocess.Popen(
                        self._command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=self._environment,
                        start_new_session=True,
                    )
            return self._process


class Pool:
    """Several workers, each with one run at a time."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = list(workers)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    def run(self, job: Job) -> None:
        """Make the run of `job` in the next idle worker; raises as `Worker.run`."""
        worker = self._idle.get()
        try:
            worker.run(job)
        finally:
            self._idle.put(worker)

    def interrupt(self) -> None:
        """Interrupt every worker."""
        for worker in self._workers:
            worker.interrupt()

    def close(self) -> None:
        """Close every worker."""
        for worker in self._workers:
            worker.close()
