"""Small line charts as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 360, 150
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 22
LOG_FROM = 100.0  # a figure whose largest value is this many times its smallest gets a logarithmic axis


def line_chart(
    points: Sequence[tuple[float, float]], label: str, mark: float | None = None, log_x: bool = False
) -> str:
    """Draw y over x.

    Args:
        points: (x, y), by rising x, all finite, at least one.
        label: what y is, for screen readers.
        mark: an x to draw a dashed line at; left out when it is not within the points.
        log_x: whether x grows by factors; only done when all of them are positive.

    Returns:
        An `<svg>` element.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    log_x = log_x and min(xs) > 0
    log_y = min(ys) > 0 and max(ys) / min(ys) >= LOG_FROM
    places, heights = _axis(xs, log_x), _axis(ys, log_y)
    low, high = _padded(min(heights), max(heights))
    across, up = _scale(places[0], places[-1], LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP)
    line = " ".join(f"{_place(x, across)},{_place(y, up)}" for x, y in zip(places, heights, strict=True))
    ends = {max(heights): max(ys), min(heights): min(ys)}  # one entry when all are equal
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        f'<path class="axis" d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        *(f'<text x="{LEFT - 6}" y="{_place(y, up)}" class="y">{_number(value)}</text>' for y, value in ends.items()),
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{_number(xs[0])}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" class="end">{_number(xs[-1])}</text>',
    ]
    if mark is not None and xs[0] < mark < xs[-1]:
        parts.append(f'<path class="mark" d="M{_place(_axis([mark], log_x)[0], across)},{TOP}V{HEIGHT - BOTTOM}"/>')
    parts.append(f'<polyline points="{line}"/>')
    parts.append(f'<circle cx="{_place(places[-1], across)}" cy="{_place(heights[-1], up)}" r="3"/></svg>')
    return "".join(parts)


def _axis(values: Sequence[float], logarithmic: bool) -> list[float]:
    return [math.log10(value) for value in values] if logarithmic else list(values)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0))


def _scale(low: float, high: float, start: float, end: float) -> tuple[float, float]:
    """Factor and offset that take [low, high] to [start, end]."""
    factor = (end - start) / (high - low) if high > low else 0.0
    return factor, start - factor * low


def _place(value: float, scale: tuple[float, float]) -> str:
    return f"{scale[0] * value + scale[1]:.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:.3g}"
