"""`report.html`: one file that shows a run, offline, with the mesh in an interactive 3D view.

Pictures, film, mesh and the viewer's script are all inside the file. Its content security policy forbids the browser
to fetch anything else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import jinja2
from markupsafe import Markup
from pydantic import BaseModel

from nerf_bridge.config import GenerateConfig
from nerf_bridge.paths import data_path
from nerf_bridge.run.curves import line_chart
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import read_events
from nerf_bridge.run.files import write_text

PICTURES = 12
LABELS = {
    "opacity": "mean opacity of the views",
    "gradient_norm": "norm of the gradient",
    "occupied": "fraction of cells occupied",
}
NOT_FIGURES = {"time", "step", "steps"}


@dataclass(frozen=True)
class Row:
    """A line of a table: a name, its value as text, and whether to make it stand out."""

    name: str
    value: str
    strong: bool = False


@dataclass(frozen=True)
class Chart:
    """A curve with its title."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Bar:
    """A stage's time, and its share of the whole in percent."""

    name: str
    seconds: float
    percent: float


def write_report(
    run: RunDirectory, config: GenerateConfig, summary: Mapping[str, object], previews: Sequence[tuple[int, Path]]
) -> Path:
    """Write the run's report.

    Args:
        run: its asset, preview, turntable and events are shown, those that are there.
        config: the settings.
        summary: what `run.json` holds: `device`, `backend` (text), `seconds` ({stage: seconds}), `versions` ({name:
            version}), `prior` ({name, licence, source, sha256: {file: hash}}), `mesh` (statistics; `curve`, pairs of
            density and IoU, becomes a chart). Any of them may be missing.
        previews: (step, picture) by step; a dozen of them are shown.

    Returns:
        The path of the report.

    Raises:
        OSError: a file cannot be read, or the report not be written.
    """
    mesh = dict(_mapping(summary, "mesh"))
    curve = mesh.pop("curve", None) or []
    html = _template().render(
        prompt=config.prompt,
        seed=config.seed,
        steps=config.steps,
        method=config.guidance.method,
        script=Markup(_viewer_script()),
        asset=_data_uri(run.asset, "model/gltf-binary"),
        preview=_data_uri(run.preview, "image/png"),
        turntable=_data_uri(run.turntable, "video/mp4"),
        pictures=[(step, _jpeg_uri(path)) for step, path in _evenly(previews, PICTURES)],
        charts=_health_charts(read_events(run.events), _second_stage(config)),
        bars=_bars(_mapping(summary, "seconds")),
        mesh=_rows(mesh),
        mesh_chart=_chart(
            "agreement with the silhouettes (IoU) by density of the surface", curve, mesh.get("threshold"), log_x=True
        ),
        prior=_rows(_mapping(summary, "prior")),
        machine=_rows({name: summary[name] for name in ("device", "backend") if name in summary})
        + [Row(name, str(version)) for name, version in _mapping(summary, "versions").items()],
        settings=_settings(config),
    )
    write_text(run.report, html)
    return run.report


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(data_path("report/report.html").read_text(encoding="utf-8"))


def _viewer_script() -> str:
    script = data_path("model-viewer/model-viewer.min.js").read_text(encoding="utf-8")
    return inline_script(re.sub(r"//# sourceMappingURL=\S+\s*$", "", script))


def inline_script(script: str) -> str:
    """`script` in a form that may stand inside a `<script>` element: nothing in it ends or nests the element."""
    return re.sub(r"<(?=/?script)", r"\\x3c", script, flags=re.IGNORECASE)


def _mapping(summary: Mapping[str, object], name: str) -> Mapping:
    value = summary.get(name)
    return value if isinstance(value, Mapping) else {}


def _data_uri(path: Path, media_type: str) -> str | None:
    """The file inside a `data:` address; None when there is no such file."""
    return _uri(path.read_bytes(), media_type) if path.is_file() else None


def _jpeg_uri(path: Path) -> str:
    return _uri(iio.imwrite("<bytes>", iio.imread(path)[..., :3], extension=".jpg", quality=90), "image/jpeg")


def _uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _evenly(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _second_stage(config: GenerateConfig) -> float | None:
    return config.guidance.bridge_from * config.steps if config.guidance.method == "bridge" else None


def _health_charts(events: Sequence[Mapping], mark: float | None) -> list[Chart]:
    """A chart for each figure of the `progress` events; of a step that was done twice the last one counts."""
    figures: dict[str, dict[float, float]] = {}
    for event in events:
        if event.get("event") != "progress":
            continue
        for name, value in event.items():
            if name not in NOT_FIGURES and isinstance(value, int | float) and not isinstance(value, bool):
                figures.setdefault(name, {})[event["step"]] = value
    charts = [_chart(LABELS.get(name, _words(name)), sorted(points.items()), mark) for name, points in figures.items()]
    return [chart for chart in charts if chart is not None]


def _chart(title: str, points: Sequence[tuple[float, float]], mark: object, log_x: bool = False) -> Chart | None:
    if len(points) < 2:
        return None
    place = float(mark) if isinstance(mark, int | float) else None
    return Chart(title, Markup(line_chart(points, title, place, log_x)))


def _bars(seconds: Mapping[str, float]) -> list[Bar]:
    total = sum(seconds.values()) or 1.0
    return [Bar(_words(name), value, 100.0 * value / total) for name, value in seconds.items()]


def _rows(values: Mapping[str, object], prefix: str = "") -> list[Row]:
    rows: list[Row] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(_rows(value, f"{prefix}{_words(name)}: "))
        else:
            rows.append(Row(f"{prefix}{_words(name)}", _text(value)))
    return rows


def _settings(config: GenerateConfig) -> list[tuple[str, list[Row]]]:
    """The settings by section, those that differ from their defaults marked."""
    sections: list[tuple[str, list[Row]]] = [("run", _section_rows(config))]
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, BaseModel):
            sections.append((name, _section_rows(section)))
    return sections


def _section_rows(section: BaseModel) -> list[Row]:
    rows = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if not isinstance(value, BaseModel):
            rows.append(Row(name, _text(value), strong=not info.is_required() and value != info.default))
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(f"({_text(item)})" if isinstance(item, list | tuple) else _text(item) for item in value)
    return str(value)
