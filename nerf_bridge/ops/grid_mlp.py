"""Hash grid and network in one: points -> features -> hidden layer -> outputs, in half precision on tensor cores.

On the backend cuda the table is read as halves, features and their gradients are halves, and every sum is float32 (as
in Mueller et al. 2021, real-time neural radiance caching); gradients are scaled by a power of two while they are
halves. The hidden layer lives in registers, forward and again backward. Rows whose outputs have no gradient, the
samples of a render that no light reaches, cost next to nothing backward. What this cannot do, the exact path does:
`hash_encode` and `decode` in float32.
"""

from __future__ import annotations

import functools
from dataclasses import astuple
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_float, check_packed_info, check_tensor, run_kernel
from nerf_bridge.ops.build import TENSOR_CORES
from nerf_bridge.ops.hash_encoding import HashGridSpec, aligned, level_rows

WIDTHS = (16, 32, 64, 128)
FEATURES = (2, 4, 8)
MAX_INPUTS = 64
MAX_OUTPUTS = 8
BLOCKS_PER_PROCESSOR = 4  # of the backward kernel, each with sums of its own; more do not fit at the usual sizes
ANY_SIZE = 1 << 62
TILE_ROWS, PAD = 128, 8  # of the network's kernels: rows of a block, and halves between rows in shared memory
MASK_BITS = 32  # rows that one word tells of, whether they have a gradient


def can_run(spec: HashGridSpec, width: int, n_outputs: int, backend: str, device: torch.device) -> bool:
    """Whether `grid_mlp` has kernels for these sizes that run on `device` and fit it."""
    n_inputs = spec.n_levels * spec.n_features
    sizes_fit = spec.n_features in FEATURES and n_inputs <= MAX_INPUTS and width in WIDTHS and n_outputs <= MAX_OUTPUTS
    if backend not in ("cuda", "nerfacc") or not sizes_fit:
        return False
    capability, most_shared, _ = _gpu(device)
    return capability >= TENSOR_CORES and shared_bytes(n_inputs, width) <= most_shared


