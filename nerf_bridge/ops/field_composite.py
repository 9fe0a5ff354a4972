"""The field's raw outputs to pictures: activations and volume rendering in one kernel.

What stands between the network and the image, blob, exp, sigmoid, weights, sums, is one pass over the samples forward
and one backward, so that no intermediate value is written to memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_float, check_packed_info, check_tensor, run_kernel
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.hash_encoding import aligned
from nerf_bridge.ops.march import Samples

RAW = 4
EARLY_STOP = 1e-4  # least light that a ray goes on with
MIN_OPACITY = 1e-3  # keeps the variance of the depth, and its derivative, finite where nothing is seen
MAX_EXPONENT = 15.0  # trunc_exp: e^15 = 3.3e6 is opaque at any step size, and its gradient still fits float32


class Pixels(NamedTuple):
    """What rays see: color [n_rays, 3]; opacity; depth, sum of weight * t; thickness, the depth's variance along the
    ray, sum of weight * (t - mean)^2; each [n_rays]."""

    color: Tensor
    opacity: Tensor
    depth: Tensor
    thickness: Tensor


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
) -> Pixels:
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
        The pixels.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_tensor("raw", raw, (samples.n, RAW))
    check_float("raw", raw, backend)
    check_packed_info(samples.packed_info, raw.device)
    n_rays = samples.packed_info.shape[0]
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

        return Pixels(*KERNELS.field_composite(raw, behind, *packed, *settings)[:4])
    return Pixels(*_FieldComposite.apply(raw, behind, *packed, *settings))


def field_composite_torch(
    raw: Tensor,
    samples: Samples,
    middles: Tensor,
    behind: Tensor,
    activation: DensityActivation,
    backend: str = "torch",
) -> Pixels:
    """The reference of `field_composite` in plain torch operations."""
    of_ray = middles[samples.ray_indices] if len(middles) else 0.0  # without rays there may be room for samples
    u = (samples.t_mids - of_ray)[:, None]
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


def pixels_of(sums: Tensor, opacity: Tensor, middles: Tensor, behind: Tensor) -> Pixels:
    """What `field_composite` returns, from sums [n_rays, c]: first the colour, last u and u^2."""
    first, second = sums[:, -2], sums[:, -1]
    color = sums[:, :3] + (1.0 - opacity)[:, None] * behind
    depth = first + middles * opacity
    thickness = second - first * first / opacity.clamp(min=MIN_OPACITY)
    return Pixels(color, opacity, depth, thickness)


class _FieldComposite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        made = field_composite_fwd(*inputs)
        ctx.save_for_backward(*inputs[:7], made[1], *made[4:])
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[7:]
        return made[:4]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grad_raw = gradient_raw(*saved, *grads, *ctx.settings)
        grad_behind = gradient_behind(saved[7], grads[0]) if ctx.needs_input_grad[1] else None
        return (grad_raw, grad_behind, *[None] * 9)


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
) -> tuple[Tensor, ...]:
    """The four parts of the pixels, and for the backward pass first moments, samples seen [n_rays] and weights [n]."""
    rest = (of.contiguous() for of in (points, t_starts, t_ends, packed_info, middles, behind))
    packed = (aligned(raw), *rest)
    n_rays, n = behind.shape[0], raw.shape[0]
    of_rays = [raw.new_empty(shape) for shape in ((n_rays, 3), n_rays, n_rays, n_rays, n_rays)]
    made = (*of_rays, packed_info.new_empty(n_rays), raw.new_zeros(n))
    run_kernel(backend, "field_composite_fwd", *packed, *made, n_rays, n, blob_scale, blob_radius, is_exp)
    return made


def gradient_raw(
    raw: Tensor,
    behind: Tensor,
    points: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    packed_info: Tensor,
    middles: Tensor,
    opacity: Tensor,
    first_moments: Tensor,
    seen: Tensor,
    weights: Tensor,
    grad_color: Tensor | None,
    grad_opacity: Tensor | None,
    grad_depth: Tensor | None,
    grad_thickness: Tensor | None,
    blob_scale: float,
    blob_radius: float,
    is_exp: bool,
    backend: str,
) -> Tensor:
    """The gradient over `raw` from those over the pixels; one that is None is zero."""
    rest = (of.contiguous() for of in (points, t_starts, t_ends, packed_info, middles, behind))
    packed = (aligned(raw), *rest)
    given = (grad_color, grad_opacity, grad_depth, grad_thickness)
    over = [None if grad is None else grad.contiguous() for grad in given]
    made, grad_raw = (opacity, first_moments, seen, weights), torch.zeros_like(packed[0])
    sizes = (behind.shape[0], raw.shape[0])
    run_kernel(backend, "field_composite_bwd", *packed, *made, *over, grad_raw, *sizes, blob_scale, blob_radius, is_exp)
    return grad_raw


def gradient_behind(opacity: Tensor, grad_color: Tensor | None) -> Tensor | None:
    """The gradient [n_rays, 3] over the background, of which a pixel shows what the opacity leaves."""
    return None if grad_color is None else (1.0 - opacity)[:, None] * grad_color


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
