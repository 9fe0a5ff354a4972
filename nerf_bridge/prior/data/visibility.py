"""How much of each face is seen from outside: insides and undersides must not decide an object's colour."""

from __future__ import annotations

import numpy as np
import torch

from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.ops.raster import rasterize

SIZE = 96  # pixels across a box of side 2
VIEWS_DEG = tuple((azimuth, 15.0) for azimuth in range(0, 360, 45)) + ((30.0, 60.0), (210.0, 60.0), (120.0, -15.0))


def visible_pixels(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Count the pixels of each face over eleven parallel views from around.

    Args:
        vertices: [v, 3] within the unit ball; faces: [f, 3].

    Returns:
        [f] int64.

    Raises:
        UserError: no backend for the rasteriser is available.
    """
    backend = resolve_backend("auto", torch.device("cpu"))
    counts = np.zeros(len(faces), dtype=np.int64)
    triangles = torch.from_numpy(np.ascontiguousarray(faces, dtype=np.int64))
    for azimuth_deg, elevation_deg in VIEWS_DEG:
        axes = _view_axes(np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg))
        seen = vertices @ axes.T
        # Parallel projection: w = 1, and depth grows away from the viewer.
        clip = np.column_stack([seen[:, 0], seen[:, 1], -0.5 * seen[:, 2], np.ones(len(seen))])
        index = rasterize(torch.from_numpy(clip.astype(np.float32)), triangles, SIZE, SIZE, backend).face_index
        covered = index[index >= 0].numpy().astype(np.int64)
        counts += np.bincount(covered, minlength=len(faces))
    return counts


def _view_axes(azimuth_rad: float, elevation_rad: float) -> np.ndarray:
    """Rows: right, up and towards the viewer, [3, 3], for a viewer in the world's convention."""
    sin_a, cos_a = np.sin(azimuth_rad), np.cos(azimuth_rad)
    sin_e, cos_e = np.sin(elevation_rad), np.cos(elevation_rad)
    towards = np.array([cos_e * sin_a, -cos_e * cos_a, sin_e])
    right = np.array([cos_a, sin_a, 0.0])
    return np.stack([right, np.cross(towards, right), towards])
