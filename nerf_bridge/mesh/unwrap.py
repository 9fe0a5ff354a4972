"""Texture coordinates: xatlas with limits of time and memory, or a plain atlas that always works."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from nerf_bridge.mesh.data import Mesh, UnwrappedMesh
from nerf_bridge.mesh.fallback_atlas import grid_atlas
from nerf_bridge.mesh.geometry import vertex_normals

logger = logging.getLogger(__name__)

PADDING = 4
"""Texels between two charts of a texture of up to PACKING_SIZE; larger ones are packed as that and scaled up, so that
their charts lie further apart in texels, for the mip-maps, and packing takes no longer."""
PACKING_SIZE = 1024
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("xatlas_worker.py")))
"""The command that unwraps. -P: the folder of the script must not hide the standard library's modules."""


def unwrap(mesh: Mesh, size: int, seconds: float, memory_gb: float, worker: tuple[str, ...] = WORKER) -> UnwrappedMesh:
    """Lay the surface out flat.

    Args:
        mesh: a clean surface with at least one face.
        size: texels along a side of the texture.
        seconds: time after which xatlas is stopped and the grid atlas used.
        memory_gb: GiB of memory above which xatlas gets no more, and the grid atlas is used.
        worker: command that gets INPUT.npz OUTPUT.npz SECONDS GIB, see `xatlas_worker`.

    Returns:
        The mesh split along its seams, with the normals of the whole surface, so that seams do not show in the light.
    """
    layout = _xatlas(mesh, size, seconds, memory_gb, worker)
    source, faces, uv = grid_atlas(mesh, size) if layout is None else layout
    method = "grid" if layout is None else "xatlas"
    return UnwrappedMesh(mesh.vertices[source], vertex_normals(mesh)[source], uv, faces, method)


Layout = tuple[np.ndarray, np.ndarray, np.ndarray]


def _xatlas(mesh: Mesh, size: int, seconds: float, memory_gb: float, worker: tuple[str, ...]) -> Layout | None:
    """The layout of xatlas, or None (logged) when it takes too long or too much, fails or gives nonsense."""
    with tempfile.TemporaryDirectory(prefix="nerf-bridge-unwrap-") as folder:
        given, made = Path(folder, "mesh.npz"), Path(folder, "atlas.npz")
        np.savez(given, vertices=mesh.vertices, faces=mesh.faces, size=min(size, PACKING_SIZE), padding=PADDING)
        command = [*worker, str(given), str(made), str(math.ceil(seconds)), str(memory_gb)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=seconds,
                check=False,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each thread would take from the memory allowed
            )
        except subprocess.TimeoutExpired:
            logger.warning("xatlas took more than %g s and was stopped: a plain grid atlas is used", seconds)
            return None
        except OSError as error:
            logger.warning("xatlas cannot be started (%s): a plain grid atlas is used", error)
            return None
        if done.returncode != 0 or not made.is_file():
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            logger.warning(
                "xatlas failed with status %d (%s; it may take %g GiB): a plain grid atlas is used",
                done.returncode,
                words[-1],
                memory_gb,
            )
            return None
        with np.load(made) as atlas:
            layout = atlas["source"].astype(np.int64), atlas["faces"].astype(np.int64), atlas["uv"].astype(np.float64)
    if not is_layout_of(mesh, *layout):
        logger.warning("xatlas gave an atlas of another surface: a plain grid atlas is used")
        return None
    return layout


def is_layout_of(mesh: Mesh, source: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> bool:
    """`source` and `faces` spell the faces of `mesh` in order, and every `uv` lies in 0..1."""
    if faces.shape != mesh.faces.shape or len(source) != len(uv) or not np.isfinite(uv).all():
        return False
    in_range = faces.min() >= 0 and faces.max() < len(source) and uv.min() >= 0 and uv.max() <= 1
    return bool(in_range) and np.array_equal(source[faces], mesh.faces)
