"""From the world's axes and the box's units to a file's: its up axis, metres, and what lies at its origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from nerf_bridge.mesh.data import UnwrappedMesh

Pivot = Literal["bottom", "center", "origin"]
Up = Literal["y", "z"]

WORLD_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""(x, y, z) -> (x, z, -y): z up and front -y become y up and front +z; a rotation, so nothing is mirrored."""
FRONT = {"y": "+z", "z": "-y"}
"""Where the object faces, by the axis that points up."""


def place(mesh: UnwrappedMesh, up: Up, height_m: float | None, pivot: Pivot) -> UnwrappedMesh:
    """Scale to metres, move the pivot to the origin, and turn.

    Args:
        mesh: in the world's axes (z up, front -y) and the box's units, with a height above 0.
        up: "z" keeps the world's axes; "y" turns the front to +z.
        height_m: height wanted; None: the longest side becomes 1 m.
        pivot: "bottom": the centre of the bounding box's bottom; "center": its middle; "origin": the box's middle.

    Returns:
        The mesh in metres, in the file's axes.
    """
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    extent = high - low
    scale = 1.0 / extent.max() if height_m is None else height_m / extent[2]
    middle = (low + high) / 2
    origin = {
        "bottom": np.array([middle[0], middle[1], low[2]]),
        "center": middle,
        "origin": np.zeros(3),
    }[pivot]
    turn = WORLD_TO_Y_UP if up == "y" else np.eye(3)
    vertices = ((mesh.vertices - origin) * scale) @ turn.T
    return replace(mesh, vertices=vertices, normals=mesh.normals @ turn.T)
