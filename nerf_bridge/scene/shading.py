"""Light on the object (DreamFusion, Poole et al. 2023, sec. 3.1): albedo, lambertian, textureless."""

from __future__ import annotations

import random
from typing import Literal, get_args

import torch
from torch import Tensor

from nerf_bridge.scene.cameras import Cameras

Shading = Literal["albedo", "lambertian", "textureless"]
AMBIENT = 0.4  # share of the light that reaches every point; the rest falls in from the light's direction
LIGHT_SPREAD = 0.5  # standard deviation of the light's place around the camera, in camera distances


def shading_at(setting: Shading | Literal["mixed"], seed: int, step: int) -> Shading:
    """The shading of a step: the setting itself, or for 'mixed' one of the three, a pure function of seed and step."""
    if setting != "mixed":
        return setting
    return random.Random(f"shading {seed} {step}").choice(get_args(Shading))


def draw_light_directions(cameras: Cameras, generator: torch.Generator) -> Tensor:
    """Unit directions [b, 3] from the object to a far light near each camera, on the cameras' device."""
    noise = torch.randn(len(cameras), 3, generator=generator, device=generator.device).to(cameras.c2w.device)
    return torch.nn.functional.normalize(headlight_directions(cameras) + LIGHT_SPREAD * noise, dim=-1)


def headlight_directions(cameras: Cameras) -> Tensor:
    """Unit directions [b, 3] from the object to a light at each camera."""
    return torch.nn.functional.normalize(cameras.c2w[:, :3, 3], dim=-1)


def shade(albedo: Tensor, normals: Tensor, light_dir: Tensor, shading: Shading) -> Tensor:
    """Colour of lit points: albedo * (ambient + (1 - ambient) * max(0, n . l)), with albedo 1 for 'textureless'.

    Args:
        albedo: [n, 3] in 0..1.
        normals: [n, 3], outward, unit length.
        light_dir: [n, 3], from the point to the light, unit length.
        shading: 'albedo' returns the albedo as it is.

    Returns:
        [n, 3] in 0..1. Differentiable in albedo and normals.
    """
    if shading == "albedo":
        return albedo
    cosine = (normals * light_dir).sum(-1, keepdim=True).clamp(min=0.0)
    light = AMBIENT + (1.0 - AMBIENT) * cosine
    return light.expand_as(albedo) if shading == "textureless" else albedo * light
