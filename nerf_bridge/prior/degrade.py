"""Mild flaws for training images, so that the words of the bridge's source prompt mean something to the prior.

Each takes images [b, 3, h, w] in 0..1 and a strength [b, 1, 1, 1] in 0..1, and returns images of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

DISTILLED_SHARE = 0.45  # of the flawed images, besides those that the lot over all flaws gives it


def distilled(images: Tensor, strength: Tensor) -> Tensor:
    """As a render half-way through a distillation: thin parts faint, edges soft, colours too strong."""
    b, c, height, width = images.shape
    around = functional.unfold(functional.pad(images, (2, 2, 2, 2), mode="replicate"), 5)
    without_thin = around.view(b, c, 25, height, width).median(2).values
    faint = torch.lerp(images, without_thin, 0.4 + 0.6 * strength)
    soft = functional.avg_pool2d(functional.pad(faint, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    grey = soft.mean(1, keepdim=True)
    return (grey + (soft - grey) * (1.1 + 0.5 * strength)).clamp(0, 1)


def blur(images: Tensor, strength: Tensor) -> Tensor:
    smooth = functional.avg_pool2d(functional.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return torch.lerp(images, smooth, 0.5 + 0.5 * strength)


def oversaturate(images: Tensor, strength: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * (1.4 + 0.8 * strength)).clamp(0, 1)


def pixelate(images: Tensor, strength: Tensor) -> Tensor:
    coarse = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2.0, mode="nearest")
    coarser = functional.interpolate(functional.avg_pool2d(images, 4), scale_factor=4.0, mode="nearest")
    return torch.where(strength > 0.5, coarser, coarse)


def posterise(images: Tensor, strength: Tensor) -> Tensor:
    levels = 3 + torch.round(2 * (1 - strength))
    return torch.round(images * levels) / levels


def fog(images: Tensor, strength: Tensor) -> Tensor:
    return torch.lerp(images, torch.full_like(images, 0.8), 0.25 + 0.3 * strength)


def noise(images: Tensor, strength: Tensor) -> Tensor:
    return (images + torch.randn_like(images) * (0.04 + 0.08 * strength)).clamp(0, 1)


def low_contrast(images: Tensor, strength: Tensor) -> Tensor:
    return torch.lerp(images, images.mean((1, 2, 3), keepdim=True).expand_as(images), 0.3 + 0.3 * strength)


def dark(images: Tensor, strength: Tensor) -> Tensor:
    return images * (0.65 - 0.25 * strength)


FLAWS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distilled": distilled,
    "blur": blur,
    "oversaturate": oversaturate,
    "pixelate": pixelate,
    "posterise": posterise,
    "fog": fog,
    "noise": noise,
    "low_contrast": low_contrast,
    "dark": dark,
}


def draw_flaws(n: int, device: torch.device) -> Tensor:
    """Indices [n] into FLAWS by lot: half of them the first, which is what the bridge starts from."""
    return torch.randint(len(FLAWS), (n,), device=device) * (torch.rand(n, device=device) > DISTILLED_SHARE)


def degrade(images: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """Images [b, 3, h, w] each with the flaw of its index `kind` [b] in the order of FLAWS, at its `strength` [b]."""
    strength = strength.to(images.dtype).view(-1, 1, 1, 1)
    flawed = torch.stack([flaw(images, strength) for flaw in FLAWS.values()])
    return flawed[kind, torch.arange(len(images), device=images.device)]
