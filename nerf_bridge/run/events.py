"""The run's progress in `events.jsonl`: one JSON object a line, readable while the run goes on and after a kill."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

logger = logging.getLogger(__name__)

EventName = Literal[
    "start",
    "resumed",
    "progress",
    "checkpoint",
    "preview",
    "skipped",
    "restored",
    "memory",
    "stage",
    "done",
    "failed",
    "interrupted",
]
Figure = float | int | str | bool | None


class EventLog:
    """Appends events to a file, each line flushed at once.

    A last line that a killed process left half-written is cut off when the log is opened.

    Args:
        path: the file; made when absent.
        clock: gives the time in seconds since 1970.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        _repair(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(
        self, event: EventName, stage: str, step: int, steps: int, figures: Mapping[str, Figure] | None = None
    ) -> None:
        """Write one event.

        Args:
            event: what happened.
            stage: where in the story: for example `optimise`, `mesh`, `report`.
            step: optimisation steps done.
            steps: optimisation steps in all.
            figures: further values, JSON scalars; those that are not finite are written as null.

        Raises:
            OSError: the line could not be written (a full disk); the file is as it was.
        """
        line: dict[str, Figure] = {
            "time": round(self._clock(), 3), "event": event, "stage": stage, "step": step, "steps": steps
        }  # fmt: skip
        line.update({name: _finite(value) for name, value in (figures or {}).items()})
        self._write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):  # a nearly full disk takes a part first, then fails
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(size)
            raise


def read_events(path: Path) -> list[dict]:
    """All events of the file, in order; a half-written or damaged line is left out. Empty when there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events = [_parse(line) for line in lines if line.strip()]
    if None in events[:-1]:
        logger.warning("%s has a damaged line; it is left out", path)
    return [event for event in events if event is not None]


def _finite(value: Figure) -> Figure:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> dict | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _repair(path: Path) -> None:
    """Make the file end at a line's end: complete the last line when only its newline is missing, or cut it off."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        data = file.read()
        last = data[data.rfind(b"\n") + 1 :]
        if not last:
            return
        if _parse(last) is not None:
            file.write(b"\n")
        else:
            file.truncate(len(data) - len(last))
