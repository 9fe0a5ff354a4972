"""The run directory: where its files lie, and whether a run may start, resume or is finished there."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import yaml

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.errors import UserError
from nerf_bridge.run.checkpoint import has_checkpoint
from nerf_bridge.run.files import write_json, write_text
from nerf_bridge.run.lock import take_lock
from nerf_bridge.settings import load_yaml

SLUG_CHARACTERS = 48
DIFFERENCES_SHOWN = 6
# How sparing and how fast a run is, and where its model is looked for, may change on the way: so that a run which found
# too little memory, or no network, goes on.
MAY_DIFFER = {"memory", "model.compile", "model.offline"}

Status = Literal["fresh", "resume", "finished"]


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: the folder of the run.
    """

    path: Path

    @property
    def asset(self) -> Path:
        """The textured mesh."""
        return self.path / "asset.glb"

    @property
    def preview(self) -> Path:
        """A picture of the result."""
        return self.path / "preview.png"

    @property
    def turntable(self) -> Path:
        """A film around the result."""
        return self.path / "turntable.mp4"

    @property
    def report(self) -> Path:
        """The page that shows everything."""
        return self.path / "report.html"

    @property
    def config(self) -> Path:
        """All settings."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """What happened: state, timings, versions, prior, mesh statistics."""
        return self.path / "run.json"

    @property
    def events(self) -> Path:
        """The progress, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The folder of the state that a run resumes from."""
        return self.path / "checkpoint"

    @property
    def previews(self) -> Path:
        """The folder of the pictures made on the way."""
        return self.path / "previews"

    @property
    def lock(self) -> Path:
        """The file whose lock the process at work holds."""
        return self.path / ".lock"

    def preview_at(self, step: int) -> Path:
        """The picture made after `step` steps."""
        return self.previews / f"step-{step:06d}.png"

    def list_previews(self) -> list[tuple[int, Path]]:
        """The pictures made on the way that are there, as (step, path), by step."""
        return sorted((int(path.stem.removeprefix("step-")), path) for path in self.previews.glob("step-*.png"))


@dataclass(frozen=True)
class RunState:
    """What `open_run` found; as a context manager it gives the lock back at the end.

    Attributes:
        run: the run directory.
        status: `fresh`: start at step 0; `resume`: go on from the checkpoint; `finished`: nothing to do.
        lock: the open lock file; None for a finished run.
        new: whether the folder was not there before.
    """

    run: RunDirectory
    status: Status
    lock: IO[bytes] | None
    new: bool = False

    def take_back(self) -> None:
        """Remove what a run has written that was refused before its first step; one with any result is left alone."""
        run = self.run
        begun = {run.config.name, run.record.name, run.events.name, run.previews.name}
        with suppress(OSError):  # must not hide why the run was refused
            if any(child.name not in begun and not _is_ours(child) for child in run.path.iterdir()):
                return
            run.previews.rmdir()  # first, since it fails where there is a picture
            for path in (run.record, run.events, run.config):
                path.unlink(missing_ok=True)
            if self.new:
                run.lock.unlink(missing_ok=True)
                run.path.rmdir()

    def close(self) -> None:
        """Give the lock back."""
        if self.lock is not None:
            self.lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def slug(prompt: str) -> str:
    """A folder name for `prompt`: ASCII words joined by dashes; a short hash tells apart what the name leaves out."""
    letters = unicodedata.normalize("NFKD", prompt)  # an accented letter becomes the letter and its accent
    name = re.sub(r"[^a-z0-9]+", "-", letters.encode("ascii", "ignore").decode().lower()).strip("-")
    complete = not any(letter.isalnum() and not letter.isascii() for letter in letters)
    if name and complete and len(name) <= SLUG_CHARACTERS:
        return name
    words = name[: SLUG_CHARACTERS + 1].rpartition("-")[0] if len(name) > SLUG_CHARACTERS else name
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return f"{words or name[:SLUG_CHARACTERS] or 'prompt'}-{digest}"


def default_run_path(prompt: str, seed: int) -> Path:
    """Where a run goes when no place is asked for: `runs/<slug>-s<seed>`."""
    return Path("runs") / f"{slug(prompt)}-s{seed}"


def run_status(path: Path, config: GenerateConfig) -> Status:
    """Tell, without touching anything, what a run with `config` would find at `path`.

    Raises:
        UserError: `path` is a file, a folder that holds something else, or a run of another prompt or other settings.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"the run directory {path} is a file: choose another --out or move the file away")
    run = RunDirectory(path)
    if not run.config.exists():
        _refuse_foreign_files(path)
        return "fresh"
    _refuse_other_run(run, config)
    if is_finished(run):
        return "finished"
    return "resume" if has_checkpoint(run.checkpoint) else "fresh"


