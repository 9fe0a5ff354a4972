"""Hash grid and network in one: points -> features -> hidden layer -> outputs, in half precision on tensor cores.

On the backend cuda the table is read as halves, features and their gradients are halves, and every sum is float32 (as
in Mueller et al. 2021, real-time neural radiance caching); gradients are scaled by a power of two while they are
halves. The hidden layer lives in registers, forward and again backward. What this cannot do, the exact path does:
`hash_encode` and `decode` in float32.
"""

from __future__ import annotations

import functools
from dataclasses import astuple
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel
from nerf_bridge.ops.hash_encoding import HashGridSpec, level_rows

WIDTHS = (16, 32, 64, 128)
FEATURES = (2, 4, 8)
MAX_INPUTS = 64
MAX_OUTPUTS = 8
MIN_CAPABILITY = (8, 0)
BLOCKS_PER_PROCESSOR = 4  # of the backward kernel, each with sums of its own; more do not fit at the usual sizes


def can_run(spec: HashGridSpec, width: int, n_outputs: int, backend: str) -> bool:
    """Whether `grid_mlp` has kernels for these sizes on this machine."""
    sizes_fit = spec.n_features in FEATURES and spec.n_levels * spec.n_features <= MAX_INPUTS and width in WIDTHS
    if backend not in ("cuda", "nerfacc") or not sizes_fit or n_outputs > MAX_OUTPUTS:
        return False
    return _capability() >= MIN_CAPABILITY


def grid_mlp(
    points: torch.Tensor,
    table: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    spec: HashGridSpec,
) -> torch.Tensor:
    """relu(encode(points) hidden_weight^T + hidden_bias) out_weight^T + out_bias, on the GPU.

    Differentiable once in everything but the points. The table's gradient is summed with float atomics, whose order
    changes from run to run; the other gradients are the same every time.

    Args:
        points: [n, 3] in [0, 1], float32 on a GPU; what lies outside is clamped.
        table: [spec.n_entries, F], F in FEATURES.
        hidden_weight, hidden_bias: [w, L * F], [w]; w in WIDTHS, L * F at most MAX_INPUTS.
        out_weight, out_bias: [o, w], [o]; o at most MAX_OUTPUTS.
        spec: the grid's shape.
    Returns:
        [n, o] float32.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_tensor("points", points, (None, 3))
    check_float("points", points, "cuda")
    check_tensor("table", table, (spec.n_entries, spec.n_features), like=points)
    n_inputs, (n_outputs, width) = spec.n_levels * spec.n_features, out_weight.shape
    check_tensor("hidden_weight", hidden_weight, (width, n_inputs), like=points)
    check_tensor("hidden_bias", hidden_bias, (width,), like=points)
    check_tensor("out_weight", out_weight, (n_outputs, width), like=points)
    check_tensor("out_bias", out_bias, (n_outputs,), like=points)
    if not can_run(spec, width, n_outputs, "cuda"):
        sizes = f"{spec.n_levels} levels of {spec.n_features} features, width {width}, {n_outputs} outputs"
        raise ValueError(f"grid_mlp: no kernel for {sizes}; use hash_encode and decode")
    network = (hidden_weight, hidden_bias, out_weight, out_bias)
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.grid_mlp(points.detach(), table, *network, astuple(spec))[0]
    return _GridMlp.apply(points.detach(), table, *network, spec)


class _GridMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: torch.Tensor, table: torch.Tensor, *rest: Any) -> torch.Tensor:
        out, features = grid_mlp_fwd(points, table, *rest)
        hidden_weight, hidden_bias, out_weight, _, ctx.spec = rest
        ctx.save_for_backward(points, features, hidden_weight, hidden_bias, out_weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, grads[0], ctx.spec)
        return None, *grid_mlp_bwd(*arguments), None


def grid_mlp_fwd(points: torch.Tensor, table: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What `grid_mlp` returns of the same arguments, and the features [L, n, F] in half precision."""
    *weights, spec = rest
    points, weights = points.contiguous(), [weight.contiguous() for weight in weights]
    n, levels = points.shape[0], level_rows(spec, points.device)
    features = torch.empty(spec.n_levels, n, spec.n_features, dtype=torch.half, device=points.device)
    sizes = (n, spec.n_levels, spec.n_features)
    run_kernel("cuda", "hash_half_fwd", points, table.half(), levels, features, *sizes)
    hidden_weight, hidden_bias, out_weight, out_bias = weights
    n_outputs, width = out_weight.shape
    out = points.new_empty(n, n_outputs)
    network = (hidden_bias, out_weight, out_bias)
    run_kernel("cuda", "mlp_half_fwd", hidden_weight, features, *network, out, *sizes, width, n_outputs)
    return out, features


def grid_mlp_bwd(
    points: torch.Tensor,
    features: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    grad_out: torch.Tensor,
    spec: HashGridSpec,
) -> tuple[torch.Tensor, ...]:
    """Gradients over the table and the network's four parameters from the one over the outputs."""
    points, grad_out = points.contiguous(), grad_out.contiguous()
    hidden_weight, hidden_bias, out_weight = (of.contiguous() for of in (hidden_weight, hidden_bias, out_weight))
    (n_outputs, width), n_inputs = out_weight.shape, hidden_weight.shape[1]
    n_blocks = BLOCKS_PER_PROCESSOR * _processors(points.device)
    sums = points.new_zeros(n_blocks, width * (n_inputs + 1 + n_outputs))
    sizes = (points.shape[0], spec.n_levels, spec.n_features)
    largest = torch.zeros(1, dtype=torch.int32, device=points.device)  # of grad_out, by which halves are scaled
    run_kernel("cuda", "largest", grad_out, largest, grad_out.numel())
    grad_features = torch.empty_like(features)
    network = (hidden_weight, features, hidden_bias, out_weight, grad_out, largest)
    run_kernel("cuda", "mlp_half_bwd", *network, grad_features, sums, *sizes, width, n_outputs, n_blocks)
    grad_table = points.new_zeros(spec.n_entries, spec.n_features)
    levels = level_rows(spec, points.device)
    run_kernel("cuda", "hash_half_bwd", points, grad_features, levels, largest, grad_table, *sizes)
    of_hidden, of_bias, of_out = sums.sum(0).split([width * n_inputs, width, width * n_outputs])
    weights = (of_hidden.view_as(hidden_weight), of_bias, of_out.view_as(out_weight), grad_out.sum(0))
    return grad_table, *weights


@functools.cache
def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
