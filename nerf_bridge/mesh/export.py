"""From a field to a GLB file, step by step; the only place that leaves the world's axes and units."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.mesh.bake import bake
from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import DensityGrid, Mesh, MeshStatistics, Silhouettes, ThresholdChoice, UnwrappedMesh
from nerf_bridge.mesh.geometry import face_bodies, is_watertight
from nerf_bridge.mesh.gltf import WORLD_TO_GLTF, write_glb
from nerf_bridge.mesh.interior import fill_unseen
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.surface import Field, marching_cubes, refine_on_edges, sample_density
from nerf_bridge.mesh.threshold import ADVICE, check_not_empty, choose_threshold, opaque_masks, silhouette_iou
from nerf_bridge.mesh.unwrap import unwrap

logger = logging.getLogger(__name__)

KEEP_FRACTION = 0.1
"""Bodies of less than this fraction of the main body's volume are floaters."""
WELD_CELLS = 1e-3
"""Vertices nearer than this fraction of a cell become one."""
STAGES = ("density", "threshold", "surface", "clean", "simplify", "unwrap", "bake", "write")

Progress = Callable[[str, float], None]


def export_mesh(
    field: Field,
    occupied: Tensor,
    silhouettes: Silhouettes,
    settings: MeshConfig,
    path: Path,
    metadata: Mapping[str, object],
    backend: str,
    device: torch.device | str,
    on_progress: Progress | None = None,
) -> MeshStatistics:
    """Write the field's surface as a textured GLB.

    Args:
        field: density and colour over the box [-1, 1]^3.
        occupied: [r, r, r] bool, cells where the field may hold something.
        silhouettes: renders of the field to match, 8 to 12 views around it.
        settings: resolution, faces, texture, threshold, size.
        path: the .glb file; its folder must exist.
        metadata: plain JSON values kept in the file (prompt, seed, prior, licence).
        backend: resolved kernels, for the rasteriser.
        device: where the field is.
        on_progress: called with the name of each stage (of STAGES) and the fraction done before it, then ("done", 1.0).

    Returns:
        What was written.

    Raises:
        UserError: `path` is no .glb file in an existing folder.
        RunError: the field is empty, fog or not finite, or below the threshold asked for; nothing is written.
        OSError: writing failed; an old file at `path` stays as it was.
    """
    check_target(path)
    occupied = occupied.to(device)
    seconds: dict[str, float] = {}

    stage = functools.partial(_timed, seconds=seconds, on_progress=on_progress)
    with stage("density"):
        grid = sample_density(field, occupied, settings.resolution)
    with stage("threshold"):
        choice = _threshold(grid, silhouettes, settings.threshold, backend)
    with stage("surface"):
        raw = marching_cubes(fill_unseen(grid, choice.threshold), choice.threshold)
        refined = refine_on_edges(raw, grid, field, occupied, choice.threshold)
    with stage("clean"):
        body = _not_empty(clean(refined, WELD_CELLS * grid.cell, KEEP_FRACTION), choice.threshold)
    with stage("simplify"):
        surface = to_face_count(body, settings.faces, KEEP_FRACTION)
    with stage("unwrap"):
        unwrapped = unwrap(surface, settings.texture, settings.unwrap_seconds)
    with stage("bake"):
        texture = bake(unwrapped, field, occupied, settings.texture, grid.cell, backend)
    with stage("write"):
        placed = to_gltf_axes(unwrapped, settings.height_m)
        write_glb(path, placed, texture, metadata)
    if on_progress is not None:
        on_progress("done", 1.0)
    iou = silhouette_iou(surface, silhouettes, backend)
    return _statistics(surface, placed, choice, iou, settings.texture, seconds)


def check_target(path: Path) -> None:
    """Raise UserError unless `path` can become a GLB file."""
    if path.suffix.lower() != ".glb":
        raise UserError(f"cannot write a mesh to {path}: expected a name that ends in .glb")
    if not path.parent.is_dir():
        raise UserError(f"cannot write a mesh to {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"cannot write a mesh to {path}: it is a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write a mesh to {path}: {path.parent} cannot be written")


def to_gltf_axes(mesh: UnwrappedMesh, height_m: float | None) -> UnwrappedMesh:
    """Turn y up and front +z, scale to metres, and stand the object on the origin.

    Args:
        mesh: in the world's axes and the box's units.
        height_m: height wanted; None: the longest side becomes 1 m.

    Returns:
        The mesh with the centre of its bottom at the origin.
    """
    vertices = mesh.vertices @ WORLD_TO_GLTF.T
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    extent = high - low
    scale = 1.0 / extent.max() if height_m is None else height_m / extent[1]
    pivot = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    normals = mesh.normals @ WORLD_TO_GLTF.T
    return UnwrappedMesh((vertices - pivot) * scale, normals, mesh.uv, mesh.faces, mesh.method)


def _threshold(grid: DensityGrid, silhouettes: Silhouettes, given: float | None, backend: str) -> ThresholdChoice:
    if given is None:
        choice = choose_threshold(grid, silhouettes, backend)
        logger.info("density threshold %.3g: silhouettes agree to IoU %.3f", choice.threshold, choice.iou)
        return choice
    check_not_empty(grid, opaque_masks(silhouettes))
    if given >= grid.sigma.max():
        raise RunError(
            f"mesh.threshold: expected less than the field's highest density {grid.sigma.max():.3g}, got {given:g}"
        )
    return ThresholdChoice(given, silhouette_iou(marching_cubes(grid, given), silhouettes, backend), ())


def _not_empty(body: Mesh, threshold: float) -> Mesh:
    """`body` itself; raises RunError when it has no face."""
    if len(body.faces) == 0:
        raise RunError(f"the scene is empty: no closed body at density {threshold:.3g}; {ADVICE}")
    return body


def _statistics(
    surface: Mesh, placed: UnwrappedMesh, choice: ThresholdChoice, iou: float, texture: int, seconds: dict[str, float]
) -> MeshStatistics:
    low, high = placed.vertices.min(axis=0).tolist(), placed.vertices.max(axis=0).tolist()
    return MeshStatistics(
        vertices=len(placed.vertices),
        faces=len(placed.faces),
        components=int(face_bodies(surface).max()) + 1,
        watertight=is_watertight(surface),
        threshold=choice.threshold,
        iou=iou,
        curve=choice.curve,
        bounds_m=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        texture=texture,
        unwrap=placed.method,
        seconds=dict(seconds),
    )


@contextmanager
def _timed(name: str, seconds: dict[str, float], on_progress: Progress | None) -> Iterator[None]:
    """Tell `on_progress` that stage `name` starts, and note in `seconds` how long it took."""
    if on_progress is not None:
        on_progress(name, STAGES.index(name) / len(STAGES))
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
