"""The progress of a run, read from its `events.jsonl` while the run writes it. Needs no Blender."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: `prior`, `optimise`, `mesh` or `report`.
        step: optimisation steps done.
        steps: optimisation steps in all; 0 when it is not known.
    """

    stage: str
    step: int
    steps: int

    @property
    def fraction(self) -> float:
        """The part of the optimisation that is done, 0 to 1."""
        return min(max(self.step / self.steps, 0.0), 1.0) if self.steps > 0 else 0.0

    def __str__(self) -> str:
        if self.stage == "optimise" and self.steps:
            return f"optimise, step {self.step} of {self.steps}"
        return self.stage


def end_of_lines(path: Path) -> int:
    """Where the last whole line of the file ends, in bytes; 0 without a file.

    A run that resumes cuts off what comes after that, so this is where its own events will start.
    """
    try:
        return path.read_bytes().rfind(b"\n") + 1
    except OSError:
        return 0


def read_progress(path: Path, start: int = 0) -> Progress | None:
    """The latest progress in the events that lie after byte `start`; None when there is none yet.

    Reads the end of the file only. A half-written or damaged line is passed over.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        progress = _parse(line)
        if progress is not None:
            return progress
    return None


def _parse(line: bytes) -> Progress | None:
    try:
        event = json.loads(line)
        return Progress(str(event["stage"]), int(event["step"]), int(event["steps"]))
    except (ValueError, TypeError, KeyError):
        return None
