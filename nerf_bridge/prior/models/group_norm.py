"""Group norm with SiLU (Wu and He 2018; Hendrycks and Gimpel 2016) of frozen networks, and its gradient to the input.

Activations are channels-last, [b, c, h, w]. What a convolution would add as its bias comes here as `bias` [c], so that
no pass over the memory is spent on it. Sums and statistics are float32, or float64 where the activations are. On a GPU
with Triton own kernels do the work (`group_norm_triton`), elsewhere the same maths in plain torch operations.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.models.norm import Norm

_KERNELS_WANTED = ContextVar("_KERNELS_WANTED", default=True)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Plain torch operations on a GPU too: for what is done once, for a dtype's kernels take seconds to compile."""
    token = _KERNELS_WANTED.set(False)
    try:
        yield
    finally:
        _KERNELS_WANTED.reset(token)


def moments(x: Tensor, bias: Tensor, groups: int, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`x` + `skip` + `bias` where there is a skip, else `x` as it is; and mean and variance of the sum with the bias.

    Args:
        x: [b, c, h, w]; skip: the same, or None.
        bias: [c], float32.

    Returns:
        the tensor; stats [b, groups, 2] in float32 (of the rounded sum, where there is a skip).
    """
    if _kernels_fit(x, groups):
        from nerf_bridge.prior.models import group_norm_triton  # Triton comes with torch for CUDA only

        return group_norm_triton.moments(x, bias, groups, skip)
    wide = x.to(bias.dtype) + bias[:, None, None]
    if skip is not None:
        x = (wide + skip).to(x.dtype)
        wide = x.to(bias.dtype)
    variance, mean = torch.var_mean(_by_group(wide, groups), dim=(2, 3), correction=0)
    return x, torch.stack([mean, variance], -1)


def normalise(x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool) -> Tensor:
    """gain * (x + bias - mean) / sd + offset, through SiLU where `silu`, times amplitude; dtype and layout of x."""
    if _kernels_fit(x, norm.groups):
        from nerf_bridge.prior.models import group_norm_triton

        return group_norm_triton.normalise(x, bias, stats, norm, silu)
    y = _normal(x, bias, stats, norm.eps)[0] * norm.gain[:, None, None] + norm.offset[:, None, None]
    return _laid(norm.amplitude * (functional.silu(y) if silu else y), x)


def backward(
    grad: Tensor, x: Tensor, bias: Tensor, stats: Tensor, norm: Norm, silu: bool, skip: Tensor | None = None
) -> Tensor:
    """Gradient with respect to x of `normalise` after `moments`, plus `skip` where there is one; [b, c, h, w].

    With n = (x + bias - mean) / sd and g the gradient of n: (g - mean(g) - n * mean(g * n)) / sd over each group.
    """
    if _kernels_fit(x, norm.groups):
        from nerf_bridge.prior.models import group_norm_triton

        return group_norm_triton.backward(grad, x, bias, stats, norm, silu, skip)
    normal, inverse = _normal(x, bias, stats, norm.eps)
    gain = norm.gain[:, None, None]
    g = grad.to(bias.dtype) * (norm.amplitude * gain)
    if silu:
        y = normal * gain + norm.offset[:, None, None]
        gate = torch.sigmoid(y)
        g = g * gate * (1 + y * (1 - gate))
    plain, along = (
        _by_group(of, norm.groups).mean((2, 3)).repeat_interleave(x.shape[1] // norm.groups, 1)[:, :, None, None]
        for of in (g, g * normal)
    )
    result = (g - plain - normal * along) * inverse
    return _laid(result if skip is None else result + skip, x)


def _normal(x: Tensor, bias: Tensor, stats: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised values [b, c, h, w], and 1 / sd of their channels [b, c, 1, 1]."""
    mean, variance = stats.repeat_interleave(x.shape[1] // stats.shape[1], 1)[..., None, None].unbind(2)
    inverse = torch.rsqrt(variance + eps)
    return (x.to(bias.dtype) + bias[:, None, None] - mean) * inverse, inverse


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[b, c, h, w] as [b, groups, c / groups, h * w]."""
    return x.unflatten(1, (groups, -1)).flatten(3)


def _laid(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype, memory_format=torch.channels_last)


def _kernels_fit(x: Tensor, groups: int) -> bool:
    """Whether the kernels take `x`: channels are powers of two, as in every published autoencoder, and their offsets in
    an image 32-bit."""
    assert not x.is_cuda or x.is_contiguous(memory_format=torch.channels_last), "activations are channels-last"
    powers = all(n & (n - 1) == 0 for n in (x.shape[1], groups))
    numbers = x.shape[1] * x.shape[2] * x.shape[3]
    fits = x.is_cuda and powers and x.shape[1] <= 4096 and numbers < 2**31 and x.dtype != torch.float64
    return fits and _KERNELS_WANTED.get() and _triton_works()


@functools.cache
def _triton_works() -> bool:
    """Whether it is there, and what it compiles its launchers with: without a C compiler it ends with an error."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)
