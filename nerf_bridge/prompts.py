"""The words: the prompt with the view in words, and the prompts that describe target and source of the bridge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.config import GuidanceConfig, check_prompt

VIEWS = ("front view", "side view", "back view", "overhead view")

_FACING_RAD = math.radians(30)  # front and back reach this far in azimuth
_OVERHEAD_RAD = math.radians(60)  # elevation from which the view is overhead
_BLEND_RAD = math.radians(15)  # half the width over which one view passes into the next


@dataclass(frozen=True)
class GuidanceWords:
    """The prompts of one run, each in one or in four wordings.

    `text`, `target` and `source` hold one string, or one for each of VIEWS.
    """

    text: tuple[str, ...]
    target: tuple[str, ...]
    source: tuple[str, ...]
    negative: str
    null: str = ""


def compose_words(
    prompt: str, settings: GuidanceConfig, by_view: bool, view_prompts: Sequence[str] | None = None
) -> GuidanceWords:
    """All prompts that guidance needs for `prompt`.

    Args:
        prompt: what to make.
        settings: gives target, source and negative words.
        by_view: whether to word each prompt for the front, the side, the back and from overhead.
        view_prompts: the prompt to use for each of VIEWS; None: `prompt` for all.

    Raises:
        ValueError: the prompt is blank or too long.
    """
    check_prompt(prompt)
    own = view_prompts or (prompt,) * len(VIEWS)
    by_views = tuple(add_words(words, view) for words, view in zip(own, VIEWS, strict=True))
    text = by_views if by_view else (add_words(prompt, ""),)
    return GuidanceWords(
        text=text,
        target=tuple(add_words(line, settings.target_words) for line in text),
        source=tuple(add_words(line, settings.source_words) for line in text),
        negative=settings.negative_prompt.strip(),
    )


def add_words(prompt: str, words: str) -> str:
    """`prompt` and `words` with a comma between; the prompt alone when there are no words."""
    parts = (prompt.strip().rstrip(" ,.;"), words.strip())
    return ", ".join(part for part in parts if part)


def use_view_words(choice: str, knows_cameras: bool) -> bool:
    """Whether the view is said in words: `choice` is "on", "off" or "auto" (only where the prior knows no camera)."""
    return choice == "on" or (choice == "auto" and not knows_cameras)


def view_weights(azimuth_rad: Tensor, elevation_rad: Tensor) -> Tensor:
    """How much of each of VIEWS a camera sees: [b, 4], summing to one, smooth in both angles.

    Front and back are worth one half at 30 degrees of azimuth from their middle, overhead at 60 degrees of elevation;
    around these edges one view passes into the next over 30 degrees (smoothstep).

    Args:
        azimuth_rad, elevation_rad: [b]; azimuth 0 is the front.
    """
    from_front = (torch.remainder(azimuth_rad + math.pi, 2 * math.pi) - math.pi).abs()
    front = 1 - _smoothstep(from_front, _FACING_RAD)
    back = _smoothstep(from_front, math.pi - _FACING_RAD)
    overhead = _smoothstep(elevation_rad, _OVERHEAD_RAD)
    around = torch.stack([front, 1 - front - back, back], dim=1) * (1 - overhead)[:, None]
    return torch.cat([around, overhead[:, None]], dim=1)


def negative_view_weights(views: Tensor) -> Tensor:
    """How strongly the front and the side view are pushed away from at each camera: [b, 2], at least 0.

    The decays of Perp-Neg's text-to-3D (Armandpour et al. 2023, section 4.2), over the share r of the view that is
    nearer to the front: between front and side, the front by 4 exp(-r / 2) - 2.426 and the side by
    4 exp(-(1 - r) / 2) - 2.426; between side and back, the front by exp(-r / 2) + 0.967 and the side by
    exp(-r / 2) - 0.606. From overhead there is nothing to push away from.

    Args:
        views: the shares of view_weights, [b, 4].
    """
    front, side, back, overhead = views.unbind(1)
    around = 1 - overhead
    facing = back <= 0
    nearer = torch.where(facing, front, side) / around.clamp(min=1e-6)
    from_front = torch.where(facing, 4 * torch.exp(-nearer / 2) - 2.426, torch.exp(-nearer / 2) + 0.967)
    from_side = torch.where(facing, 4 * torch.exp((nearer - 1) / 2) - 2.426, torch.exp(-nearer / 2) - 0.606)
    return torch.stack([from_front, from_side], 1).clamp(min=0) * around[:, None]


def _smoothstep(angle_rad: Tensor, middle_rad: float) -> Tensor:
    u = ((angle_rad - middle_rad + _BLEND_RAD) / (2 * _BLEND_RAD)).clamp(0, 1)
    return u * u * (3 - 2 * u)
