"""Volume rendering of packed samples (Max 1995; Mildenhall et al. 2020, equation 3).

alpha_i = 1 - exp(-sigma_i dt_i), T_i = prod_{j<i} (1 - alpha_j), w_i = T_i alpha_i; a ray's features, opacity and depth
are the sums of w_i times the sample's features, 1 and its middle distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nerf_bridge.ops import peers
from nerf_bridge.ops.backend import check_float, check_packed_info, check_tensor, run_kernel

MAX_CHANNELS = 8


def composite(
    sigmas: torch.Tensor,
    features: torch.Tensor,
    t_starts: torch.Tensor,
    t_ends: torch.Tensor,
    packed_info: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum samples along their rays, front to back.

    Differentiable once in sigmas and features, through every output, the weights included; not in t_starts and t_ends.
    One thread (CPU) or warp (CUDA) walks one ray: deterministic, no atomics.

    Args:
        sigmas: [n] densities, at least 0. float32, or float64 on the backends cpu and torch.
        features: [n, c] of each sample, c up to 8.
        t_starts, t_ends: [n] ends of the samples' intervals.
        packed_info: [n_rays, 2] int64: first sample and number of samples of each ray; rays do not overlap.
        backend: "cuda", "cpu", "torch" or "nerfacc".
    Returns:
        features [n_rays, c]; opacity [n_rays] in [0, 1]; depth [n_rays], the expected distance sum_i w_i mid_i, not
        divided by the opacity; weights [n].
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    _check(sigmas, features, t_starts, t_ends, packed_info, backend)
    if backend == "nerfacc":
        return peers.composite(sigmas, features, t_starts.detach(), t_ends.detach(), packed_info)
    if backend == "torch":
        return composite_torch(sigmas, features, t_starts, t_ends, packed_info)
    samples = [tensor.contiguous() for tensor in (sigmas, features, t_starts.detach(), t_ends.detach(), packed_info)]
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.composite(*samples, backend)
    return _Composite.apply(*samples, backend)


def composite_torch(
    sigmas: torch.Tensor,
    features: torch.Tensor,
    t_starts: torch.Tensor,
    t_ends: torch.Tensor,
    packed_info: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The reference of `composite` in plain torch operations; any device, any float dtype.

    Each ray is a row of [n_rays, longest], so that the optical thickness of one ray never mixes with another's.
    """
    n_rays = packed_info.shape[0]
    longest = int(packed_info[:, 1].max()) if n_rays else 0
    column = torch.arange(longest, device=sigmas.device)
    inside = column < packed_info[:, 1:]
    place = (packed_info[:, :1] + column)[inside]
    thickness = sigmas.new_zeros(n_rays, longest)
    thickness[inside] = (sigmas * (t_ends - t_starts).detach())[place]
    before = torch.cat([sigmas.new_zeros(n_rays, 1), thickness.cumsum(1)], dim=1)[:, :-1] if longest else thickness
    rows = torch.exp(-before) * -torch.expm1(-thickness)
    weights = torch.zeros_like(sigmas).index_put((place,), rows[inside])
    ray_indices = torch.arange(n_rays, device=sigmas.device)[:, None].expand(-1, longest)[inside]
    ray_weights = weights[place]
    mids = ((t_starts + t_ends) * 0.5).detach()
    out = sigmas.new_zeros(n_rays, features.shape[1]).index_add(0, ray_indices, ray_weights[:, None] * features[place])
    opacity = sigmas.new_zeros(n_rays).index_add(0, ray_indices, ray_weights)
    depth = sigmas.new_zeros(n_rays).index_add(0, ray_indices, ray_weights * mids[place])
    return out, opacity, depth, weights


class _Composite(torch.autograd.Function):
    """The kernels of `composite`."""

    @staticmethod
    def forward(
        ctx: Any,
        sigmas: torch.Tensor,
        features: torch.Tensor,
        t_starts: torch.Tensor,
        t_ends: torch.Tensor,
        packed_info: torch.Tensor,
        backend: str,
    ) -> tuple[torch.Tensor, ...]:
        outputs = composite_fwd(sigmas, features, t_starts, t_ends, packed_info, backend)
        ctx.save_for_backward(features, t_starts, t_ends, packed_info, outputs[3], outputs[1])
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, *grads, ctx.backend)
        return (*composite_bwd(*arguments), None, None, None, None)


def composite_fwd(
    sigmas: torch.Tensor,
    features: torch.Tensor,
    t_starts: torch.Tensor,
    t_ends: torch.Tensor,
    packed_info: torch.Tensor,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `composite` returns, through the kernel, of contiguous tensors."""
    n_rays, (n, c) = packed_info.shape[0], features.shape
    out, opacity, depth = sigmas.new_zeros(n_rays, c), sigmas.new_zeros(n_rays), sigmas.new_zeros(n_rays)
    weights = torch.zeros_like(sigmas)
    inputs = (sigmas, features, t_starts, t_ends, packed_info)
    run_kernel(backend, "composite_fwd", *inputs, out, opacity, depth, weights, n_rays, n, c)
    return out, opacity, depth, weights


def composite_bwd(
    features: torch.Tensor,
    t_starts: torch.Tensor,
    t_ends: torch.Tensor,
    packed_info: torch.Tensor,
    weights: torch.Tensor,
    opacity: torch.Tensor,
    grad_features_out: torch.Tensor | None,
    grad_opacity: torch.Tensor | None,
    grad_depth: torch.Tensor | None,
    grad_weights: torch.Tensor | None,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients over sigmas and features from those over the outputs; one that is None is zero."""
    n_rays, (n, c) = packed_info.shape[0], features.shape
    grad_sigmas, grad_features = torch.zeros_like(weights), torch.zeros_like(features)
    given = ((grad_features_out, (n_rays, c)), (grad_opacity, (n_rays,)), (grad_depth, (n_rays,)))
    over_rays = [features.new_zeros(shape) if grad is None else grad.contiguous() for grad, shape in given]
    over_samples = None if grad_weights is None else grad_weights.contiguous()
    saved = (features, t_starts, t_ends, packed_info, weights, opacity)
    sums = (grad_sigmas, grad_features)
    run_kernel(backend, "composite_bwd", *saved, *over_rays, over_samples, *sums, n_rays, n, c)
    return sums


def _check(
    sigmas: torch.Tensor,
    features: torch.Tensor,
    t_starts: torch.Tensor,
    t_ends: torch.Tensor,
    packed_info: torch.Tensor,
    backend: str,
) -> None:
    check_tensor("sigmas", sigmas, (None,))
    check_float("sigmas", sigmas, backend)
    n = sigmas.shape[0]
    check_tensor("features", features, (n, None), like=sigmas)
    check_tensor("t_starts", t_starts, (n,), like=sigmas)
    check_tensor("t_ends", t_ends, (n,), like=sigmas)
    check_packed_info(packed_info, sigmas.device)
    if features.shape[1] > MAX_CHANNELS:
        raise ValueError(f"features: expected at most {MAX_CHANNELS} channels, got {features.shape[1]}")
