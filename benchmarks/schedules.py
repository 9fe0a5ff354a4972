"""Draws what changes during a run, for every preset, with the functions that the run itself uses.

    python -m benchmarks.schedules                 writes docs/schedules.svg

A row is a preset, a column a schedule: noise times, size of the views, steps between two looks at the occupancy,
learning rate of the hash grid, ramped weights. The shaded end is stage two of the bridge.
"""

from __future__ import annotations

import argparse
import bisect
import html
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nerf_bridge.config import GenerateConfig, build_config
from nerf_bridge.guidance import is_refreshed_at, ramp_at, rate_at, size_at, stage_at, t_max_at, t_min_at
from nerf_bridge.options import presets
from nerf_bridge.paths import config_path
from nerf_bridge.run.files import write_text
from nerf_bridge.settings import load_yaml

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = "(defaults)"
POINTS = 240  # of a curve
LEFT, TOP, CELL, HEIGHT, GAP = 104, 34, 150, 70, 44  # of the drawing, in pixels


@dataclass(frozen=True)
class Curve:
    """One schedule of one preset.

    Attributes:
        values: by step, at evenly spaced steps from the first to the last.
        floor: the lower edge of a band at the same steps; None for a line.
    """

    values: tuple[float, ...]
    floor: tuple[float, ...] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the drawing; 0 when done, 2 with one line when it cannot be written."""
    parser = argparse.ArgumentParser(description="Draw the schedules of every preset.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "schedules.svg", help="default: docs/schedules.svg")
    options = parser.parse_args(arguments)
    try:
        write_text(options.out, drawing(configs()))
    except OSError as error:
        print(f"{options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def configs() -> dict[str, GenerateConfig]:
    """The defaults and every preset of `generate`, by name."""
    names = [name for name in presets() if not name.endswith("-2d")]
    made = {name: build_config(load_yaml(config_path(f"{name}.yaml")) | {"prompt": "any"}) for name in names}
    return {DEFAULT: build_config({"prompt": "any"})} | made


def sampled_steps(steps: int) -> list[int]:
    """At most POINTS steps, evenly spaced, the first and the last among them."""
    n = min(POINTS, steps)
    return [round(i * (steps - 1) / max(n - 1, 1)) for i in range(n)]


def noise_times(config: GenerateConfig) -> Curve:
    """The band that noise times are drawn from."""
    at = [t_max_at(step, config.steps, config.guidance) for step in sampled_steps(config.steps)]
    least = [t_min_at(step, config.steps, config.guidance) for step in sampled_steps(config.steps)]
    return Curve(tuple(at), tuple(least))


def sizes(config: GenerateConfig) -> Curve:
    """Pixels along a side of a view."""
    return Curve(tuple(float(size_at(step, config.steps, config.render)) for step in sampled_steps(config.steps)))


def occupancy(config: GenerateConfig) -> Curve:
    """Steps from the last look at the occupancy to the next one."""
    looks = [step for step in range(config.steps) if is_refreshed_at(step, config.steps, config.occupancy)]
    ends = [*looks[1:], 2 * looks[-1] - looks[-2] if len(looks) > 1 else config.steps]  # the last gap as the one before
    last = [bisect.bisect_right(looks, step) - 1 for step in sampled_steps(config.steps)]
    return Curve(tuple(float(ends[i] - looks[i]) for i in last))


def rates(config: GenerateConfig) -> Curve:
    """Learning rate of the hash grid."""
    final, grid = config.optim.lr_final, config.optim.lr_grid
    return Curve(tuple(grid * rate_at(step, config.steps, final) for step in sampled_steps(config.steps)))


def ramps(config: GenerateConfig) -> Curve:
    """Factor on the ramped weights: opacity entropy and thickness."""
    begin, end = config.optim.ramp_from, config.optim.ramp_until
    return Curve(tuple(ramp_at(step, config.steps, begin, end) for step in sampled_steps(config.steps)))


COLUMNS: tuple[tuple[str, float | None, Callable[[GenerateConfig], Curve]], ...] = (
    ("noise times", 1.0, noise_times),
    ("pixels of a view", None, sizes),
    ("steps between looks", None, occupancy),
    ("learning rate, grid", None, rates),
    ("ramped weights", 1.0, ramps),
)


def drawing(of: dict[str, GenerateConfig]) -> str:
    """The whole picture as SVG, white behind."""
    width, height = LEFT + len(COLUMNS) * (CELL + GAP), TOP + len(of) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>',
        *(f'<text x="{_left(k)}" y="20" font-weight="bold">{title}</text>' for k, (title, _, _) in enumerate(COLUMNS)),
    ]
    for row, (name, config) in enumerate(of.items()):
        y = TOP + row * (HEIGHT + GAP)
        parts.append(f'<text x="8" y="{y + 14}" font-weight="bold">{html.escape(name)}</text>')
        parts.append(f'<text x="8" y="{y + 30}">{config.steps:,} steps</text>')
        parts += [cell(config, curve(config), top, _left(k), y) for k, (_, top, curve) in enumerate(COLUMNS)]
    return "\n".join([*parts, "</svg>\n"])


def cell(config: GenerateConfig, curve: Curve, top: float | None, x: int, y: int) -> str:
    """One curve in its frame, with its largest and smallest value, stage two shaded."""
    steps, high = sampled_steps(config.steps), top or max(curve.values) * 1.08
    across = CELL / max(steps[-1], 1)
    heights = [y + HEIGHT * (1 - value / high) for value in curve.values]
    corners = _corners([(x + step * across, place) for step, place in zip(steps, heights, strict=True)])
    line = [f"{place:.1f},{height:.1f}" for place, height in corners]
    second = [step for step in range(config.steps) if _stage(config, step) == 2]
    parts = []
    if second:
        begin = x + second[0] * across
        parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{x + CELL - begin:.1f}" height="{HEIGHT}" fill="#f2e7d5"/>')
    if curve.floor is not None:
        base = [y + HEIGHT * (1 - value / high) for value in curve.floor]
        under = _corners([(x + step * across, place) for step, place in zip(steps, base, strict=True)])
        back = [f"{place:.1f},{height:.1f}" for place, height in reversed(under)]
        parts.append(f'<polygon points="{" ".join(line + back)}" fill="#cfe1f2"/>')
    parts.append(f'<path d="M{x},{y}V{y + HEIGHT}H{x + CELL}" fill="none" stroke="#999"/>')
    parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="#1f6fb4" stroke-width="1.6"/>')
    values = (curve.values[0], curve.values[-1], *([] if curve.floor is None else [curve.floor[0], curve.floor[-1]]))
    labelled: list[float] = []
    for value in dict.fromkeys(values):
        place = y + HEIGHT * (1 - value / high) + 4
        if any(abs(place - other) < 9 for other in labelled):
            continue  # one on top of the other is read as neither
        labelled.append(place)
        parts.append(f'<text x="{x - 4}" y="{place:.1f}" text-anchor="end" font-size="9">{_label(value)}</text>')
    return "".join(parts)


def _label(value: float) -> str:
    return f"{value:.0f}" if value > 1 else f"{value:.2g}"


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without those that lie on the line from the last one kept to their neighbour."""
    kept = points[:1]
    for here, after in itertools.pairwise(points[1:]):
        (x0, y0), (x1, y1), (x2, y2) = kept[-1], here, after
        if abs((y1 - y0) * (x2 - x0) - (y2 - y0) * (x1 - x0)) > 0.05 * (x2 - x0):
            kept.append(here)
    return kept + points[1:][-1:]


def _stage(config: GenerateConfig, step: int) -> int:
    return stage_at(step, config.steps, config.guidance.bridge_from) if config.guidance.method == "bridge" else 1


def _left(column: int) -> int:
    return LEFT + 30 + column * (CELL + GAP)


if __name__ == "__main__":
    sys.exit(main())
