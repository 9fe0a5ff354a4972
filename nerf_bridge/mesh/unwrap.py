"""Texture coordinates: xatlas with a time limit, or a plain grid of triangles that always works."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.geometry import vertex_normals

logger = logging.getLogger(__name__)

PADDING = 4
"""Texels between two charts."""
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("xatlas_worker.py")))
"""The command that unwraps. -P: the folder of the script must not hide the standard library's modules."""


def unwrap(mesh: Mesh, size: int, seconds: float, worker: tuple[str, ...] = WORKER) -> UnwrappedMesh:
    """Lay the surface out flat.

    Args:
        mesh: a clean surface with at least one face.
        size: texels along a side of the texture.
        seconds: time after which xatlas is stopped and the grid atlas used.
        worker: command that gets INPUT.npz OUTPUT.npz SECONDS, see `xatlas_worker`.

    Returns:
        The mesh split along its seams, with the normals of the whole surface, so that seams do not show in the light.
    """
    source, faces, uv, method = _xatlas(mesh, size, seconds, worker) or _grid(mesh, size)
    return UnwrappedMesh(mesh.vertices[source], vertex_normals(mesh)[source], uv, faces, method)


Layout = tuple[np.ndarray, np.ndarray, np.ndarray, str]


def _xatlas(mesh: Mesh, size: int, seconds: float, worker: tuple[str, ...]) -> Layout | None:
    """The layout of xatlas, or None (logged) when it takes too long, fails or gives nonsense."""
    with tempfile.TemporaryDirectory(prefix="nerf-bridge-unwrap-") as folder:
        given, made = Path(folder, "mesh.npz"), Path(folder, "atlas.npz")
        np.savez(given, vertices=mesh.vertices, faces=mesh.faces, size=size, padding=PADDING)
        command = [*worker, str(given), str(made), str(math.ceil(seconds))]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            logger.warning("xatlas took more than %g s and was stopped: a plain grid atlas is used", seconds)
            return None
        except OSError as error:
            logger.warning("xatlas cannot be started (%s): a plain grid atlas is used", error)
            return None
        if done.returncode != 0 or not made.is_file():
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            logger.warning("xatlas failed with status %d (%s): a plain grid atlas is used", done.returncode, words[-1])
            return None
        with np.load(made) as atlas:
            layout = atlas["source"].astype(np.int64), atlas["faces"].astype(np.int64), atlas["uv"].astype(np.float64)
    if not is_layout_of(mesh, *layout):
        logger.warning("xatlas gave an atlas of another surface: a plain grid atlas is used")
        return None
    return *layout, "xatlas"


def is_layout_of(mesh: Mesh, source: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> bool:
    """`source` and `faces` spell the faces of `mesh` in order, and every `uv` lies in 0..1."""
    if faces.shape != mesh.faces.shape or len(source) != len(uv) or not np.isfinite(uv).all():
        return False
    in_range = faces.min() >= 0 and faces.max() < len(source) and uv.min() >= 0 and uv.max() <= 1
    return bool(in_range) and np.array_equal(source[faces], mesh.faces)


def _grid(mesh: Mesh, size: int) -> Layout:
    """Two triangles in each square of a grid, apart from each other and from the squares around them."""
    n_faces = len(mesh.faces)
    side = math.ceil(math.sqrt(math.ceil(n_faces / 2)))
    gutter = min(1.0, 0.15 * size / side) / size
    short = gutter * math.sqrt(2.0)
    low, high = gutter, 1.0 / side - gutter
    lower = np.array([[low, low], [high - short, low], [low, high - short]])
    upper = np.array([[high, high], [low + short, high], [high, low + short]])
    number = np.arange(n_faces)
    square = np.stack([(number // 2) % side, number // 2 // side], axis=1) / side
    uv = square[:, None, :] + np.where((number % 2 == 0)[:, None, None], lower, upper)
    return mesh.faces.reshape(-1), np.arange(3 * n_faces).reshape(-1, 3), uv.reshape(-1, 2).clip(0, 1), "grid"
