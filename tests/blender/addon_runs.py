"""Small run directories, written with the package's own writers, for the add-on to list."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from nerf_bridge.run.directory import RunDirectory, default_run_path, write_record
from nerf_bridge.run.events import EventLog
from nerf_bridge.run.preview import image_grid, save_png

PRIOR = {"name": "embedded", "licence": "Apache-2.0"}
SIDES = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
"""Colours of the four views of a preview; the front is red."""


def make_run(folder: Path, prompt: str, state: str, seed: int = 0, changed: int = 1_000_000, **more: object) -> Path:
    """A run directory with record and events, as far as `state` goes; its record is `changed` seconds old (1970)."""
    run = RunDirectory(folder / default_run_path(prompt, seed).name)
    run.path.mkdir(parents=True)
    run.lock.touch()
    run.config.write_text(f"prompt: {prompt}\n", encoding="utf-8")
    with EventLog(run.events) as log:
        log.append("start", "prior", 0, 300)
        log.append("progress", "optimise", 120, 300, {"opacity": 0.1})
        if state == "done":
            log.append("done", "report", 300, 300)
    if state == "done":
        save_png(run.preview, image_grid(np.array(SIDES)[:, None, None].repeat(40, 1).repeat(40, 2), 4))
        more = {"mesh": {"faces": 20000}, "prior": PRIOR} | more
    write_record(run, {"prompt": prompt, "seed": seed, "state": state} | more)
    os.utime(run.record, (changed, changed))
    return run.path
