"""nerfacc's own march and composite, called as its estimator and renderer call them: nothing of ours around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.bench_inputs import STEP
from nerf_bridge.ops import peers
from nerf_bridge.ops.march import Samples
from nerf_bridge.scene.rays import Rays

FAR = 1e10  # its estimator's default
BOX = [[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]]


class March:
    """`OccGridEstimator.sampling` without its pruning: rays to ray indices and intervals."""

    def __init__(self, rays: Rays, occupied: Tensor) -> None:
        self.nerfacc = peers.require("nerfacc")
        near = torch.zeros(len(rays), device=occupied.device)
        box = torch.tensor(BOX, device=occupied.device)
        self.scene = (rays.origins, rays.directions, occupied[None], box, near, torch.full_like(near, FAR), STEP)

    def __call__(self) -> Sequence[Tensor]:
        """Starts, ends and rays of the samples, [n] each."""
        intervals, samples, _ = self.nerfacc.traverse_grids(*self.scene)
        edges = intervals.vals
        return edges[intervals.is_left], edges[intervals.is_right], samples.ray_indices


class Composite:
    """`rendering` with a density given: weights, then colour, opacity and depth."""

    def __init__(self, samples: Samples, sigmas: Tensor, colors: Tensor) -> None:
        self.nerfacc = peers.require("nerfacc")
        self.samples, self.sigmas, self.colors = samples, sigmas, colors
        self.middles = samples.t_mids[:, None]

    def __call__(self) -> Sequence[Tensor]:
        """Colour [n_rays, 3], opacity and depth [n_rays, 1]."""
        of, n_rays = self.samples, self.samples.packed_info.shape[0]
        weights, _, _ = self.nerfacc.render_weight_from_density(
            of.t_starts, of.t_ends, self.sigmas, packed_info=of.packed_info
        )
        return [
            self.nerfacc.accumulate_along_rays(weights, values, of.ray_indices, n_rays)
            for values in (self.colors, None, self.middles)
        ]
