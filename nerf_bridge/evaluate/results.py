"""Tables: rows of figures, shown on the terminal and kept as JSON."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from nerf_bridge.errors import RunError
from nerf_bridge.evaluate.measures import Spread
from nerf_bridge.paths import PACKAGE
from nerf_bridge.run.directory import slug
from nerf_bridge.run.files import write_json


@dataclass(frozen=True)
class Row:
    """One figure: of what, what, how much, in which unit.

    Attributes:
        p10, p90: its spread; floor: the best that could come out; peer, peer_value: what it is compared with, mostly
            the same figure of true renders. None: does not apply.
    """

    case: str
    metric: str
    value: float
    unit: str
    p10: float | None = None
    p90: float | None = None
    floor: float | None = None
    peer: str | None = None
    peer_value: float | None = None

    def plain(self) -> dict[str, object]:
        """The row for JSON, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def spread_row(
    case: str, metric: str, figure: Spread, unit: str, truth: float | None = None, floor: float | None = None
) -> Row:
    """A row of a figure with its spread, and the same figure of the truth beside it."""
    peer = None if truth is None else "truth"
    return Row(case, metric, figure.value, unit, figure.p10, figure.p90, floor, peer, truth)


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a table of plain text."""
    head = ("case", "metric", "value", "p10 ... p90", "truth or peer", "floor", "unit")
    lines = [
        (row.case, row.metric, _number(row.value), _range(row), _peer(row), _number(row.floor), row.unit)
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    right = (False, False, True, True, True, True, False)
    return "\n".join(_line(line, widths, right) for line in [head, *lines])


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    return "  ".join(f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(cells, widths, right, strict=True)).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"


def _range(row: Row) -> str:
    return "" if row.p10 is None else f"{_number(row.p10)} ... {_number(row.p90)}"


def _peer(row: Row) -> str:
    if row.peer_value is None:
        return ""
    return _number(row.peer_value) if row.peer == "truth" else f"{_number(row.peer_value)} ({row.peer})"


def write_results(
    out: Path, name: str, device: str, versions: Mapping[str, str], rows: Sequence[Row], about: Mapping[str, object]
) -> Path:
    """Write `<name>-<device>.json` into the folder `out`, whole or not at all, and return its path.

    Args:
        about: what else the file says, for example seeds, hashes of the weights, verdicts.

    Raises:
        RunError: it cannot be written.
    """
    path = out / f"{name}-{slug(device)}.json"
    document = {
        "device": device,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": dict(versions),
        "rows": [row.plain() for row in rows],
        **about,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, document)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def commit() -> str:
    """The commit that the code is of, with "+" where files differ from it; "unknown" outside a checkout.

    Of a tree that was copied without its history, what NERF_BRIDGE_COMMIT says.
    """
    if told := os.environ.get("NERF_BRIDGE_COMMIT"):
        return told
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
