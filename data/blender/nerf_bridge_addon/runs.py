"""Run directories of nerf_bridge below a folder, as the add-on lists them. Needs no Blender."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import AddonError
from .events import read_progress

try:
    import fcntl
except ImportError:  # Windows, where no run is at work
    fcntl = None  # type: ignore[assignment]

DEPTH = 2  # runs/<run> and, as `batch` makes them, runs/<batch>/<run>


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        prompt: what it makes; the directory's name as long as that is not on record.
        seed: its seed; None when it is not on record.
        state: `done`, `running`, `failed`, `interrupted` (by the user), `stopped` (its process is gone) or `damaged`
            (its run.json cannot be read).
        note: how far it is, or why it failed; may be empty.
        faces: triangles of the asset; None without one.
        licence: the prior's licence; may be empty.
        changed: when its record was last written, in seconds since 1970.
    """

    path: Path
    prompt: str
    seed: int | None
    state: str
    note: str
    faces: int | None
    licence: str
    changed: float

    @property
    def asset(self) -> Path:
        """The textured mesh; there once the run is done."""
        return self.path / "asset.glb"

    @property
    def preview(self) -> Path:
        """The picture of the result: four sides in a row; there once the run is done."""
        return self.path / "preview.png"


def list_runs(folder: Path) -> list[Run]:
    """The runs in `folder` (or `folder` itself), also those of batches in it; the latest first.

    Raises:
        AddonError: `folder` cannot be read.
    """
    if not folder.is_dir():
        raise AddonError(f"there is no folder {folder}: choose the one that holds the run directories")
    try:
        runs = [read_run(path) for path in _run_folders(folder, DEPTH)]
    except OSError as error:
        raise AddonError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None
    return sorted(runs, key=lambda run: (-run.changed, str(run.path)))


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, also one whose run has only just begun."""
    return (path / "run.json").is_file() or ((path / ".lock").is_file() and (path / "config.yaml").is_file())


def read_run(path: Path) -> Run:
    """What is known of the run at `path`. Raises OSError when the directory cannot be read."""
    file = path / "run.json"
    changed = (file if file.exists() else path).stat().st_mtime
    record = _read_record(file)
    if record is None:
        return Run(path, path.name, None, "damaged", "its run.json cannot be read", None, "", changed)
    state, note = _state(path, record)
    mesh, prior = _section(record, "mesh"), _section(record, "prior")
    prompt, seed = str(record.get("prompt") or path.name), _whole(record.get("seed"))
    return Run(path, prompt, seed, state, note, _whole(mesh.get("faces")), str(prior.get("licence") or ""), changed)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and os.access(path, os.R_OK | os.X_OK):
                yield from _run_folders(path, depth - 1)


def _read_record(file: Path) -> dict[str, Any] | None:
    """The content of run.json, empty before there is one; None when it is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _state(path: Path, record: dict[str, Any]) -> tuple[str, str]:
    """State and note. The record says `running` also when the process was killed; then nobody holds the lock."""
    state = str(record.get("state") or "running")
    if state == "done":
        return state, ""
    if state == "failed":
        return state, " ".join(str(record.get("reason") or "").split())
    if state == "running" and not _is_locked(path / ".lock"):
        state = "stopped"
    progress = read_progress(path / "events.jsonl")
    return state, str(progress) if progress else ""


def _is_locked(path: Path) -> bool:
    """Whether the process at work holds its lock. Where the system knows no such locks, a run counts as at work."""
    if fcntl is None:
        return True
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _section(record: dict[str, Any], name: str) -> dict[str, Any]:
    section = record.get(name)
    return section if isinstance(section, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
