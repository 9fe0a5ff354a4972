"""The field's raw outputs to pictures: activations and volume rendering in one kernel.

What stands between the network and the image, blob, exp, sigmoid, weights, sums, is one pass over the samples forward and
one backward, so that no intermediate value is written to memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel
from nerf_bridge.ops.composite import composite_torch
from nerf_bridge.ops.march import Samples

RAW = 4
MAX_EXPONENT = 15.0  # trunc_exp: e^15 = 3.3e6 is opaque at any step size, and its gradient still fits float32


@dataclass(frozen=True)
class DensityActivation:
    """sigma = activation(raw + blob_scale (1 - |x| / blob_radius)) (Magic3D, Lin et al. 2023, section 3.2)."""

    kind: Literal["trunc_exp", "softplus"]
    blob_scale: float
    blob_radius: float

    def __call__(self, raw: Tensor, points: Tensor) -> Tensor:
        """sigma [n] from the raw output [n] at points [n, 3] of the box."""
        shifted = raw + self.blob_scale * (1.0 - points.norm(dim=-1) / self.blob_radius)
        return trunc_exp(shifted) if self.kind == "trunc_exp" else torch.nn.functional.softplus(shifted)


@dataclass(frozen=True)
class RaySums:
    """What n_rays rays see, each summed with the weights of its samples.

    Attributes:
        color: [n_rays, 3] albedo, not divided by the opacity.
        opacity: [n_rays] in [0, 1].
        first, second: [n_rays] of u and of u^2, where u is the distance of a sample's middle from `middles`.
    """

    color: Tensor
    opacity: Tensor
    first: Tensor
    second: Tensor


def field_composite(
    raw: Tensor, samples: Samples, middles: Tensor, activation: DensityActivation, backend: str
) -> RaySums:
    """Composite the field's raw outputs along their rays. Differentiable once, in `raw`.

    Args:
        raw: [n, 4] density and three albedo logits before their activations. float32, or float64 on cpu and torch.
        samples: the n samples.
        middles: [n_rays] distance along each ray from which the moments are counted: near the object, little cancels.
        activation: of the density.
        backend: "cuda", "cpu" or "torch".
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_tensor("raw", raw, (samples.n, RAW))
    check_float("raw", raw, backend)
    check_tensor("middles", middles, (samples.packed_info.shape[0],), like=raw)
    check_tensor("points", samples.points, (samples.n, 3), like=raw)
    if backend == "torch":
        return field_composite_torch(raw, samples, middles, activation)
    packed = (samples.points, samples.t_starts, samples.t_ends, samples.packed_info, middles)
    out, opacity = _FieldComposite.apply(raw, *packed, activation, backend)
    return RaySums(out[:, :3], opacity, out[:, 3], out[:, 4])


def field_composite_torch(raw: Tensor, samples: Samples, middles: Tensor, activation: DensityActivation) -> RaySums:
    """The reference of `field_composite` in plain torch operations."""
    u = (samples.t_mids - middles[samples.ray_indices])[:, None]
    features = torch.cat([torch.sigmoid(raw[:, 1:]), u, u * u], dim=1)
    sigmas = activation(raw[:, 0], samples.points)
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    out, opacity, _, _ = composite_torch(sigmas, features, *packed)
    return RaySums(out[:, :3], opacity, out[:, 3], out[:, 4])


class _FieldComposite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, activation, backend = inputs
        raw, points, t_starts, t_ends, packed_info, middles = (tensor.contiguous() for tensor in tensors)
        n_rays, n = packed_info.shape[0], raw.shape[0]
        out, opacity = raw.new_empty(n_rays, 5), raw.new_empty(n_rays)
        weights = torch.zeros_like(t_starts)
        packed = (raw, points, t_starts, t_ends, packed_info, middles)
        settings = (float(activation.blob_scale), float(activation.blob_radius), activation.kind == "trunc_exp")
        run_kernel(backend, "field_composite_fwd", *packed, out, opacity, weights, n_rays, n, *settings)
        ctx.save_for_backward(*packed, weights, opacity)
        ctx.settings, ctx.backend = settings, backend
        return out, opacity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raw, *_, packed_info, _, _, _ = saved = ctx.saved_tensors
        grad_raw = torch.zeros_like(raw)
        over = (grad.contiguous() for grad in grads)
        sizes = (packed_info.shape[0], raw.shape[0])
        run_kernel(ctx.backend, "field_composite_bwd", *saved, *over, grad_raw, *sizes, *ctx.settings)
        return grad_raw, None, None, None, None, None, None, None


def trunc_exp(x: Tensor) -> Tensor:
    """exp(x), cut off at x = 15, whose gradient never vanishes above the cut nor overflows (as in instant-ngp).

    Differentiable once; the derivative is exp(clamp(x, -15, 15)).
    """
    return _TruncExp.apply(x)


class _TruncExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x.clamp(max=MAX_EXPONENT))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(x.clamp(-MAX_EXPONENT, MAX_EXPONENT))
