"""Stages, noise times and weights: pure functions of the step, so that a resumed run does what an unbroken one does."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import torch
from torch import Tensor

from nerf_bridge.config import GuidanceConfig, OccupancyConfig, RenderConfig

Stage = Literal[1, 2]
Weighting = Literal["sigma2", "one"]

_T_EDGE = 1e-4  # noise times keep this distance from 0 and 1, where alpha or sigma may vanish


def is_past(step: int, steps: int, fraction: float) -> bool:
    """Whether `step` (0 ... steps - 1) lies in the part of the run that begins at `fraction` of the steps."""
    return step >= math.ceil(fraction * steps - 1e-9)  # 0.7 * 10 is a little more than 7 in floating point


def stage_at(step: int, steps: int, bridge_from: float) -> Stage:
    """Stage of the bridge at `step`: 2 from the fraction `bridge_from` of the steps on, 1 before."""
    return 2 if is_past(step, steps, bridge_from) else 1


def ramp_at(step: int, steps: int, begin: float, end: float) -> float:
    """0 up to the fraction `begin` of the run, 1 from `end` on, linear between; a jump where the two are the same."""
    if begin == end:
        return float(is_past(step, steps, begin))
    progress = step / max(steps - 1, 1)
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)


def t_max_at(step: int, steps: int, settings: GuidanceConfig) -> float:
    """Largest noise time at `step`: from t_max_start to t_max_end between t_max_from and t_max_until of the steps."""
    fallen = ramp_at(step, steps, settings.t_max_from, settings.t_max_until)
    return settings.t_max_start + (settings.t_max_end - settings.t_max_start) * fallen


def t_min_at(step: int, steps: int, settings: GuidanceConfig) -> float:
    """Least noise time at `step`: from t_min to t_min_end, if there is one, while the largest falls too."""
    fallen = ramp_at(step, steps, settings.t_max_from, settings.t_max_until)
    return settings.t_min + (settings.t_min_last - settings.t_min) * fallen


def size_at(step: int, steps: int, settings: RenderConfig) -> int:
    """Pixels along a side of the views at `step`: first_size up to early_until of the steps, then size.

    With grow_until the sizes between the two, each twice the last, share the steps from early_until to there evenly.
    """
    first, last = settings.first_size, settings.size
    if is_past(step, steps, settings.grow_until or settings.early_until):
        return last
    if not is_past(step, steps, settings.early_until):
        return first
    assert settings.grow_until is not None
    between = max(math.ceil(math.log2(last / first)) - 1, 1)  # 64 to 512: 128 and 256
    place = (step / steps - settings.early_until) / (settings.grow_until - settings.early_until)
    return min(first * 2 ** (1 + int(place * between + 1e-9)), last)


def rate_at(step: int, steps: int, final: float) -> float:
    """Factor on the learning rates at `step`: from 1 at the first step towards `final`, by the same share each step."""
    return final ** (step / steps)


def is_refreshed_at(step: int, steps: int, settings: OccupancyConfig) -> bool:
    """Whether the occupancy grid is looked at again before `step`: every so many steps, seldomer in the late part."""
    late = settings.late_every is not None and is_past(step, steps, settings.late_from)
    every = settings.late_every if late and settings.late_every else settings.every
    return step % every == 0


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
