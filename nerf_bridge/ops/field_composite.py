"""The field's raw outputs to pictures: activations and volume rendering in one kernel.

What stands between the network and the image, blob, exp, sigmoid, weights, sums, is one pass over the samples forward
and one backward, so that no intermediate value is written to memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.march import Samples

RAW = 4
EARLY_STOP = 1e-4  # least light that a ray goes on with
MIN_OPACITY = 1e-3  # keeps the variance of the depth, and its derivative, finite where nothing is seen
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


def field_composite(
    raw: Tensor, samples: Samples, middles: Tensor, behind: Tensor, activation: DensityActivation, backend: str
) -> Tensor:
    """Composite the field's raw outputs along their rays, in front of a background.

    Differentiable once, in `raw` and `behind`. A ray stops where less than EARLY_STOP of the light is left; samples
    beyond have neither weight nor gradient.

    Args:
        raw: [n, 4] density and three albedo logits before their activations. float32, or float64 on cpu and torch.
        samples: the n samples.
        middles: [n_rays] distance along each ray from which thickness is counted: near the object, little cancels.
        behind: [n_rays, 3] colour of the background.
        activation: of the density.
        backend: "cuda", "cpu" or "torch".
    Returns:
        [n_rays, 6]: color [3]; opacity; depth, sum of weight * t; thickness, the depth's variance along the ray, sum of
        weight * (t - mean)^2.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    n_rays = samples.packed_info.shape[0]
    check_tensor("raw", raw, (samples.n, RAW))
    check_float("raw", raw, backend)
    check_tensor("middles", middles, (n_rays,), like=raw)
    check_tensor("behind", behind, (n_rays, 3), like=raw)
    for name, tensor in (("t_starts", samples.t_starts), ("t_ends", samples.t_ends)):
        check_tensor(name, tensor, (samples.n,), like=raw)
    check_tensor("points", samples.points, (samples.n, 3), like=raw)
    if backend in ("torch", "nerfacc"):
        return field_composite_torch(raw, samples, middles, behind, activation, backend)
    packed = (samples.points, samples.t_starts, samples.t_ends, samples.packed_info, middles)
    settings = (float(activation.blob_scale), float(activation.blob_radius), activation.kind == "trunc_exp", backend)
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.field_composite(raw, behind, *packed, *settings)[0]
    return _FieldComposite.apply(raw, behind, *packed, *settings)


def field_composite_torch(
    raw: Tensor,
    samples: Samples,
    middles: Tensor,
    behind: Tensor,
    activation: DensityActivation,
    backend: str = "torch",
) -> Tensor:
    """The reference of `field_composite` in plain torch operations."""
    u = (samples.t_mids - middles[samples.ray_indices])[:, None]
    features = torch.cat([torch.sigmoid(raw[:, 1:]), u, u * u], dim=1)
    sigmas = activation(raw[:, 0], samples.points)
    lit = ~(transmittance_before(sigmas.detach(), samples) < EARLY_STOP)  # what is no number stays
    seen = (torch.where(lit, sigmas, 0.0), torch.where(lit[:, None], features, 0.0))
    sums, opacity, _, _ = composite(*seen, samples.t_starts, samples.t_ends, samples.packed_info, backend)
    return pixels_of(sums, opacity, middles, behind)


def transmittance_before(sigmas: Tensor, samples: Samples) -> Tensor:
    """The light [n] that reaches the start of each sample, in plain torch operations.

    Each ray is a row of [n_rays, longest], so that what is no number in one ray stays there.
    """
    start, count = samples.packed_info.unbind(1)
    column = torch.arange(int(count.max()) if len(count) else 0, device=sigmas.device)
    inside = column < count[:, None]
    place = (start[:, None] + column)[inside]
    rows = sigmas.new_zeros(inside.shape)
    rows[inside] = (sigmas * (samples.t_ends - samples.t_starts))[place]
    before = torch.cat([rows.new_zeros(len(rows), 1), rows.cumsum(1)[:, :-1]], dim=1)[:, : rows.shape[1]]
    return torch.ones_like(sigmas).index_put((place,), torch.exp(-before)[inside])


def pixels_of(sums: Tensor, opacity: Tensor, middles: Tensor, behind: Tensor) -> Tensor:
    """What `field_composite` returns, from sums [n_rays, c]: first the colour, last u and u^2."""
    first, second = sums[:, -2], sums[:, -1]
    color = sums[:, :3] + (1.0 - opacity)[:, None] * behind
    depth = first + middles * opacity
    thickness = second - first * first / opacity.clamp(min=MIN_OPACITY)
    return torch.cat([color, torch.stack([opacity, depth, thickness], dim=1)], dim=1)


class _FieldComposite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        made = field_composite_fwd(*inputs)
        ctx.save_for_backward(*inputs[:7], *made)
        ctx.settings = inputs[7:]
        return made[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, grads[0], *ctx.settings)
        return (*field_composite_bwd(*arguments), *[None] * 9)


def field_composite_fwd(
    raw: Tensor,
    behind: Tensor,
    points: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    middles: Tensor,
    blob_scale: float,
    blob_radius: float,
    is_exp: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pixels [n_rays, 6], and for the backward pass first moments, samples seen [n_rays] and weights [n]."""
    packed = [of.contiguous() for of in (raw, points, t_starts, t_ends, packed_info, middles, behind)]
    n_rays, n = behind.shape[0], raw.shape[0]
    pixels, first_moments = raw.new_empty(n_rays, 6), raw.new_empty(n_rays)
    seen, weights = packed[4].new_empty(n_rays), raw.new_zeros(n)
    made = (pixels, first_moments, seen, weights)
    run_kernel(backend, "field_composite_fwd", *packed, *made, n_rays, n, blob_scale, blob_radius, is_exp)
    return made


def field_composite_bwd(
    raw: Tensor,
    behind: Tensor,
    points: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    middles: Tensor,
    pixels: Tensor,
    first_moments: Tensor,
    seen: Tensor,
    weights: Tensor,
    grad_pixels: Tensor,
    blob_scale: float,
    blob_radius: float,
    is_exp: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients over `raw` and `behind`."""
    packed = [of.contiguous() for of in (raw, points, t_starts, t_ends, packed_info, middles, behind)]
    made, over, grad_raw = (pixels, first_moments, seen, weights), grad_pixels.contiguous(), torch.zeros_like(packed[0])
    sizes = (behind.shape[0], raw.shape[0])
    run_kernel(backend, "field_composite_bwd", *packed, *made, over, grad_raw, *sizes, blob_scale, blob_radius, is_exp)
    return grad_raw, (1.0 - pixels[:, 3:4]) * over[:, :3]


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
