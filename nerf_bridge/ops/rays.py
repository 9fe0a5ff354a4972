"""Rays through the centres of pixels: one kernel for what is a score of small operations in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel


def pixel_rays(c2w: Tensor, fovy_rad: Tensor, height: int, width: int, backend: str) -> tuple[Tensor, Tensor]:
    """The ray through the centre of each pixel of pinhole cameras with square pixels.

    Where a gradient over the cameras is wanted, plain torch does it on every backend.

    Args:
        c2w: [b, 4, 4] float32, camera to world; OpenGL cameras: x right, y up, looking along -z.
        fovy_rad: [b] float32, the field of view of the height.
        height, width: of the pictures, in pixels.
        backend: "cuda", "cpu", "torch", or a peer, whose part our CUDA kernels do.
    Returns:
        Origins and unit directions, [b * height * width, 3] each, in the order [view, row, column]; row 0 is the top.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_tensor("c2w", c2w, (None, 4, 4))
    check_float("c2w", c2w, backend)
    check_tensor("fovy_rad", fovy_rad, (c2w.shape[0],), like=c2w)
    in_torch = backend == "torch" or c2w.dtype != torch.float32
    if in_torch or c2w.requires_grad or fovy_rad.requires_grad:
        return pixel_rays_torch(c2w, fovy_rad, height, width)
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.pixel_rays(c2w, fovy_rad, height, width, backend)
    n = c2w.shape[0] * height * width
    origins, directions = c2w.new_empty((n, 3)), c2w.new_empty((n, 3))
    run_kernel(backend, "pixel_rays", c2w.contiguous(), fovy_rad.contiguous(), origins, directions, n, height, width)
    return origins, directions


def pixel_rays_torch(c2w: Tensor, fovy_rad: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The reference of `pixel_rays` in plain torch operations; any device."""
    columns = torch.arange(width, dtype=torch.float32, device=c2w.device) + (0.5 - 0.5 * width)
    rows = (0.5 * height - 0.5) - torch.arange(height, dtype=torch.float32, device=c2w.device)
    tan_half = torch.tan(0.5 * fovy_rad) / (0.5 * height)
    right, up, backward, position = c2w[:, None, None, :3, :].unbind(-1)
    across = (columns[None, None, :, None] * tan_half[:, None, None, None]) * right
    along = (rows[None, :, None, None] * tan_half[:, None, None, None]) * up
    directions = torch.nn.functional.normalize(across + along - backward, dim=-1)
    return position.expand_as(directions).reshape(-1, 3), directions.reshape(-1, 3)
