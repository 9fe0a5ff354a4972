"""Stages, noise times and weights: pure functions of the step, so that a resumed run does what an unbroken one does."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from torch import Tensor

Stage = Literal[1, 2]
Weighting = Literal["sigma2", "one"]

_T_EDGE = 1e-4  # noise times keep this distance from 0 and 1, where alpha or sigma may vanish


def stage_at(step: int, steps: int, bridge_from: float) -> Stage:
    """Stage of the bridge at `step` (0 ... steps - 1): 2 from the fraction `bridge_from` of the steps on, 1 before."""
    first_of_two = math.ceil(bridge_from * steps - 1e-9)  # 0.7 * 10 is a little more than 7 in floating point
    return 2 if step >= first_of_two else 1


def t_max_at(step: int, steps: int, t_max_start: float, t_max_end: float) -> float:
    """Largest noise time at `step`: linear from `t_max_start` at step 0 to `t_max_end` at step steps - 1."""
    progress = step / max(steps - 1, 1)
    return t_max_start + (t_max_end - t_max_start) * progress


def step_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on (seed, step, purpose) alone: nothing to store in a checkpoint.

    Args:
        purpose: what is drawn from it, for example "noise"; different purposes give independent streams.
    """
    digest = hashlib.sha256(f"{purpose}/{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw_times(seed: int, step: int, n: int, t_min: float, t_max: float) -> Tensor:
    """`n` independent noise times, uniform in [t_min, t_max) and inside (0, 1); float32 on the CPU.

    The same for the same (seed, step, n) on every machine, whatever was drawn before.
    """
    uniform = torch.rand(n, generator=step_generator(seed, step, "times"))
    return (t_min + (t_max - t_min) * uniform).clamp(_T_EDGE, 1 - _T_EDGE)


def draw_noise(seed: int, step: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of `shape`, a function of (seed, step, shape) alone; float32 on the CPU."""
    return torch.randn(shape, generator=step_generator(seed, step, "noise"))


def noise_weight(alpha: Tensor, sigma: Tensor, weighting: Weighting) -> Tensor:
    """w(t) [b]: sigma^2 / (alpha^2 + sigma^2) for "sigma2" (1 - alpha_bar where variance is preserved), or ones."""
    if weighting == "one":
        return torch.ones_like(sigma)
    return sigma**2 / (alpha**2 + sigma**2)
