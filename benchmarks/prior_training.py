"""Draws the training of the shipped prior: how well it told right from wrong, over the images that it had seen.

    python -m benchmarks.prior_training            writes docs/prior-training.svg and the table of docs/prior.md

All figures come from the log in the weights' index.json, of the last training and of those that it went on from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import replaced
from nerf_bridge.paths import data_path
from nerf_bridge.run.files import write_text

ROOT = Path(__file__).resolve().parents[1]
TABLE_MARKS = ("<!-- table: written by benchmarks/prior_training.py -->", "<!-- end of table -->")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 56, 490, 16, 260
LINES = (
    ("rise_words", "other words", "#7a4fb5"),
    ("rise_azimuth_180", "azimuth +180°", "#1f6fb4"),
    ("rise_azimuth_90", "azimuth +90°", "#2a9d6f"),
    ("rise_elevation_30", "elevation +30°", "#c2701c"),
)


@dataclass(frozen=True)
class Point:
    """One look at the averaged weights.

    Attributes:
        training: number of the training, from 0.
        images: seen so far, in all trainings.
        figures: of the log; rises are fractions of the error.
    """

    training: int
    images: float
    figures: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write drawing and table; 0 when done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of prior.md (default: docs)")
    docs = parser.parse_args(arguments).docs
    points = training_points(json.loads((data_path("prior/weights") / "index.json").read_text(encoding="utf-8")))
    write_text(docs / "prior-training.svg", drawing(points))
    page = docs / "prior.md"
    write_text(page, replaced(page.read_text(encoding="utf-8"), table(points), TABLE_MARKS))
    return 0


def training_points(index: dict) -> list[Point]:
    """All entries of the logs, oldest first."""
    last = index["training"]
    points, before = [], 0.0
    for number, training in enumerate([*last.get("earlier", []), last]):
        a_step = training["batch"] * training["gpus"]
        points += [Point(number, before + a_step * (entry["step"] + 1), entry) for entry in training["log"]]
        before = points[-1].images
    return points


def table(points: Sequence[Point]) -> str:
    """Every third look and the last of each training, as Markdown."""
    lines = [
        "| training | images | seconds | loss | error | azimuth +90° | azimuth +180° | elevation +30° | other words "
        "| error with design | other design |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number in sorted({point.training for point in points}):
        of_it = [point for point in points if point.training == number]
        for point in [*of_it[:-1:3], of_it[-1]]:
            f = point.figures
            rises = [f"{100 * f[name]:.0f} %" for name in ("rise_azimuth_90", "rise_azimuth_180")]
            rises += [f"{100 * f[name]:.0f} %" for name in ("rise_elevation_30", "rise_words")]
            told = [f"{f['error_design']:.4f}", f"{100 * f['rise_design']:.0f} %"] if "rise_design" in f else ["", ""]
            shown = [f"{number + 1}", f"{point.images / 1e6:.1f} M", f"{f['seconds']:.0f}"]
            lines.append("| " + " | ".join([*shown, f"{f['loss']:.4f}", f"{f['error']:.4f}", *rises, *told]) + " |")
    return "\n".join(lines)


def drawing(points: Sequence[Point]) -> str:
    """The rises over the images seen, as SVG."""
    most = max(point.figures[name] for point in points for name, _, _ in LINES)
    high, wide = 1.05 * most, points[-1].images

    def place(images: float, rise: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * images / wide, BOTTOM - (BOTTOM - TOP) * rise / high

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Rise of the denoising error at t = 0.9 when the prior is told something wrong</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for percent in range(0, int(100 * high) + 1, 100):
        _, y = place(0, percent / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#e4e7ec"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#667085">{percent} %</text>')
    for millions in range(0, int(wide / 1e6) + 1, 5):
        x, _ = place(millions * 1e6, 0)
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle" fill="#667085">{millions} M</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" fill="#667085">training images</text>')
    for name, label, colour in LINES:
        for number in sorted({point.training for point in points}):
            line = [place(p.images, p.figures[name]) for p in points if p.training == number]
            at = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            parts.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = line[-1]
        shift = 10 if name == "rise_azimuth_90" else 0  # its end is near that of +180°
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4 + shift:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    raise SystemExit(main())
