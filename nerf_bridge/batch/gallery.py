"""A page with a picture of each run of a batch, beside the run directories that it links to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import quote

import jinja2

from nerf_bridge.batch.queue import JobState
from nerf_bridge.paths import data_path
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.files import write_text


@dataclass(frozen=True)
class Card:
    """A run on the page; the addresses are relative to the page, None for what is not there."""

    state: JobState
    picture: str | None
    film: str | None
    report: str | None
    asset: str | None


def write_gallery(out: Path, states: Sequence[JobState]) -> Path:
    """Write `gallery.html` in `out`.

    Args:
        out: the batch's folder.
        states: where its jobs stand.

    Returns:
        The path of the page.

    Raises:
        OSError: the page cannot be written.
    """
    template = data_path("report/gallery.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = out / "gallery.html"
    cards = [_card(out, state) for state in states]
    write_text(
        path, environment.from_string(template).render(cards=cards, n_done=sum(s.state == "done" for s in states))
    )
    return path


def _card(out: Path, state: JobState) -> Card:
    run = RunDirectory(out / state.out)

    def address(file: Path) -> str | None:
        return quote(PurePath(state.out, file.name).as_posix()) if file.is_file() else None

    return Card(state, address(run.preview), address(run.turntable), address(run.report), address(run.asset))
