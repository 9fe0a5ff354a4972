"""Where a command runs."""

from __future__ import annotations

import torch

from nerf_bridge.errors import UserError


def resolve_device(requested: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises UserError when CUDA is asked for and absent."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device: cuda was asked for, but torch sees no GPU; use --device cpu, or see `nerf-bridge doctor`"
        )
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(requested)
