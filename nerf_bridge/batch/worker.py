"""A process that makes one run after another as it is told: `python -m nerf_bridge.batch.worker DEVICE`; see `pool`.

On standard input it gets a job a line, as JSON, and at last the line END; on standard output it answers each with a
line, as JSON: `error` (the error's kind, empty when the run is done) and `message`. What else is printed goes to
standard error. When the input ends without END, whoever started the process is gone: it stops as by SIGTERM, and its
run can be resumed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from nerf_bridge.batch.jobs import Job
from nerf_bridge.device import wake_gpu
from nerf_bridge.errors import Interrupted, RunError, UserError

END = "end"


def job_line(job: Job) -> str:
    """`job` as a worker reads it."""
    return json.dumps({"prompt": job.prompt, "settings": job.settings, "out": str(job.out), "line": job.line})


def read_job(line: str) -> Job:
    """The inverse of `job_line`."""
    told = json.loads(line)
    return Job(told["prompt"], told["settings"], Path(told["out"]), told["line"])


def answer(job: Job) -> dict[str, str]:
    """Make the run of `job`, and say how it ended."""
    from nerf_bridge import pipeline  # here, because torch takes seconds to load, and the GPU is woken before

    try:
        pipeline.generate(job.config(), job.out)
    except (Interrupted, KeyboardInterrupt) as error:
        return {"error": "Interrupted", "message": str(error)}
    except (UserError, RunError, OSError) as error:
        return {"error": type(error).__name__, "message": getattr(error, "strerror", None) or str(error)}
    except Exception as error:  # whatever broke this run, the next ones are not to blame
        traceback.print_exc()
        return {"error": type(error).__name__, "message": f"{type(error).__name__}: {error}"}
    return {"error": "", "message": ""}


def serve(told: Iterable[bytes], replies: TextIO) -> None:
    """Answer the jobs that come in `told`, until END."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(told, lines), name="listen", daemon=True).start()
    while (line := lines.get()) != END:
        print(json.dumps(answer(read_job(line))), file=replies, flush=True)


def _listen(told: Iterable[bytes], lines: queue.SimpleQueue[str]) -> None:
    """Hand on what comes in; when it breaks off, end the process, also while it works."""
    for line in told:
        lines.put(line.decode().strip())
        if line.decode().strip() == END:
            return
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """The process; its argument is the setting `device` of the runs."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wake_gpu(sys.argv[1])
    try:
        serve(io.FileIO(0, closefd=False), replies)  # not sys.stdin, whose lock a thread that waits would keep
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