def shared_bytes(n_inputs: int, width: int, backward: bool = True) -> int:
    """Shared memory that a block of the network's kernels takes (`Layout` in mlp_shape.h); forward it is less."""
    stride = -(-n_inputs // 16) * 16 + PAD
    if not backward:
        return 2 * (TILE_ROWS * stride + width * stride + MAX_OUTPUTS * (width + PAD))
    weights = width * stride + MAX_OUTPUTS * width
    of_a_row = stride + 2 * (width + PAD) + MAX_OUTPUTS + 4
    return 2 * (weights + TILE_ROWS * of_a_row)


def grid_mlp(
    points: torch.Tensor,
    table: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    spec: HashGridSpec,
    packed_info: torch.Tensor | None = None,
    centred: bool = False,
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
        packed_info: [n_rays, 2] int64, where the points are samples of rays: first sample and number of samples of each
            ray, in order and without gaps (`Samples.packed_info`). It changes no result but the order of sums in the
            backward pass: points of neighbouring rays are then worked on together, which is faster. None: as the
            points come.
        centred: points are in [-1, 1] instead: x stands for 0.5 x + 0.5.
    Returns:
        [n, o] float32.
    Raises:
        ValueError: a shape, dtype or device does not fit, or the GPU is too small or too old for the sizes.
        RuntimeError: the table needs a gradient while `torch.use_deterministic_algorithms(True)` rules atomics out; or
            the first call for a grid and a GPU is being recorded into a CUDA graph.
    """
    _check(points, table, (hidden_weight, hidden_bias, out_weight, out_bias), spec, packed_info)
    arguments = (points.detach(), table, hidden_weight, hidden_bias, out_weight, out_bias, packed_info)
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.grid_mlp(*arguments, centred, astuple(spec))[0]
    return _GridMlp.apply(*arguments, centred, spec)


def _check(
    points: torch.Tensor,
    table: torch.Tensor,
    network: tuple[torch.Tensor, ...],
    spec: HashGridSpec,
    packed_info: torch.Tensor | None,
) -> None:
    hidden_weight, hidden_bias, out_weight, out_bias = network
    check_tensor("points", points, (None, 3))
    check_float("points", points, "cuda")
    check_tensor("table", table, (spec.n_entries, spec.n_features), like=points)
    n_inputs, (n_outputs, width) = spec.n_levels * spec.n_features, out_weight.shape
    check_tensor("hidden_weight", hidden_weight, (width, n_inputs), like=points)
    check_tensor("hidden_bias", hidden_bias, (width,), like=points)
    check_tensor("out_weight", out_weight, (n_outputs, width), like=points)
    check_tensor("out_bias", out_bias, (n_outputs,), like=points)
    if packed_info is not None:
        check_packed_info(packed_info, points.device)
    if not can_run(spec, width, n_outputs, "cuda", points.device):
        sizes = f"{spec.n_levels} levels of {spec.n_features} features, width {width}, {n_outputs} outputs"
        raise ValueError(f"grid_mlp: no kernel for {sizes} on {points.device}; use hash_encode and decode")
    if torch.are_deterministic_algorithms_enabled() and table.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            "grid_mlp: sums the table's gradient with float atomics, which torch.use_deterministic_algorithms(True) "
            "rules out; use hash_encode and decode"
        )


class _GridMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        *inputs, packed_info, ctx.centred, ctx.spec = arguments
        forward = (*inputs, ctx.centred, ctx.spec)
        out, features = grid_mlp_fwd(*forward)
        points, _, hidden_weight, hidden_bias, out_weight, _ = inputs
        ctx.save_for_backward(points, features, hidden_weight, hidden_bias, out_weight, packed_info)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, grads[0], ctx.centred, ctx.spec)
        return None, *grid_mlp_bwd(*arguments), None, None, None


def grid_mlp_fwd(
    points: torch.Tensor,
    table: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    centred: bool,
    spec: HashGridSpec,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `grid_mlp` returns of the same arguments, and the features [L, n, F] in half precision."""
    points = points.contiguous()
    network = [weight.contiguous() for weight in (hidden_bias, out_weight, out_bias)]
    n, levels, (n_outputs, width) = points.shape[0], level_rows(spec, points.device), out_weight.shape
    features = torch.empty((spec.n_levels, n, spec.n_features), dtype=torch.half, device=points.device)
    sizes, how = (spec.n_levels, spec.n_features), _placement(centred)
    run_kernel("cuda", "hash_half_fwd", points, table.half(), levels, features, n, *sizes, *how)
    out = points.new_empty((n, n_outputs))
    run_kernel("cuda", "mlp_half_fwd", hidden_weight.contiguous(), features, *network, out, n, *sizes, width, n_outputs)
    return out, features


def grid_mlp_bwd(
    points: torch.Tensor,
    features: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    out_weight: torch.Tensor,
    packed_info: torch.Tensor | None,
    grad_out: torch.Tensor,
    centred: bool,
    spec: HashGridSpec,
) -> tuple[torch.Tensor, ...]:
    """Gradients over the table and the network's four parameters from the one over the outputs."""
    points, grad_out, rays, n_rays = points.contiguous(), aligned(grad_out), *_rays(packed_info)
    (n_outputs, width), n_inputs, n = out_weight.shape, hidden_weight.shape[1], points.shape[0]
    n_blocks = BLOCKS_PER_PROCESSOR * _gpu(points.device)[2]
    parts = (width * n_inputs, width, width * n_outputs, n_outputs)
    zeros = points.new_zeros(
        n_blocks * sum(parts) + 1
    )  # every block's sums; the largest gradient, by which halves are scaled
    sums, largest = zeros[:-1], zeros[-1:]
    lit = torch.empty(-(-n // MASK_BITS), dtype=torch.int32, device=points.device)  # a bit a row: has it a gradient?
    run_kernel("cuda", "lit_rows", grad_out, lit, largest, sums, n, n_outputs, n_blocks, sum(parts))
    grad_features, sizes = torch.empty_like(features), (spec.n_levels, spec.n_features)
    network = (hidden_weight.contiguous(), features, hidden_bias.contiguous(), out_weight.contiguous())
    made = (grad_out, lit, largest, grad_features, sums)
    run_kernel("cuda", "mlp_half_bwd", *network, *made, n, *sizes, width, n_outputs, n_blocks)
    grad_table = points.new_zeros((spec.n_entries, spec.n_features))
    scene = (points, grad_features, lit, level_rows(spec, points.device), rays, largest)
    run_kernel("cuda", "hash_half_bwd", *scene, grad_table, n, n_rays, *sizes, *_placement(centred))
    of_hidden, of_bias, of_out, of_out_bias = sums.view(n_blocks, -1).sum(0).split(parts)
    return grad_table, of_hidden.view_as(hidden_weight), of_bias, of_out.view_as(out_weight), of_out_bias


def _rays(packed_info: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """What the kernels take of the rays."""
    return (None, 0) if packed_info is None else (packed_info.contiguous(), packed_info.shape[0])


def _placement(centred: bool) -> tuple[float, float]:
    """(a, b): the point x lies at a x + b of the unit cube."""
    return (0.5, 0.5) if centred else (1.0, 0.0)


@functools.cache
def _gpu(device: torch.device) -> tuple[int, int, int]:
    """Ten times the compute capability, bytes of shared memory that a block may take, and multiprocessors of a GPU."""
    of = torch.cuda.get_device_properties(device)
    most_shared = getattr(of, "shared_memory_per_block_optin", ANY_SIZE)  # not in the stubs of all versions
    return 10 * of.major + of.minor, most_shared, of.multi_processor_count


# A graph need not look inside: what torch.compiler.assume_constant_result does, which imports seconds of compiler.
_gpu.__wrapped__._dynamo_marked_constant = True  # type: ignore[attr-defined]
