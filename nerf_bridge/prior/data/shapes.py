"""Meshes of simple solids, z up, standing on z = 0, about one unit high."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Shape = tuple[np.ndarray, np.ndarray]  # vertices [v, 3] float64, faces [f, 3] int64


def revolve(profile: np.ndarray, segments: int = 32) -> Shape:
    """Turn a profile about the z axis.

    Args:
        profile: [p, 2] of (radius, z), bottom to top; points of radius 0 become poles.
        segments: around the axis.

    Returns:
        A shape; closed where the profile starts and ends on the axis, or ends where it starts.
    """
    angle = 2.0 * np.pi * np.arange(segments) / segments
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vertices = np.concatenate(
        [np.column_stack([radius * ring, np.full(segments, height)]) for radius, height in profile]
    )
    lower = np.arange(segments)
    upper = (lower + 1) % segments
    faces = []
    for row in range(len(profile) - 1):
        a, b = row * segments + lower, row * segments + upper
        c, d = a + segments, b + segments
        if profile[row][0] > 0:
            faces.append(np.stack([a, b, d], axis=1))
        if profile[row + 1][0] > 0:
            faces.append(np.stack([a, d, c], axis=1))
        elif profile[row][0] > 0:
            faces[-1] = np.stack([a, b, c], axis=1)
    return vertices, np.concatenate(faces)


def extrude(outline: np.ndarray, depth: float) -> Shape:
    """Give a star-shaped outline [n, 2] in the (x, z) plane a depth along y; its middle sees all of it."""
    n = len(outline)
    middle = outline.mean(axis=0)
    flat = np.concatenate([outline, middle[None]])
    front = np.column_stack([flat[:, 0], np.full(n + 1, -0.5 * depth), flat[:, 1]])
    back = front * np.array([1.0, -1.0, 1.0])
    here, following = np.arange(n), (np.arange(n) + 1) % n
    caps = np.stack([here, following, np.full(n, n)], axis=1)
    shift = n + 1
    sides = np.concatenate(
        [
            np.stack([here, here + shift, following], axis=1),
            np.stack([following, here + shift, following + shift], axis=1),
        ]
    )
    return np.concatenate([front, back]), np.concatenate([caps, caps[:, ::-1] + shift, sides])


def prism(sides: int, bottom_radius: float, top_radius: float, height: float, turn_rad: float = 0.0) -> Shape:
    """A prism, frustum or pyramid (top_radius 0) with a regular polygon as base."""
    vertices, faces = revolve(
        np.array([[0.0, 0.0], [bottom_radius, 0.0], [top_radius, height], [0.0, height]])
        if top_radius > 0
        else np.array([[0.0, 0.0], [bottom_radius, 0.0], [0.0, height]]),
        sides,
    )
    cosine, sine = np.cos(turn_rad), np.sin(turn_rad)
    return vertices @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]]), faces


def box(width: float, depth: float, height: float) -> Shape:
    """A box of width (x), depth (y) and height (z)."""
    vertices, faces = prism(4, np.sqrt(0.5), np.sqrt(0.5), 1.0, np.pi / 4)
    return vertices * np.array([width, depth, height]), faces


def _arc(start_rad: float, stop_rad: float, n: int) -> np.ndarray:
    angle = np.linspace(start_rad, stop_rad, n)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points[np.abs(points) < 1e-12] = 0.0
    return points


def ball() -> Shape:
    """A sphere of diameter 1."""
    return revolve(0.5 * _arc(-np.pi / 2, np.pi / 2, 17) + np.array([0.0, 0.5]))


def hemisphere() -> Shape:
    """Half a sphere, flat side down, radius 0.6."""
    return revolve(np.concatenate([[[0.0, 0.0]], 0.6 * _arc(0.0, np.pi / 2, 9)]))


def capsule() -> Shape:
    """An upright cylinder with round ends, 1.1 high."""
    bottom = 0.25 * _arc(-np.pi / 2, 0.0, 8) + np.array([0.0, 0.25])
    top = 0.25 * _arc(0.0, np.pi / 2, 8) + np.array([0.0, 0.85])
    return revolve(np.concatenate([bottom, top]))


def torus() -> Shape:
    """A lying ring with a round section."""
    angle = np.linspace(0.0, 2.0 * np.pi, 17)
    return revolve(np.stack([0.45 + 0.17 * np.cos(angle), 0.17 + 0.17 * np.sin(angle)], axis=1))


def tube() -> Shape:
    """An upright thick-walled pipe."""
    return revolve(np.array([[0.28, 0.0], [0.42, 0.0], [0.42, 0.9], [0.28, 0.9], [0.28, 0.0]]))


def egg() -> Shape:
    """An egg, thick end down."""
    profile = _arc(-np.pi / 2, np.pi / 2, 17)
    radius = 0.42 * profile[:, 0] * (1.0 - 0.16 * profile[:, 1])
    return revolve(np.stack([radius, 0.55 + 0.55 * profile[:, 1]], axis=1))


def star() -> Shape:
    """A flat five-pointed star that faces the front."""
    angle = np.pi / 2 + np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2 == 0, 0.6, 0.25)
    return extrude(np.stack([radius * np.cos(angle), 0.5 + radius * np.sin(angle)], axis=1), 0.22)


def heart() -> Shape:
    """A flat heart that faces the front."""
    t = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    z = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return extrude(np.stack([x, z], axis=1) / 30.0 + np.array([0.0, 0.57]), 0.3)


def arrow() -> Shape:
    """A flat arrow that points up."""
    outline = [[-0.12, 0.0], [0.12, 0.0], [0.12, 0.55], [0.36, 0.55], [0.0, 1.0], [-0.36, 0.55], [-0.12, 0.55]]
    return extrude(np.array(outline), 0.2)


def cross() -> Shape:
    """A flat plus sign that faces the front."""
    arm = np.array([[0.17, -0.17], [0.5, -0.17], [0.5, 0.17]])  # to the right; the others are quarter turns of it
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    outline = np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])
    return extrude(outline + np.array([0.0, 0.5]), 0.3)


SHAPES: dict[str, Callable[[], Shape]] = {
    "cube": lambda: box(0.85, 0.85, 0.85),
    "ball": ball,
    "cone": lambda: revolve(np.array([[0.0, 0.0], [0.45, 0.0], [0.0, 1.0]])),
    "cylinder": lambda: revolve(np.array([[0.0, 0.0], [0.38, 0.0], [0.38, 0.9], [0.0, 0.9]])),
    "torus": torus,
    "pyramid": lambda: prism(4, 0.65, 0.0, 0.9, np.pi / 4),
    "capsule": capsule,
    "star": star,
    "heart": heart,
    "arrow": arrow,
    "cross": cross,
    "egg": egg,
    "tube": tube,
    "hemisphere": hemisphere,
    "hexagonal prism": lambda: prism(6, 0.5, 0.5, 0.7),
    "disc": lambda: revolve(np.array([[0.0, 0.0], [0.6, 0.0], [0.6, 0.18], [0.0, 0.18]])),
    "box": lambda: box(1.1, 0.7, 0.5),
    "pillar": lambda: box(0.35, 0.35, 1.3),
}
FLAT_TOPPED = ("cube", "cylinder", "hexagonal prism", "disc", "box", "tube", "pillar")
STACKABLE = ("cube", "ball", "cone", "cylinder", "pyramid", "star", "egg", "capsule", "torus", "hemisphere", "heart")
