"""From a field to a mesh file, step by step."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.config import MeshConfig
from nerf_bridge.errors import RunError
from nerf_bridge.mesh.bake import NORMAL_STEP, NormalAt, Source, bake, field_normals
from nerf_bridge.mesh.clean import clean
from nerf_bridge.mesh.data import (
    Asset,
    DensityGrid,
    Material,
    Mesh,
    MeshStatistics,
    Silhouettes,
    ThresholdChoice,
    UnwrappedMesh,
)
from nerf_bridge.mesh.floaters import drop_translucent
from nerf_bridge.mesh.geometry import face_bodies, is_watertight
from nerf_bridge.mesh.holes import close_gaps
from nerf_bridge.mesh.interior import fill_unseen
from nerf_bridge.mesh.manifold import make_solid
from nerf_bridge.mesh.normal_map import SurfaceNormals
from nerf_bridge.mesh.normals import gradient_normals
from nerf_bridge.mesh.silhouettes import opaque_masks, silhouette_iou
from nerf_bridge.mesh.simplify import to_face_count
from nerf_bridge.mesh.smooth import smooth
from nerf_bridge.mesh.surface import Field, marching_cubes, refine_on_edges, sample_density
from nerf_bridge.mesh.threshold import THIN_ADVICE, check_not_empty, choose_threshold
from nerf_bridge.mesh.unwrap import unwrap
from nerf_bridge.mesh.write import check_target, write_asset

logger = logging.getLogger(__name__)

CUT_OFF = 0.1
"""Of `mesh.keep_fraction`, after the decimation: kept bodies have shrunk a little, and must not go for that."""
IOU_LOSS = 0.03
"""Agreement with the silhouettes that the way from the threshold to the finished surface may cost without a warning."""
THIN_IOU = 0.9
"""Agreement below which the field has parts too thin for the samples, and is sampled twice as finely."""
LEAST_GAIN = 0.01
"""In agreement, for which the finer samples are taken: they cost up to eight times as much of memory and time."""
MOST_SAMPLES = 512
"""Along a side of the box, of the finer samples too."""
WELD_CELLS = 1e-3
"""Vertices nearer than this fraction of a cell become one."""
STAGES = ("density", "threshold", "surface", "clean", "simplify", "unwrap", "bake", "refine", "write")

Progress = Callable[[str, float], None]
Refinement = Callable[[UnwrappedMesh, np.ndarray, Callable[[float], None] | None], np.ndarray]
"""(mesh, base colour [h, w, 3] uint8, what to tell the fraction done) -> a better base colour of the same shape."""


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
    refine: Refinement | None = None,
) -> MeshStatistics:
    """Write the field's surface as a textured mesh.

    Args:
        field: density and colour over the box [-1, 1]^3.
        occupied: [r, r, r] bool, cells where the field may hold something.
        silhouettes: renders of the field to match, from all around (`render_silhouettes`).
        settings: resolution, faces, texture, threshold, size.
        path: the file; its suffix names the format (`write_asset`), its folder must exist.
        metadata: plain JSON values kept in the file (prompt, seed, prior, licence).
        backend: resolved kernels, for the rasteriser.
        device: where the field is.
        on_progress: called with the name of each stage (of STAGES) and the fraction done before it, then ("done", 1.0);
            a long stage is told several times.
        refine: makes the baked base colour better, as `refine_texture` does; None: it stays as it is.

    Returns:
        What was written.

    Raises:
        UserError: `path` is no file of a known format in an existing folder, or the format cannot hold what is asked.
        RunError: the field is empty, fog or not finite, or below the threshold asked for; nothing is written.
        OSError: writing failed; an old file at `path` stays as it was.
    """
    check_target(path, settings)
    occupied = occupied.to(device)
    seconds: dict[str, float] = {}

    stage = functools.partial(_timed, seconds=seconds, on_progress=on_progress)
    with stage("density") as done:
        grid = sample_density(field, occupied, settings.resolution, done)
    with stage("threshold") as done:
        choice = _threshold(grid, silhouettes, settings.threshold, backend)
        if settings.threshold is None and choice.iou < THIN_IOU and 2 * settings.resolution <= MOST_SAMPLES:
            grid, choice = _twice_as_fine(grid, choice, field, occupied, silhouettes, backend, done)
    with stage("surface"):
        filled = close_gaps(grid, settings.close_holes * grid.resolution // settings.resolution)
        filled = fill_unseen(filled, choice.threshold) if settings.fill else filled
        raw = marching_cubes(filled, choice.threshold)
        del filled  # as large as the grid
        refined = refine_on_edges(raw, grid, field, occupied, choice.threshold)
    with stage("clean"):
        opaque = drop_translucent(refined, field, occupied)
        body = _not_empty(clean(opaque, WELD_CELLS * grid.cell, settings.keep_fraction), choice.threshold)
        body = smooth(make_solid(body) if settings.watertight else body, settings.smooth)
    with stage("simplify"):
        surface = to_face_count(body, settings.faces, CUT_OFF * settings.keep_fraction)
        surface = make_solid(surface) if settings.watertight else surface
    with stage("unwrap"):
        unwrapped = unwrap(surface, settings.texture, settings.unwrap_seconds, settings.unwrap_memory_gb)
        if settings.smooth == 0:  # else the surface is no longer the field's
            unwrapped = _with_field_normals(unwrapped, field, occupied, choice.threshold, grid.cell)
    with stage("bake") as done:
        source = Source(field, occupied, choice.threshold, grid.cell)
        normal_at = _detail(source, body, settings)
        base_color, normal = bake(unwrapped, source, settings.texture, backend, normal_at, done)
    with stage("refine") as done:
        base_color = base_color if refine is None else refine(unwrapped, base_color, done)
    with stage("write"):
        material = Material(base_color, normal, settings.roughness, settings.metallic)
        written = write_asset(path, Asset(unwrapped, material, metadata), settings)
    if on_progress is not None:
        on_progress("done", 1.0)
    iou = silhouette_iou(surface, silhouettes, backend)
    _warn_of_loss(choice.iou, iou)
    return _statistics(surface, written, choice, iou, settings.texture, seconds)


def _threshold(grid: DensityGrid, silhouettes: Silhouettes, given: float | None, backend: str) -> ThresholdChoice:
    if given is None:
        choice = choose_threshold(grid, silhouettes, backend)
        logger.info("density threshold %.3g: silhouettes agree to IoU %.3f", choice.threshold, choice.iou)
        return choice
    check_not_empty(grid, opaque_masks(silhouettes))
    if given >= grid.highest:
        raise RunError(
            f"mesh.threshold: expected less than the field's highest density {grid.highest:.3g}, got {given:g}"
        )
    return ThresholdChoice(given, silhouette_iou(marching_cubes(grid, given), silhouettes, backend), ())


def _twice_as_fine(
    grid: DensityGrid,
    choice: ThresholdChoice,
    field: Field,
    occupied: Tensor,
    silhouettes: Silhouettes,
    backend: str,
    on_progress: Callable[[float], None] | None,
) -> tuple[DensityGrid, ThresholdChoice]:
    """Twice as many samples along a side and their threshold, or `grid` and `choice` where these show about as much."""
    finer = sample_density(field, occupied, 2 * grid.resolution, on_progress)
    try:
        of_finer = _threshold(finer, silhouettes, None, backend)
    except RunError:  # fog or empty to these, and not to the others
        return grid, choice
    if of_finer.iou < choice.iou + LEAST_GAIN:
        logger.info("%d samples along a side show about as much: %d are kept", finer.resolution, grid.resolution)
        return grid, choice
    logger.info("parts too thin for %d samples along a side: %d are taken", grid.resolution, finer.resolution)
    return finer, of_finer


def _with_field_normals(
    mesh: UnwrappedMesh, field: Field, occupied: Tensor, threshold: float, cell: float
) -> UnwrappedMesh:
    """`mesh` with the normals of the density in place of those of its faces."""
    step = NORMAL_STEP * cell
    return replace(mesh, normals=gradient_normals(mesh.vertices, mesh.normals, field, occupied, threshold, step))


def _detail(source: Source, body: Mesh, settings: MeshConfig) -> NormalAt | None:
    """Where the normal map comes from: the field, or the surface before its decimation once that was smoothed."""
    if not settings.normal_map:
        return None
    return field_normals(source) if settings.smooth == 0 else SurfaceNormals(body)


def _not_empty(body: Mesh, threshold: float) -> Mesh:
    """`body` itself; raises RunError when it has no face."""
    if len(body.faces) == 0:
        raise RunError(f"the scene is empty: no closed body at density {threshold:.3g}; {THIN_ADVICE}")
    return body


def _warn_of_loss(before: float, after: float) -> None:
    """Say it when the mesh misses much of what the surface at the threshold showed: something visible was lost."""
    if after < before - IOU_LOSS:
        logger.warning(
            "the mesh agrees with the silhouettes to IoU %.3f, the field's surface to %.3f: something visible is lost; "
            "try a lower mesh.keep_fraction, more mesh.faces or less mesh.smooth",
            after,
            before,
        )


def _statistics(
    surface: Mesh,
    written: UnwrappedMesh,
    choice: ThresholdChoice,
    iou: float,
    texture: int,
    seconds: dict[str, float],
) -> MeshStatistics:
    low, high = written.vertices.min(axis=0).tolist(), written.vertices.max(axis=0).tolist()
    least, most = surface.vertices.min(axis=0).tolist(), surface.vertices.max(axis=0).tolist()
    return MeshStatistics(
        vertices=len(written.vertices),
        faces=len(written.faces),
        components=int(face_bodies(surface).max()) + 1,
        watertight=is_watertight(surface),
        threshold=choice.threshold,
        iou=iou,
        curve=choice.curve,
        bounds=((least[0], least[1], least[2]), (most[0], most[1], most[2])),
        bounds_m=((low[0], low[1], low[2]), (high[0], high[1], high[2])),
        texture=texture,
        unwrap=written.method,
        seconds=dict(seconds),
    )


@contextmanager
def _timed(
    name: str, seconds: dict[str, float], on_progress: Progress | None
) -> Iterator[Callable[[float], None] | None]:
    """Tell `on_progress` that stage `name` starts, and note in `seconds` how long it took.

    Gives a function that takes the fraction of the stage that is done; None when nobody wants to know.
    """
    done = None if on_progress is None else functools.partial(_stage_done, name, on_progress)
    if done is not None:
        done(0.0)
    start = time.perf_counter()
    yield done
    seconds[name] = time.perf_counter() - start


def _stage_done(name: str, on_progress: Progress, fraction: float) -> None:
    on_progress(name, (STAGES.index(name) + fraction) / len(STAGES))
