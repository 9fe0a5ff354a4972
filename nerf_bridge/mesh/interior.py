"""Solid insides: guidance only ever sees the surface, so behind it a field may be hollow and its shell have gaps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from nerf_bridge.mesh.data import DensityGrid
from nerf_bridge.mesh.holes import sliding
from nerf_bridge.mesh.surface import DENSEST

HALF_SEEN = math.log(2.0)  # optical depth that lets half of the light through
CAP = 4.0  # filled samples are at most this many times as dense as the surface
BLOCK = 32  # planes copied together, so that a plane across the memory's order is not read sample by sample
LIGHTS = ((0.0, 32), (-20.0, 16), (20.0, 16), (45.0, 16), (90.0, 1))  # elevation in degrees of how many around

Direction = tuple[float, float, float]


def _directions() -> tuple[Direction, ...]:
    """Where the light of LIGHTS goes, each with its longest component 1."""
    found = []
    for elevation_deg, n in LIGHTS:
        e = math.radians(elevation_deg)
        for a in (2 * math.pi * k / n for k in range(n)):
            x, y, z = (round(c, 9) for c in (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), -math.sin(e)))
            longest = max(abs(x), abs(y), abs(z))
            found.append((x / longest, y / longest, z / longest))
    return tuple(found)


DIRECTIONS = _directions()


@torch.no_grad()
def fill_unseen(grid: DensityGrid, threshold: float) -> DensityGrid:
    """Make solid what cannot be seen: samples that less than half of the light reaches, from whichever direction.

    With tau the least optical depth over DIRECTIONS, the new density is max(sigma, threshold * tau / ln 2), so that its
    surface at `threshold` is the field's own where that is closed, and where the light is down to half elsewhere. What
    is filled keeps one sample away from the open air: light that grazes a soft surface is lost in its haze, and that
    haze must not thicken the surface.

    Args:
        grid: density; its memory is needed three times over.
        threshold: density of the surface.

    Returns:
        A grid of the same shape, nowhere less dense.
    """
    filled = least_depth(grid.sigma, grid.cell, DIRECTIONS)
    filled.div_(HALF_SEEN).clamp_(max=min(CAP, DENSEST / threshold)).mul_(threshold)
    torch.maximum(filled, grid.sigma, out=filled)
    inner = pad(filled, (1,) * 6)
    del filled
    for axis in range(3):
        inner = sliding(inner, axis, 2, torch.minimum)
    return replace(grid, sigma=torch.maximum(inner, grid.sigma, out=inner))


def least_depth(sigma: Tensor, cell: float, directions: tuple[Direction, ...]) -> Tensor:
    """The least optical depth, over some directions of parallel light, from the grid's wall to each sample.

    All directions that go the same way along an axis are swept together, plane after plane, so that no more than one
    grid is made.

    Args:
        sigma: [nx, ny, nz], indexed x, y, z.
        cell: distance between neighbouring samples.
        directions: where the light goes, each with its longest component 1 or -1. A ray passes one sample of each plane
            across that axis, the nearest to its line, so that rays keep apart and no wall blurs into the air beside it.

    Returns:
        [nx, ny, nz] float16, by the trapezoidal rule along the samples that the light passes; above 6e4 as infinity.
    """
    least = torch.full_like(sigma, torch.inf, dtype=torch.float16)
    for axis, step, group in _sweeps(directions):
        across = [tuple(d for i, d in enumerate(direction) if i != axis) for direction in group]
        half_steps = torch.tensor([0.5 * cell * math.hypot(*direction) for direction in group], device=sigma.device)
        passed = 0
        planes, results = sigma.movedim(axis, 0), least.movedim(axis, 0)
        arriving = torch.zeros((len(group), *planes.shape[1:]), device=sigma.device)
        starts = range(0, len(planes), BLOCK)
        for start in starts if step > 0 else reversed(starts):
            block, depth = (of[start : start + BLOCK].contiguous() for of in (planes, results))
            for k in range(len(block)) if step > 0 else reversed(range(len(block))):
                half = block[k].float() * half_steps[:, None, None]
                arriving += half
                depth[k] = torch.minimum(depth[k], arriving.amin(dim=0).half())
                arriving = _shifted(arriving + half, [(_move(a, passed), _move(b, passed)) for a, b in across])
                passed += 1
            results[start : start + BLOCK] = depth
    return least


def _sweeps(directions: tuple[Direction, ...]) -> Iterator[tuple[int, int, list[Direction]]]:
    """(axis, step, directions that make this step along it), each direction once: the last of its longest axes."""
    for axis, step in itertools.product(range(3), (1, -1)):
        group = [d for d in directions if d[axis] == step and all(abs(c) < 1 for c in d[axis + 1 :])]
        if group:
            yield axis, step, group


def _move(slope: float, passed: int) -> int:
    """Samples to the side, -1, 0 or 1, of a line of this slope on its way from plane `passed` to the next."""
    return math.floor((passed + 1) * slope + 0.5) - math.floor(passed * slope + 0.5)


def _shifted(planes: Tensor, moves: list[tuple[int, ...]]) -> Tensor:
    """`planes` [d, n, m], the i-th moved by `moves[i]`, each -1, 0 or 1 along both sides, zeros coming in."""
    moved = torch.zeros_like(planes)
    _, n, m = planes.shape
    for to, plane, (rows, columns) in zip(moved, planes, moves, strict=True):
        to[max(rows, 0) : n + min(rows, 0), max(columns, 0) : m + min(columns, 0)] = plane[
            max(-rows, 0) : n + min(-rows, 0), max(-columns, 0) : m + min(-columns, 0)
        ]
    return moved
