"""A box with a texture and a normal map, written by the exporter's own writer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from nerf_bridge.config import MeshConfig
from nerf_bridge.mesh.data import Asset, Material, UnwrappedMesh
from nerf_bridge.mesh.write import write_asset

SIZE = (0.8, 0.5, 1.2)
"""Along x, y and z, in the box's units."""
METADATA = {"prompt": "a letter box", "seed": 3, "prior": "embedded", "licence": "Apache-2.0"}
TEXTURE = 128


def write_box(path: Path, normal_map: bool = True, **settings: object) -> Path:
    """Write the box to `path` with these settings of the exporter."""
    config = MeshConfig(height_m=0.45, normal_map=normal_map, **settings)
    color = np.full((TEXTURE, TEXTURE, 3), (200, 60, 20), dtype=np.uint8)
    flat = np.full((TEXTURE, TEXTURE, 3), (128, 128, 255), dtype=np.uint8)
    material = Material(color, flat if normal_map else None, config.roughness, config.metallic)
    write_asset(path, Asset(box(), material, METADATA), config)
    return path


def box() -> UnwrappedMesh:
    """Six sides of four corners each, counter-clockwise seen from outside; every side has the whole texture."""
    vertices, normals = [], []
    for axis, sign in itertools.product(range(3), (-1.0, 1.0)):
        out, right = np.zeros(3), np.zeros(3)
        out[axis], right[(axis + 1) % 3] = sign, 1.0
        up = np.cross(out, right)
        vertices += [out + a * right + b * up for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        normals += [out] * 4
    uv = np.tile([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]], (6, 1))
    faces = [[first + a, first + b, first + c] for first in range(0, 24, 4) for a, b, c in ((0, 1, 2), (0, 2, 3))]
    return UnwrappedMesh(np.array(vertices) * SIZE / 2, np.array(normals), uv, np.array(faces), "grid")
