"""What the field is asked for beside the guidance: emptiness, decided opacity, thin surfaces, smooth density."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf_bridge.config import GenerateConfig
from nerf_bridge.guidance import ramp_at, step_generator
from nerf_bridge.render import Rendering
from nerf_bridge.scene.scene import Scene

REFERENCE_PIXELS = 64 * 64


def regularisers(scene: Scene, rendering: Rendering, config: GenerateConfig, step: int) -> Tensor:
    """Sparsity, opacity entropy and thickness of the surfaces (z-variance, Zhu et al. 2023, HiFA), the last two ramped
    up, by default over the second half of the run: earlier they would freeze or starve thin parts.

    Summed over the pixels of a view and averaged over the views, as the guidance is; a view counts as one of 64 x 64
    pixels whatever its size, so that the weights mean the same when the size changes.
    """
    settings = config.optim
    ramp = ramp_at(step, config.steps, settings.ramp_from, settings.ramp_until)
    opacity = rendering.opacity.clamp(1e-4, 1 - 1e-4)
    entropy = -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log())
    a_pixel = settings.weight_opacity * opacity
    a_pixel = a_pixel + ramp * (settings.weight_entropy * entropy + settings.weight_thickness * rendering.thickness)
    total = a_pixel.sum() * (REFERENCE_PIXELS / opacity.numel())
    if settings.weight_smooth:
        total = total + settings.weight_smooth * roughness(scene, config, step)
    return total


def roughness(scene: Scene, config: GenerateConfig, step: int, n_points: int = 8192) -> Tensor:
    """Mean change of the opacity of a marching step between points of the box and random neighbours a step away."""
    draws = torch.rand(2, n_points, 3, generator=step_generator(config.seed, step, "smooth")).to(scene.device)
    points = 2 * draws[0] - 1
    neighbours = (points + (2 * draws[1] - 1) * scene.step_size).clamp(-1, 1)
    opacity = 1 - torch.exp(-scene.field.density(torch.cat([points, neighbours])) * scene.step_size)
    here, there = opacity.chunk(2)
    return (here - there).abs().mean()