def open_run(path: Path, config: GenerateConfig) -> RunState:
    """Decide what to do at `path`, make the folder, take its lock and write `config.yaml`.

    Raises:
        UserError: as `run_status`; also when the place cannot be written or another process is at work there. What
            lay there is as it was.
    """
    run = RunDirectory(Path(path))
    if run_status(run.path, config) == "finished":
        return RunState(run, "finished", None)
    new = not run.path.exists()
    try:
        return _prepare(run, config, new)
    except OSError as error:
        if new:
            _remove_empty(run)
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to the run directory {path}: {reason}; choose another --out") from None


def load_run(path: Path) -> tuple[RunDirectory, GenerateConfig]:
    """The run at `path` and its settings, for commands that work on a run that is there.

    Raises:
        UserError: there is no run, or its settings cannot be read.
    """
    run = RunDirectory(Path(path))
    if not run.config.is_file():
        raise UserError(f"{path} holds no run: expected the directory that `generate` made, with its config.yaml")
    return run, build_config(load_yaml(run.config))


def write_record(run: RunDirectory, record: dict[str, object]) -> None:
    """Write `record` as the run's `run.json`. Raises OSError when that fails."""
    write_json(run.record, record)


def read_record(run: RunDirectory) -> dict:
    """The run's `run.json`; empty when there is none that can be read."""
    try:
        record = json.loads(run.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_finished(run: RunDirectory) -> bool:
    """Whether the run's record says `done` and all its results are there."""
    results = (run.asset, run.preview, run.turntable, run.report)
    return read_record(run).get("state") == "done" and all(path.is_file() and path.stat().st_size for path in results)


def _prepare(run: RunDirectory, config: GenerateConfig, new: bool) -> RunState:
    run.path.mkdir(parents=True, exist_ok=True)
    lock = take_lock(run.lock)
    try:
        status = run_status(run.path, config)  # again: another process may have finished before we had the lock
        _remove_leftovers(run)
        if not run.config.exists():
            write_text(run.config, yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
        run.previews.mkdir(exist_ok=True)
    except BaseException:
        lock.close()
        raise
    return RunState(run, status, lock, new)


def _is_ours(path: Path) -> bool:
    """Whether `path` is a lock or what a killed write left: something that makes no folder a foreign one."""
    return path.name == ".lock" or (path.name.startswith(".") and ".tmp" in path.suffixes)


def _refuse_foreign_files(path: Path) -> None:
    if not path.is_dir():
        return
    try:
        foreign = sorted(child.name for child in path.iterdir() if not _is_ours(child))
    except OSError as error:
        raise UserError(f"cannot read the run directory {path}: {error.strerror}; choose another --out") from None
    if foreign:
        raise UserError(f"{path} is not empty and holds no run (it has {foreign[0]}): choose another --out")


def _refuse_other_run(run: RunDirectory, config: GenerateConfig) -> None:
    there, asked = _flatten(_settings_there(run)), _flatten(config.model_dump())
    if there.get("prompt") != asked["prompt"]:
        raise UserError(f'{run.path} holds a run of another prompt ("{there.get("prompt")}"): choose another --out')
    named = (there.keys() | asked.keys()) - MAY_DIFFER
    names = sorted(name for name in named if there.get(name) != asked.get(name))
    if not names:
        return
    shown = [f"{name}: {there.get(name)} there, {asked.get(name)} asked for" for name in names[:DIFFERENCES_SHOWN]]
    if len(names) > DIFFERENCES_SHOWN:
        shown.append(f"and {len(names) - DIFFERENCES_SHOWN} more")
    raise UserError(f"{run.path} holds a run with other settings ({'; '.join(shown)}): choose another --out")


def _settings_there(run: RunDirectory) -> dict:
    """The settings of the run, those that it knew nothing of at their defaults; as they stand where they do not fit."""
    stored = load_yaml(run.config)
    try:
        return build_config(stored).model_dump()
    except UserError:
        return stored


def _flatten(settings: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def _remove_leftovers(run: RunDirectory) -> None:
    """Remove the temporary files that a killed process left; called with the lock held."""
    for folder in (run.path, run.previews, run.checkpoint):
        for path in folder.glob(".*.tmp*"):
            path.unlink(missing_ok=True)


def _remove_empty(run: RunDirectory) -> None:
    """Undo the making of a run directory in which nothing could be written."""
    try:
        run.lock.unlink(missing_ok=True)
        if run.path.is_dir():
            run.path.rmdir()
    except OSError:
        return  # somebody else wrote there in the meantime: it is theirs
