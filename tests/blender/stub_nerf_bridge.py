"""`nerf-bridge` in all but the work: real arguments, run directory, events and exit statuses, and an asset copied.

The prompt says how it goes: "broken ..." fails on the way, "slow ..." goes on until it is stopped. The GLB that becomes
the asset is named by STUB_ASSET.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path

from nerf_bridge import cli
from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import Interrupted, RunError
from nerf_bridge.run.directory import RunDirectory, open_run, write_record
from nerf_bridge.run.events import EventLog

LONGEST_SECONDS = 120.0
"""After which also what is "slow" ends, so that a test that fails leaves no process behind."""


def generate(config: GenerateConfig, out: Path, began: float) -> RunDirectory:
    """Stands for `pipeline.generate`."""
    with open_run(out, config) as found, EventLog(out / "events.jsonl") as log:
        record = {"prompt": config.prompt, "seed": config.seed, "state": "running"}
        write_record(found.run, record)
        log.append("start", "prior", 0, config.steps)
        step, slow, end = 0, config.prompt.startswith("slow"), time.monotonic() + LONGEST_SECONDS
        try:
            while step < config.steps and time.monotonic() < end:
                step = min(step + 1, config.steps - 1) if slow else step + 1
                time.sleep(0.02)
                log.append("progress", "optimise", step, config.steps, {"opacity": 0.1})
        except KeyboardInterrupt:
            write_record(found.run, record | {"state": "interrupted"})
            log.append("interrupted", "optimise", step, config.steps)
            raise Interrupted(f"stopped at step {step}; the same command resumes it") from None
        if config.prompt.startswith("broken"):
            log.append("failed", "optimise", step, config.steps, {"reason": "the scene stayed empty"})
            write_record(found.run, record | {"state": "failed", "reason": "the scene stayed empty"})
            raise RunError("the run failed: the scene stayed empty")
        log.append("stage", "mesh", step, config.steps)
        shutil.copy(os.environ["STUB_ASSET"], found.run.asset)
        prior = {"name": "embedded", "licence": "Apache-2.0"}
        write_record(found.run, record | {"state": "done", "mesh": {"faces": 200}, "prior": prior})
        log.append("done", "report", step, config.steps)
        return found.run


if __name__ == "__main__":
    pipeline = types.ModuleType("nerf_bridge.pipeline")
    pipeline.generate = generate  # type: ignore[attr-defined]
    sys.modules["nerf_bridge.pipeline"] = pipeline
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as the optimisation does, also where it comes ignored
    sys.exit(cli.main())
