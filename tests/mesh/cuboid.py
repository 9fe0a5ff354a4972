"""A textured cuboid whose every side has its own colour: small enough to know everything of it."""

from __future__ import annotations

import numpy as np

from nerf_bridge.mesh.data import Asset, Material, UnwrappedMesh

LOW, HIGH = np.array([-0.5, -0.3, -0.2]), np.array([0.7, 0.1, 0.6])
METADATA = {"prompt": 'an "L", Ä 椅子', "seed": 7, "prior": "oracle", "licence": "Apache-2.0"}
SIDES = {
    "-x": (0, -1, (230, 20, 30)),
    "+x": (0, 1, (20, 160, 60)),
    "-y": (1, -1, (30, 60, 220)),
    "+y": (1, 1, (220, 200, 30)),
    "-z": (2, -1, (120, 60, 160)),
    "+z": (2, 1, (240, 240, 235)),
}
"""Axis, direction and colour of each side, in the world: the front, -y, is blue, the left of it, -x, is red."""


def cuboid_asset(normal_map: bool = True, roughness: float = 0.4, metallic: float = 0.25, size: int = 48) -> Asset:
    """24 vertices, 12 faces; the sides lie in a 3 x 2 grid of charts."""
    parts = [_side(number, axis, sign) for number, (axis, sign, _) in enumerate(SIDES.values())]
    vertices, normals, uv = (np.concatenate([part[k] for part in parts]) for k in range(3))
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * number for number in range(6)])
    texture = np.full((size, size, 3), 128, dtype=np.uint8)
    for number, (_, _, color) in enumerate(SIDES.values()):
        column, row = number % 3, number // 3
        rows = slice((1 - row) * size // 2, (2 - row) * size // 2)  # row 0 of the texture is at v = 1
        texture[rows, column * size // 3 : (column + 1) * size // 3] = color
    map_ = np.full((size, size, 3), (128, 128, 255), dtype=np.uint8) if normal_map else None
    return Asset(
        UnwrappedMesh(vertices, normals, uv, faces, "grid"), Material(texture, map_, roughness, metallic), METADATA
    )


def _side(number: int, axis: int, sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners, normals and texture coordinates of a side, counter-clockwise seen from outside."""
    across, along = (axis + 1) % 3, (axis + 2) % 3
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) if sign > 0 else np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    vertices = np.empty((4, 3))
    vertices[:, axis] = HIGH[axis] if sign > 0 else LOW[axis]
    for coordinate, k in ((across, 0), (along, 1)):
        vertices[:, coordinate] = np.where(square[:, k] == 1, HIGH[coordinate], LOW[coordinate])
    normals = np.zeros((4, 3))
    normals[:, axis] = sign
    flat = np.array([[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]])
    return vertices, normals, (flat + [number % 3, number // 3]) / [3, 2]


def side_of(points: np.ndarray) -> list[str]:
    """The side on which each of `points` [n, 3] lies, in the world."""
    names = []
    for point in points:
        distance = {
            name: abs(point[axis] - (HIGH if sign > 0 else LOW)[axis]) for name, (axis, sign, _) in SIDES.items()
        }
        names.append(min(distance, key=lambda name: distance[name]))
    return names
