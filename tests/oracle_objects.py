"""Known 3D objects made of coloured boxes and balls, with an exact inside test, and measures to compare with them.

World of the pipeline: z up, front faces -y, bounding box centred at the origin with half its diagonal at 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

HALF_DIAGONAL = 0.9
GRID = 64
LIGHT = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])

_CUBE_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
_CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
     [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    """An axis-parallel box between two corners."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    color: tuple[int, int, int]  # sRGB 0..255

    def mesh(self) -> tuple[NDArray, NDArray]:
        """Vertices [8, 3] and outward faces [12, 3]."""
        return self.low + _CUBE_CORNERS * np.subtract(self.high, self.low), _CUBE_FACES

    def inside(self, points: NDArray) -> NDArray:
        return np.all((points >= self.low) & (points <= self.high), axis=-1)


@dataclass(frozen=True)
class Ball:
    """A ball."""

    center: tuple[float, float, float]
    radius: float
    color: tuple[int, int, int]  # sRGB 0..255

    def mesh(self, n_around: int = 32, n_down: int = 16) -> tuple[NDArray, NDArray]:
        """Vertices [v, 3] and outward faces [f, 3] of a globe (its poles are repeated in each meridian)."""
        theta, phi = np.meshgrid(
            np.linspace(0, np.pi, n_down + 1), np.linspace(0, 2 * np.pi, n_around + 1), indexing="ij"
        )
        unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
        i, j = (index.ravel() for index in np.meshgrid(np.arange(n_down), np.arange(n_around), indexing="ij"))
        a, b = i * (n_around + 1) + j, (i + 1) * (n_around + 1) + j
        faces = np.concatenate([np.stack([a, b, b + 1], 1), np.stack([a, b + 1, a + 1], 1)])
        return np.asarray(self.center) + self.radius * unit.reshape(-1, 3), faces

    def inside(self, points: NDArray) -> NDArray:
        return np.linalg.norm(points - np.asarray(self.center), axis=-1) <= self.radius


@dataclass(frozen=True)
class KnownObject:
    """Coloured parts in their own units; everything that it gives is in the pipeline's world."""

    noun: str  # the word by which a prompt names it
    prompt: str
    parts: tuple[Box | Ball, ...]

    @cached_property
    def _placement(self) -> tuple[NDArray, float]:
        points = np.concatenate([part.mesh()[0] for part in self.parts])
        low, high = points.min(0), points.max(0)
        return (low + high) / 2, 2 * HALF_DIAGONAL / float(np.linalg.norm(high - low))

    @cached_property
    def mesh(self) -> tuple[NDArray, NDArray, NDArray]:
        """Vertices [v, 3] float32, outward faces [f, 3] int32, face colours [f, 3] uint8."""
        center, scale = self._placement
        vertices, faces, colors, first = [], [], [], 0
        for part in self.parts:
            part_vertices, part_faces = part.mesh()
            vertices.append((part_vertices - center) * scale)
            faces.append(part_faces + first)
            colors.append(np.tile(part.color, (len(part_faces), 1)))
            first += len(part_vertices)
        return (
            np.concatenate(vertices).astype(np.float32),
            np.concatenate(faces).astype(np.int32),
            np.concatenate(colors).astype(np.uint8),
        )

    def inside(self, points: NDArray) -> NDArray:
        """Whether each of `points` [..., 3] lies in the object; exact."""
        center, scale = self._placement
        own = points / scale + center
        return np.any([part.inside(own) for part in self.parts], axis=0)

    def surface(self, n: int, seed: int = 0) -> tuple[NDArray, NDArray]:
        """`n` points of the visible surface [n, 3], uniform by area, and their colours under the prior's light [n, 3].

        Points that lie inside another part are left out, so that somewhat fewer than `n` come back.
        """
        vertices, faces, colors = self.mesh
        corners = vertices[faces].astype(np.float64)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas = np.linalg.norm(normals, axis=1)
        random = np.random.default_rng(seed)
        chosen = random.choice(len(faces), n, p=areas / areas.sum())
        u = np.sort(random.random((n, 2)), axis=1)
        weights = np.stack([u[:, 0], u[:, 1] - u[:, 0], 1 - u[:, 1]], axis=1)
        points = np.einsum("nc,nck->nk", weights, corners[chosen])
        unit = normals[chosen] / areas[chosen, None]
        shade = 0.55 + 0.45 * (0.5 + 0.5 * unit @ LIGHT)
        seen = ~self.inside(points + 1e-3 * unit)
        return points[seen], (colors[chosen] / 255 * shade[:, None])[seen]


RED, GREEN, BLUE, YELLOW = (200, 40, 35), (50, 160, 60), (40, 70, 200), (230, 190, 40)
BROWN, PURPLE, WHITE = (130, 80, 45), (130, 50, 160), (225, 225, 220)

