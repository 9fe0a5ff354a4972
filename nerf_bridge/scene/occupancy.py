"""The occupancy grid: which cells of the box hold something, so that the marcher can skip the rest."""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

FULL_UPDATES = 4  # the first updates look at every cell
MEAN_SLACK = 0.99  # even fog, all of whose cells are at the mean, must not vanish by rounding
SHARE = 0.25  # later ones at this share of the cells, drawn at random, and at all the occupied ones


class HasDensity(Protocol):
    """What the grid needs of a field."""

    def density(self, points: Tensor) -> Tensor:
        """sigma [n] at points [n, 3]."""


class OccupancyGrid(nn.Module):
    """A moving maximum of the density in each cell of the box [-1, 1]^3 (Mueller et al. 2022, appendix C).

    Buffers, all part of the state of a run:
        ema: [R, R, R] float32, indexed x, y, z.
        occupied: [R, R, R] bool; all true at the start.
        n_updates: int64, how often `update` ran.
    """

    ema: Tensor
    occupied: Tensor
    n_updates: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        shape = (resolution, resolution, resolution)
        self.register_buffer("ema", torch.zeros(shape))
        self.register_buffer("occupied", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    @property
    def resolution(self) -> int:
        """Cells along a side."""
        return self.ema.shape[0]

    @property
    def occupied_fraction(self) -> float:
        """Share of the cells that are occupied; 0 means that nothing can be seen."""
        return float(self.occupied.float().mean())

    @torch.no_grad()
    def update(
        self, field: HasDensity, step_size: float, decay: float, threshold: float, generator: torch.Generator
    ) -> None:
        """Look at the density again and decide which cells are occupied.

        For the cells looked at, ema <- max(decay * ema, sigma at a random point of the cell). Occupied are the cells
        whose opacity over one step, 1 - exp(-ema * step_size), is at least min(threshold, mean opacity of all cells)
        and above zero. So the grid is empty only where the density was zero at every point looked at; that is logged.

        Args:
            field: the field, on the grid's device.
            step_size: the marcher's step, in units of the box [-1, 1]^3.
            decay: in (0, 1).
            threshold: opacity in (0, 1).
            generator: source of every draw, on any device.
        """
        cells = self._cells_to_visit(generator)
        sigma = field.density(self._jittered_points(cells, generator)).to(self.ema.dtype)
        ema = self.ema.view(-1)
        known = decay * ema[cells]
        ema[cells] = torch.where(torch.isfinite(sigma), torch.maximum(known, sigma), known)
        opacity = -torch.expm1(-self.ema * step_size)
        self.occupied.copy_((opacity >= (MEAN_SLACK * opacity.mean()).clamp(max=threshold)) & (opacity > 0))
        self.n_updates += 1
        if not bool(self.occupied.any()):
            logger.warning("the occupancy grid is empty: the density is zero at every point that was looked at")

    def _cells_to_visit(self, generator: torch.Generator) -> Tensor:
        """Flat indices [m] of the cells to look at, in ascending order."""
        n_cells = self.ema.numel()
        if int(self.n_updates) < FULL_UPDATES:
            return torch.arange(n_cells, device=self.ema.device)
        drawn = torch.rand(n_cells, generator=generator, device=generator.device).to(self.ema.device) < SHARE
        return torch.nonzero(drawn | self.occupied.view(-1)).squeeze(-1)

    def _jittered_points(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """A uniformly drawn point [m, 3] of the box in each of the cells [m]."""
        r = self.resolution  # torch.unravel_index would import sympy, which takes a second
        corner = torch.stack([cells // (r * r), cells // r % r, cells % r], dim=-1)
        within = torch.rand(cells.shape[0], 3, generator=generator, device=generator.device).to(self.ema.device)
        return (corner + within) * (2.0 / self.resolution) - 1.0
