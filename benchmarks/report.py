"""Makes a table and a plot from the results file of any benchmark, and puts them into a page.

    python -m benchmarks.report benchmarks/results/kernels-nvidia-h200.json
    python -m benchmarks.report RESULTS.json --page docs/other.md --plot docs/other.svg

The page keeps everything but what stands between the two marks. The plot shows, on a logarithmic scale, our time of
every case, those of the peers and the floor: of "both" where it was measured, else of "forward".
"""

from __future__ import annotations

import argparse
import html
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nerf_bridge.run.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- table: written by benchmarks/report.py -->", "<!-- end of table -->")
OURS = "ours"
COLOURS = ("#1f6fb4", "#9ecae1", "#8f8f8f", "#d9a441", "#b5651d", "#6a51a3", "#2ca089", "#c7c7c7", "#8c564b", "#bcbd22")
WIDTH, LEFT, RIGHT, BAR, GAP = 760, 190, 70, 9, 10  # of the plot, in pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and the plot; 0 when done, 2 with one line when a file does not fit."""
    parser = argparse.ArgumentParser(description="Make a table and a plot from a results file.")
    parser.add_argument("results", type=Path, help="benchmarks/results/<name>-<device>.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="receives the table")
    parser.add_argument("--plot", type=Path, help="receives the plot, SVG (default: beside the page, named as it)")
    options = parser.parse_args(arguments)
    plot = options.plot or options.page.with_suffix(".svg")
    try:
        results = json.loads(options.results.read_text(encoding="utf-8"))
        page = replaced(
            options.page.read_text(encoding="utf-8"), block(results, os.path.relpath(plot, options.page.parent))
        )
        write_text(plot, svg_plot(results))
        write_text(options.page, page)
    except (OSError, ValueError, KeyError) as error:
        print(f"{options.results}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def replaced(page: str, text: str, marks: tuple[str, str] = MARKS) -> str:
    """`page` with `text` between its two marks. Raises ValueError when it does not have each of them once, in order."""
    first, last = marks
    if [page.count(mark) for mark in marks] != [1, 1] or page.index(first) > page.index(last):
        raise ValueError(f"the page needs the lines {first} and {last}, once and in this order")
    before, rest = page.split(first)
    return f"{before}{first}\n{text}\n{rest[rest.index(last) :]}"


def block(results: Mapping, plot: str) -> str:
    """What stands between the marks: where it was measured, the plot, the table, what was left out."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items()))
    settings = ", ".join(f"{name} {value}" for name, value in sorted(results.get("settings", {}).items()))
    where = f"{results['device']}, {results['date']}, {commits(results)}; {versions}"
    lines = [
        where + (f"; {settings}" if settings else "") + ".",
        "",
        f"![times]({plot})",
        "",
        markdown_table(cells(results)),
    ]
    lines += ["", f"Sizes: {sizes(results)}."] if sizes(results) else []
    left_out = [f"- {line}" for line in results.get("left_out", [])]
    lines += ["", "Left out:", *left_out] if left_out else []
    lines += ["", f"{unasked(results)}."] if unasked(results) else []
    return "\n".join(lines)


def commits(results: Mapping) -> str:
    """At which commit it was measured, and which cases at which other one."""
    others: dict[str, dict[str, None]] = {}
    for row in results["rows"]:
        if "commit" in row:
            others.setdefault(row["commit"], {})[row["case"]] = None
    of_others = [f"at commit {commit}: {', '.join(cases)}" for commit, cases in others.items()]
    return "; ".join([f"commit {results['commit']}", *of_others])


def not_measured(names: Iterable[str], rows: Sequence[Mapping]) -> list[str]:
    """Those of the `names` of cases that no row is of: its case is the name, or begins with it and a comma."""
    found = {str(row["case"]).split(",")[0] for row in rows}
    return [name for name in names if name not in found]


def unasked(results: Mapping) -> str:
    """The cases that exist and were not measured, in one line; empty where there is none."""
    names = results.get("not_measured", [])
    return f"Not measured: {', '.join(names)}" if names else ""


def peers_of(results: Mapping) -> list[str]:
    """All peers, in the order of their first appearance."""
    return list(dict.fromkeys(row["peer"] for row in results["rows"] if "peer" in row))


def grouped(results: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """The rows of every case and metric: one for each peer, all with our value."""
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for row in results["rows"]:
        groups.setdefault((row["case"], row["metric"]), []).append(row)
    return groups


def cells(results: Mapping) -> list[list[str]]:
    """The table: a header, then a line for every case and metric; a peer's cell has its value, and that over ours."""
    peers = peers_of(results)
    table = [["case", "metric", OURS, "p10 to p90", "floor", *peers]]
    for (case, metric), rows in grouped(results).items():
        first = rows[0]
        if is_size(first, results):
            continue
        spread = f"{first['p10']:g} to {first['p90']:g}" if "p10" in first else ""
        floor = f"{first['floor']:g}" if "floor" in first else ""
        of_peer = {row["peer"]: row for row in rows if "peer" in row}
        values = [compared(of_peer[peer]) if peer in of_peer else "" for peer in peers]
        table.append([case, metric, f"{first['value']:g} {first['unit']}", spread, floor, *values])
    return table


def is_size(row: Mapping, results: Mapping) -> bool:
    """Whether a row says how large the work of a timed case is."""
    return row["unit"] == "count" and any(
        other["case"] == row["case"] and other["unit"] == "ms" for other in results["rows"]
    )


def sizes(results: Mapping) -> str:
    """How large the work of each case is, in one line; empty where no row says it."""
    of_case: dict[str, list[str]] = {}
    for row in results["rows"]:
        if is_size(row, results):
            of_case.setdefault(row["case"], []).append(f"{row['value']:,.0f} {row['metric']}")
    return "; ".join(f"{case}: {', '.join(words)}" for case, words in of_case.items())


def compared(row: Mapping) -> str:
    """A peer's value and how many times ours it is."""
    times = f" ({row['peer_value'] / row['value']:.2g}x)" if row["value"] else ""
    return f"{row['peer_value']:g}{times}"


def text_table(results: Mapping) -> str:
    """The table as plain text, below a line that says where it was measured."""
    table = cells(results)
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([f"{results['device']}, {commits(results)}, {results['date']}", *lines, sizes(results)])


def device_slug(name: str) -> str:
    """A device's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def results_path(name: str, results: Mapping) -> Path:
    """Where the results of the benchmark `name` belong."""
    return ROOT / "benchmarks" / "results" / f"{name}-{device_slug(str(results['device']))}.json"


def save_results(results: Mapping, path: Path) -> None:
    """Write the results file, whole or not at all, in a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)


def summary(results: Mapping, path: Path) -> str:
    """What a benchmark says at its end: the table, what was left out, and where the results are."""
    left_out = (f"left out: {line}" for line in results["left_out"])
    lines = [text_table(results), "", *left_out, unasked(results), f"written: {path}"]
    return "\n".join(line for i, line in enumerate(lines) if line or i == 1)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """A header and lines of cells in Markdown."""
    header, *body = table
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(results: Mapping) -> list[tuple[str, float | None, dict[str, float]]]:
    """What the plot shows of each case: its name, the floor, and the milliseconds by implementation, ours first."""
    groups = grouped(results)
    shown = []
    for case in dict.fromkeys(case for case, _ in groups):
        rows = groups.get((case, "both")) or groups.get((case, "forward"))
        if rows and rows[0]["unit"] == "ms":
            values = {OURS: rows[0]["value"]} | {row["peer"]: row["peer_value"] for row in rows if "peer" in row}
            shown.append((case, rows[0].get("floor"), values))
    return shown


def svg_plot(results: Mapping) -> str:
    """The plot as SVG. Raises ValueError when no case has a time."""
    shown = bars(results)
    times = [time for _, floor, values in shown for time in (floor, *values.values()) if time]
    if not times:
        raise ValueError("no case has a time in ms")
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)) + 1e-9)
    colours = dict(zip([OURS, *peers_of(results)], COLOURS * 3, strict=False))
    parts, top = legend(colours)
    y = top
    for case, floor, values in shown:
        parts.append(text(LEFT - 8, y + BAR * len(values) / 2 + 4, case, "end"))
        for k, (name, value) in enumerate(values.items()):
            end = place(value, low, high)
            at = y + k * BAR
            parts.append(
                f'<rect x="{LEFT}" y="{at}" width="{end - LEFT:.1f}" height="{BAR - 1}" fill="{colours[name]}"/>'
            )
            parts.append(
                text(end + 4, at + BAR - 1.5, f"{value:,.0f}" if value >= 1000 else f"{value:.3g}", "start", 9)
            )
        if floor:
            x = place(floor, low, high)
            parts.append(f'<path d="M{x:.1f} {y - 2}v{BAR * len(values) + 3}" stroke="#d62728" stroke-width="1.5"/>')
        y += BAR * len(values) + GAP
    for power in range(low, high + 1):
        x = place(10.0**power, low, high)
        parts.insert(0, f'<path d="M{x:.1f} {top - 4}V{y}" stroke="#e5e5e5"/>')
        parts.append(text(x, y + 12, f"{10.0**power:,g} ms", "middle"))
    size = f'width="{WIDTH}" height="{y + 20}" viewBox="0 0 {WIDTH} {y + 20}"'
    style = 'font-family="sans-serif" font-size="11"'
    background = f'<rect width="{WIDTH}" height="{y + 20}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', background, *parts, "</svg>"]) + "\n"


def place(value: float, low: int, high: int) -> float:
    """Where a time lies on the axis from 10^low to 10^high, in pixels."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(value) - low) / (high - low)


def legend(colours: Mapping[str, str]) -> tuple[list[str], float]:
    """The names beside their colours and the floor's red stroke, in lines at the top, and where the bars may begin."""
    parts, x, y = [], 10.0, 8.0
    for name, colour in [*colours.items(), ("floor", "#d62728")]:
        width = 30 + 6.2 * len(name)
        if x + width > WIDTH:
            x, y = 10.0, y + 16
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="10" height="10" fill="{colour}"/>')
        parts.append(text(x + 14, y + 9, name, "start"))
        x += width
    return parts, y + 32


def text(x: float, y: float, words: str, anchor: str, size: int = 11) -> str:
    """A piece of text at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(words)}</text>'


if __name__ == "__main__":
    sys.exit(main())