OBJECTS = (
    KnownObject("letter", "a red and blue letter", (
        Box((-0.6, -0.35, 0.0), (0.0, 0.35, 1.6), RED),
        Box((0.0, -0.35, 0.0), (0.8, 0.35, 0.55), BLUE),
    )),
    KnownObject("chair", "a green chair", (
        Box((-0.6, -0.6, 0.5), (0.6, 0.6, 0.9), GREEN),
        Box((-0.6, 0.2, 0.9), (0.6, 0.6, 1.7), YELLOW),
        Box((-0.6, -0.6, 0.0), (-0.2, -0.2, 0.5), BROWN),
        Box((0.2, -0.6, 0.0), (0.6, -0.2, 0.5), BROWN),
        Box((-0.6, 0.2, 0.0), (-0.2, 0.6, 0.5), BROWN),
        Box((0.2, 0.2, 0.0), (0.6, 0.6, 0.5), BROWN),
    )),
    KnownObject("ball", "a blue ball on a red cube", (
        Box((-0.55, -0.55, 0.0), (0.55, 0.55, 1.1), RED),
        Ball((0.0, 0.0, 1.5), 0.5, BLUE),
    )),
    KnownObject("horse", "a brown horse with a purple bag", (
        Box((-0.8, -0.3, 0.55), (0.6, 0.3, 1.1), BROWN),
        Box((-0.8, -0.3, 0.0), (-0.35, 0.3, 0.55), WHITE),
        Box((0.15, -0.3, 0.0), (0.6, 0.3, 0.55), WHITE),
        Box((0.2, -0.25, 1.1), (0.65, 0.25, 1.5), BROWN),
        Box((0.2, -0.25, 1.5), (1.1, 0.25, 1.9), YELLOW),
        Box((-0.6, -0.65, 0.6), (0.0, -0.3, 1.05), PURPLE),
    )),
)  # fmt: skip


def grid_points(n: int = GRID) -> NDArray:
    """Centres of the n^3 cells of the box [-1, 1]^3: [n, n, n, 3], indexed x, y, z."""
    axis = (np.arange(n) + 0.5) * 2 / n - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)


def occupancy_of_field(density: Callable[[NDArray], NDArray], threshold: float, n: int = GRID) -> NDArray:
    """Where the density exceeds `threshold`: [n, n, n] bool. `density` maps points [m, 3] float32 to [m]."""
    points = grid_points(n).reshape(-1, 3).astype(np.float32)
    return (np.asarray(density(points)) > threshold).reshape(n, n, n)


def occupancy_of_mesh(vertices: NDArray, faces: NDArray, n: int = GRID) -> NDArray:
    """Where the winding number of a closed mesh is not zero: [n, n, n] bool.

    Every triangle is met by the vertical lines through the grid's columns; a crossing counts for all points below it.
    """
    axis = (np.arange(n) + 0.5) * 2 / n - 1 + 1e-6  # off the vertices and edges of round coordinates
    crossings = np.zeros((n, n, n + 1), dtype=np.int64)
    corners = np.asarray(vertices, dtype=np.float64)[faces]
    first = np.searchsorted(axis, corners[..., :2].min(1))
    last = np.searchsorted(axis, corners[..., :2].max(1))
    for triangle, (i0, j0), (i1, j1) in zip(corners, first, last, strict=True):
        if i0 < i1 and j0 < j1:
            _count_crossings(triangle, axis, (i0, i1), (j0, j1), crossings)
    winding = np.cumsum(crossings[..., ::-1], axis=2)[..., ::-1]
    return winding[..., 1:] != 0


def _count_crossings(
    triangle: NDArray, axis: NDArray, rows: tuple[int, int], columns: tuple[int, int], crossings: NDArray
) -> None:
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = triangle
    area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
    if abs(area) < 1e-15:
        return
    x, y = np.meshgrid(axis[slice(*rows)], axis[slice(*columns)], indexing="ij")
    v = ((x - ax) * (cy - ay) - (cx - ax) * (y - ay)) / area
    w = ((bx - ax) * (y - ay) - (x - ax) * (by - ay)) / area
    i, j = np.nonzero((v >= 0) & (w >= 0) & (v + w <= 1))
    z = az + v[i, j] * (bz - az) + w[i, j] * (cz - az)
    np.add.at(crossings, (i + rows[0], j + columns[0], np.searchsorted(axis, z)), 1 if area > 0 else -1)


def volume_iou(occupied: NDArray, truth: KnownObject, mirrored: bool = False) -> float:
    """Intersection over union of `occupied` [n, n, n] with the object, or with its mirror image in x."""
    expected = truth.inside(grid_points(occupied.shape[0]))
    if mirrored:
        expected = expected[::-1]
    return float((occupied & expected).sum() / (occupied | expected).sum())
