"""A file of prompts becomes a list of jobs, or one error that lists every bad line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.errors import UserError
from nerf_bridge.run.directory import default_run_path
from nerf_bridge.settings import merged, nested


@dataclass(frozen=True)
class Job:
    """One run of a batch.

    Attributes:
        prompt: what to make.
        settings: nested settings that differ from the defaults, without the prompt.
        out: the run directory.
        line: line of the file that the job stands on, from 1.
    """

    prompt: str
    settings: Mapping[str, Any]
    out: Path
    line: int

    def config(self) -> GenerateConfig:
        """All settings of the run. Raises UserError when one is wrong."""
        return build_config({**self.settings, "prompt": self.prompt})


@dataclass(frozen=True)
class Entry:
    """What a line of the file says: settings by name, `prompt` among them; or what is wrong with it."""

    line: int
    values: Mapping[str, Any]
    problem: str = ""


def read_jobs(path: Path, out: Path, base: Mapping[str, Any] | None = None) -> list[Job]:
    """Read a list of jobs.

    The suffix tells the format: `.csv` has a `prompt` column and columns named like settings (`mesh.faces`; an empty
    cell keeps the default); `.jsonl` has one JSON object a line with `prompt` and settings, nested or with dotted
    names; anything else is text with a prompt a line, where a line may also be such a JSON object. Blank lines and
    lines that start with `#` are comments. `out` among the settings names the run directory, relative to `out`.

    Args:
        path: the file, UTF-8.
        out: the folder of the run directories.
        base: settings of all jobs, nested or dotted; a job's own settings come before them.

    Returns:
        The jobs in the order of the file, each with a directory of its own. A job whose settings are not the ones of
        `base` has their hash in its directory's name, so that the names do not depend on the order.

    Raises:
        UserError: the file cannot be read, is empty, or has bad lines; all of them are listed with their numbers.
    """
    text = _read(path)
    suffix = path.suffix.lower()
    entries = (
        _csv_entries(text) if suffix == ".csv" else _line_entries(text, objects_only=suffix in (".jsonl", ".ndjson"))
    )
    jobs: list[Job] = []
    problems: list[str] = []
    for entry in entries:
        try:
            jobs.append(_job(entry, out, nested(base or {})))
        except UserError as error:
            problems.extend(f"line {entry.line}: {problem}" for problem in str(error).split("\n"))
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    if not jobs:
        raise UserError(f"{path} has no prompts: expected one a line")
    return _with_distinct_directories(jobs)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read jobs from {path}: it is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read jobs from {path}: {error.strerror or error}") from None


def _line_entries(text: str, objects_only: bool) -> Iterator[Entry]:
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        yield _object_entry(number, line) if objects_only or line.startswith("{") else Entry(number, {"prompt": line})


def _object_entry(number: int, line: str) -> Entry:
    try:
        values = json.loads(line)
    except ValueError as error:
        return Entry(number, {}, f"this is no JSON: {error}")
    if not isinstance(values, dict):
        return Entry(number, {}, f'expected a JSON object like {{"prompt": "a chair"}}, got a {type(values).__name__}')
    return Entry(number, values)


def _csv_entries(text: str) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(text), strict=True, skipinitialspace=True)
    header: list[str] | None = None
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) or cells[0].startswith("#"):
                continue
            if header is not None:
                yield _row_entry(reader.line_num, header, cells)
                continue
            header = cells
            if "prompt" not in header or len(set(header)) < len(header):
                names = ", ".join(header)
                yield Entry(reader.line_num, {}, f"expected distinct column names, one of them prompt; got {names}")
                return
    except csv.Error as error:
        yield Entry(reader.line_num, {}, f"this is no CSV: {error}")


def _row_entry(line: int, header: list[str], cells: list[str]) -> Entry:
    if len(cells) > len(header):
        return Entry(
            line, {}, f"{len(cells)} cells for {len(header)} columns; put a prompt with commas in double quotes"
        )
    return Entry(line, {name: cell for name, cell in zip(header, cells, strict=False) if cell})


def _job(entry: Entry, out: Path, base: Mapping[str, Any]) -> Job:
    if entry.problem:
        raise UserError(entry.problem)
    values = dict(entry.values)
    place = values.pop("out", None)
    if place is not None and (not isinstance(place, str) or not place.strip()):
        raise UserError(f"out: expected the name of a directory, got {place!r}")
    config = build_config(merged(base, nested(values)))
    own = {name: value for name, value in nested(values).items() if name != "prompt"}
    name = place or _directory_name(config, {name: value for name, value in own.items() if name != "seed"})
    return Job(config.prompt, merged(base, own), out / name, entry.line)


def _directory_name(config: GenerateConfig, own: Mapping[str, Any]) -> str:
    name = default_run_path(config.prompt, config.seed).name
    if not own:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:6]}"


def _with_distinct_directories(jobs: list[Job]) -> list[Job]:
    """Number the jobs that would share a directory: name, name-2, name-3."""
    taken: set[Path] = set()
    distinct = []
    for job in jobs:
        out, number = job.out, 1
        while out in taken:
            number += 1
            out = job.out.with_name(f"{job.out.name}-{number}")
        taken.add(out)
        distinct.append(replace(job, out=out))
    return distinct
