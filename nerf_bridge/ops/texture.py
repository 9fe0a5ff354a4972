"""Bilinear look-up in a texture, differentiable in the texture: what is gathered forward is scattered backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerf_bridge.ops.backend import check_tensor


def look_up(image: Tensor, uv: Tensor) -> Tensor:
    """Colours of a texture at some points, blended from the four texels around each.

    Differentiable once in `image`, not in `uv`. On CUDA the gradient's sums come in any order, so that its last bits
    differ from run to run, unless torch.use_deterministic_algorithms is on.

    Args:
        image: [h, w, c], row 0 at v = 1; texel (row, column) has its centre at u = (column + 0.5) / w,
            v = 1 - (row + 0.5) / h.
        uv: [n, 2] any values; beyond the outer texels' centres their colours go on.

    Returns:
        [n, c].

    Raises:
        ValueError: wrong shape.
    """
    check_tensor("image", image, (None, None, None))
    check_tensor("uv", uv, (None, 2))
    result: Tensor = _LookUp.apply(image, uv)
    return result


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, uv: Tensor) -> Tensor:
        index, weight = _taps(uv.detach(), image.shape[0], image.shape[1])
        ctx.save_for_backward(index, weight)
        ctx.shape = image.shape
        texels = image.reshape(-1, image.shape[2])
        out = texels.new_zeros((len(uv), image.shape[2]))
        for tap in range(4):
            out.addcmul_(texels[index[tap]], weight[tap, :, None].to(out))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        index, weight = ctx.saved_tensors
        height, width, channels = ctx.shape
        grad_image = grad.new_zeros((height * width, channels))
        for tap in range(4):
            grad_image.index_add_(0, index[tap], grad * weight[tap, :, None].to(grad))
        return grad_image.reshape(ctx.shape), None


def _taps(uv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat texels [4, n] around each point and their weights [4, n], which sum to 1."""
    x = (uv[:, 0] * width - 0.5).clamp(0.0, width - 1.0)
    y = ((1.0 - uv[:, 1]) * height - 0.5).clamp(0.0, height - 1.0)
    left, top = x.long(), y.long()  # they are not negative
    right, bottom = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
    across, down = x - left, y - top
    index = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right])
    weight = torch.stack([(1 - across) * (1 - down), across * (1 - down), (1 - across) * down, across * down])
    return index, weight
