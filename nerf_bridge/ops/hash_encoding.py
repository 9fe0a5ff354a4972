"""Multiresolution hash encoding (Mueller et al. 2022, instant neural graphics primitives, equations 1 to 4).

Level l divides the unit cube into N_l cells a side, N_l growing geometrically. A level whose (N_l + 1)^3 vertices fit
the table stores them densely; a finer one hashes them, h(x) = (x ^ y 2654435761 ^ z 805459861) mod table size. A point
gets, from every level, the trilinear interpolation of its cell's 8 vertices.

The result is differentiable in the points and the table, and its gradients are once more, so that a loss may use
normals (gradients over the points).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from nerf_bridge.errors import UserError
from nerf_bridge.ops import peers
from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel

MAX_FEATURES = 8
MAX_RESOLUTION = 1 << 16
ROW_ALIGNMENT = 8  # entries
_PRIMES = (1, 2654435761, 805459861)
_CORNERS = tuple((c & 1, c >> 1 & 1, c >> 2) for c in range(8))


@dataclass(frozen=True)
class HashGridSpec:
    """The shape of a multiresolution hash grid.

    Args:
        n_levels: resolution levels L, at least 1.
        n_features: features F of an entry, 1 to 8.
        log2_table_size: log2 of the most entries that a level may have, 3 to 28.
        base_resolution: cells a side at the coarsest level, at least 1.
        finest_resolution: cells a side at the finest level, at least `base_resolution`, at most 65536.
    Raises:
        UserError: a number is out of its range.
    """

    n_levels: int
    n_features: int
    log2_table_size: int
    base_resolution: int
    finest_resolution: int

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_levels", 1, 64),
            ("n_features", 1, MAX_FEATURES),
            ("log2_table_size", 3, 28),
            ("base_resolution", 1, MAX_RESOLUTION),
            ("finest_resolution", self.base_resolution, MAX_RESOLUTION),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"hash grid: {name}: expected {low} to {high}, got {value}")

    @functools.cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Cells a side at each level: floor(base * growth^l), the last one `finest_resolution`."""
        base, growth = self.base_resolution, math.log(self.finest_resolution / self.base_resolution)
        steps = max(self.n_levels - 1, 1)
        return tuple(math.floor(base * math.exp(growth * level / steps) + 1e-6) for level in range(self.n_levels))

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each level: its (N + 1)^3 vertices when they fit, else the whole table size; rounded up to a
        multiple of ROW_ALIGNMENT, so that neighbours along x lie in one piece of memory at every level."""
        fitting = (min((n + 1) ** 3, 1 << self.log2_table_size) for n in self.resolutions)
        return tuple(-(-size // ROW_ALIGNMENT) * ROW_ALIGNMENT for size in fitting)

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level, and after the last the number of all entries; n_levels + 1 numbers."""
        return tuple(itertools.accumulate(self.sizes, initial=0))

    @property
    def n_entries(self) -> int:
        """Entries of all levels."""
        return self.offsets[-1]

    def is_dense(self, level: int) -> bool:
        """Whether each vertex of `level` has an entry of its own."""
        return (self.resolutions[level] + 1) ** 3 <= 1 << self.log2_table_size


def hash_encode(points: torch.Tensor, table: torch.Tensor, spec: HashGridSpec, backend: str) -> torch.Tensor:
    """Features of points by trilinear interpolation in every level of the hash grid.

    Twice differentiable in points and table. On CUDA the table's gradient is summed with float atomics, whose order
    changes from run to run; `torch.use_deterministic_algorithms(True)` selects sums in 64-bit fixed point instead,
    which are the same to the last bit every time (cuBLAS, which a network behind it needs, then wants the environment
    variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before its first use). The other backends are deterministic for any number
    of threads.

    Args:
        points: [n, 3] in [0, 1]; what lies outside is clamped, and has no gradient along the clamped axes; what is no
            number counts as 0 outside the cube. float32, or float64 on the backends cpu and torch.
        table: [spec.n_entries, spec.n_features], dtype and device of `points`.
        spec: the grid's shape.
        backend: "cuda", "cpu", "torch" or "tcnn" (see `resolve_backend`).
    Returns:
        [n, n_levels * n_features], level by level.
    Raises:
        ValueError: a shape, dtype or device does not fit.
        RuntimeError: the first call for a grid and a GPU is being recorded into a CUDA graph (`level_rows`).
    """
    _check(points, table, spec, backend)
    if backend == "tcnn":
        return peers.hash_encode(points, table, spec)
    if backend == "torch":
        return hash_encode_torch(points, table, spec)
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.hash_encode(points, table, astuple(spec), backend)
    return _Encode.apply(points.contiguous(), aligned(table), spec, backend)


def hash_encode_point_gradient(
    points: torch.Tensor, table: torch.Tensor, grad_features: torch.Tensor, spec: HashGridSpec, backend: str
) -> torch.Tensor:
    """Gradient over the points of the sum of `hash_encode` times `grad_features`: what normals are made of.

    Once differentiable in points, table and grad_features. It costs less than `torch.autograd.grad` through
    `hash_encode`, which would compute the table's gradient along the way.

    Args:
        points: [n, 3] in [0, 1], as for `hash_encode`.
        table: [spec.n_entries, spec.n_features], dtype and device of `points`.
        grad_features: [n, n_levels * n_features], likewise.
        spec: the grid's shape.
        backend: "cuda", "cpu" or "torch".
    Returns:
        [n, 3], per unit of the unit cube.
    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    _check(points, table, spec, backend)
    check_tensor("grad_features", grad_features, (points.shape[0], spec.n_levels * spec.n_features), like=points)
    if backend != "torch" and torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        how = (astuple(spec), backend)
        return KERNELS.hash_encode_point_gradient(points, table, grad_features, *how)
    if backend != "torch":
        return _PointGradient.apply(points.contiguous(), aligned(table), aligned(grad_features), spec, backend)
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        place = points if points.requires_grad else points.detach().requires_grad_()
        features = hash_encode_torch(place, table if differentiable else table.detach(), spec)
        (gradient,) = torch.autograd.grad(features, place, grad_features, create_graph=differentiable)
    return gradient


def hash_encode_torch(points: torch.Tensor, table: torch.Tensor, spec: HashGridSpec) -> torch.Tensor:
    """The reference of `hash_encode` in plain torch operations; any device, any float dtype."""
    outputs = []
    for level, resolution in enumerate(spec.resolutions):
        position = points.nan_to_num(0.0).clamp(0, 1) * resolution
        low = position.detach().long().clamp(0, resolution - 1)
        fraction = position - low
        value = points.new_zeros(points.shape[0], spec.n_features)
        for corner in _CORNERS:
            weight = points.new_ones(points.shape[0])
            for axis, bit in enumerate(corner):
                weight = weight * (fraction[:, axis] if bit else 1 - fraction[:, axis])
            vertex = low + torch.tensor(corner, device=points.device)
            value = value + weight[:, None] * table[_entries(vertex, level, spec)]
        outputs.append(value)
    return torch.cat(outputs, dim=1)


def _check(points: torch.Tensor, table: torch.Tensor, spec: HashGridSpec, backend: str) -> None:
    check_tensor("points", points, (None, 3))
    check_float("points", points, backend)
    check_tensor("table", table, (spec.n_entries, spec.n_features), like=points)


def aligned(rows: torch.Tensor) -> torch.Tensor:
    """`rows`, copied unless contiguous and at a multiple of 16 bytes: the GPU reads it in pieces of 16 bytes."""
    rows = rows.contiguous()
    return rows.clone() if rows.data_ptr() % 16 else rows


def _entries(vertex: torch.Tensor, level: int, spec: HashGridSpec) -> torch.Tensor:
    """Table rows [n] of integer vertices [n, 3] of a level."""
    x, y, z = vertex.unbind(-1)
    if spec.is_dense(level):
        side = spec.resolutions[level] + 1
        return spec.offsets[level] + x + side * (y + side * z)
    hashed = x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]
    return spec.offsets[level] + (hashed & (spec.sizes[level] - 1))


class _Encode(torch.autograd.Function):
    """out = encode(points, table)."""

    @staticmethod
    def forward(ctx: Any, points: torch.Tensor, table: torch.Tensor, spec: HashGridSpec, backend: str) -> torch.Tensor:
        ctx.save_for_backward(points, table)
        ctx.spec, ctx.backend = spec, backend
        return encode_fwd(points, None, table, spec, backend)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        points, table = ctx.saved_tensors
        grad_out = aligned(grads[0])
        need_points, need_table = ctx.needs_input_grad[:2]
        grad_points = _PointGradient.apply(points, table, grad_out, ctx.spec, ctx.backend) if need_points else None
        grad_table = _TableGradient.apply(points, grad_out, ctx.spec, ctx.backend) if need_table else None
        return grad_points, grad_table, None, None


class _PointGradient(torch.autograd.Function):
    """grad_points = d(out . grad_out)/d(points); its derivative along a direction is the encoding's tangent form."""

    @staticmethod
    def forward(
        ctx: Any, points: torch.Tensor, table: torch.Tensor, grad_out: torch.Tensor, spec: HashGridSpec, backend: str
    ) -> torch.Tensor:
        ctx.save_for_backward(points, table, grad_out)
        ctx.spec, ctx.backend = spec, backend
        return encode_bwd_points(points, None, table, grad_out, spec, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        points, table, grad_out = ctx.saved_tensors
        tangents = grads[0].contiguous()
        need_points, need_table, need_out = ctx.needs_input_grad[:3]
        return (
            encode_bwd_points(points, tangents, table, grad_out, ctx.spec, ctx.backend) if need_points else None,
            encode_bwd_table(points, tangents, grad_out, ctx.spec, ctx.backend) if need_table else None,
            encode_fwd(points, tangents, table, ctx.spec, ctx.backend) if need_out else None,
            None,
            None,
        )


class _TableGradient(torch.autograd.Function):
    """grad_table = d(out . grad_out)/d(table), linear in grad_out; its transpose is the encoding itself."""

    @staticmethod
    def forward(
        ctx: Any, points: torch.Tensor, grad_out: torch.Tensor, spec: HashGridSpec, backend: str
    ) -> torch.Tensor:
        ctx.save_for_backward(points, grad_out)
        ctx.spec, ctx.backend = spec, backend
        return encode_bwd_table(points, None, grad_out, spec, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        points, grad_out = ctx.saved_tensors
        table = aligned(grads[0])
        need_points, need_out = ctx.needs_input_grad[:2]
        return (
            encode_bwd_points(points, None, table, grad_out, ctx.spec, ctx.backend) if need_points else None,
            encode_fwd(points, None, table, ctx.spec, ctx.backend) if need_out else None,
            None,
            None,
        )


def encode_fwd(
    points: torch.Tensor, tangents: torch.Tensor | None, table: torch.Tensor, spec: HashGridSpec, backend: str
) -> torch.Tensor:
    """Features [n, L * F], or with tangents [n, 3] their derivatives along them."""
    n = points.shape[0]
    out = points.new_empty(n, spec.n_levels * spec.n_features)
    levels = level_rows(spec, points.device)
    run_kernel(backend, "hash_encode_fwd", points, tangents, table, levels, out, n, spec.n_levels, spec.n_features)
    return out


def encode_bwd_table(
    points: torch.Tensor, tangents: torch.Tensor | None, grad_out: torch.Tensor, spec: HashGridSpec, backend: str
) -> torch.Tensor:
    """The transpose of `encode_fwd` in the table: [n_entries, F] from grad_out [n, L * F]."""
    sizes = (points.shape[0], spec.n_levels, spec.n_features)
    levels = level_rows(spec, points.device)
    if peers.kernels_of(backend) == "cuda" and torch.are_deterministic_algorithms_enabled():
        scale = _fixed_point_scale(grad_out, tangents, spec)
        sums = torch.zeros(spec.n_entries, spec.n_features, dtype=torch.int64, device=points.device)
        run_kernel(backend, "hash_encode_bwd_table_fixed", points, tangents, grad_out, levels, scale, sums, *sizes)
        return (sums.double() / scale.double()).to(points.dtype)
    grad_table = points.new_zeros(spec.n_entries, spec.n_features)
    run_kernel(backend, "hash_encode_bwd_table", points, tangents, grad_out, levels, grad_table, *sizes)
    return grad_table


def encode_bwd_points(
    points: torch.Tensor,
    tangents: torch.Tensor | None,
    table: torch.Tensor,
    grad_out: torch.Tensor,
    spec: HashGridSpec,
    backend: str,
) -> torch.Tensor:
    """Gradient [n, 3] over the points of the sum of `encode_fwd` times grad_out [n, L * F]."""
    grad_points = torch.empty_like(points)
    sizes = (points.shape[0], spec.n_levels, spec.n_features)
    levels = level_rows(spec, points.device)
    run_kernel(backend, "hash_encode_bwd_points", points, tangents, table, grad_out, levels, grad_points, *sizes)
    return grad_points


def _fixed_point_scale(grad_out: torch.Tensor, tangents: torch.Tensor | None, spec: HashGridSpec) -> torch.Tensor:
    """The power of two [1] by which addends are multiplied so that no sum of n of them leaves 62 bits.

    Not finite or zero gradients give a scale that is not finite, and with it a result that is not finite or zero.
    """
    if grad_out.numel() == 0:
        return grad_out.new_ones(1)
    largest = grad_out.abs().max().double() * grad_out.shape[0]
    if tangents is not None:
        largest = largest * tangents.abs().sum(dim=1).max().double() * spec.resolutions[-1]
    exponent = torch.floor(61 - torch.log2(largest)).clamp(max=120)
    return torch.exp2(exponent).to(grad_out.dtype).reshape(1)


@functools.cache
def level_rows(spec: HashGridSpec, device: torch.device) -> torch.Tensor:
    """What the kernels know of a grid, int64 [n_levels, 4]: resolution, first entry, entries, dense.

    Kept for good, so that no step copies it to the device: CUDA graphs may know where it lies. A graph cannot hold the
    copying itself: what uses a grid runs once before it is recorded.

    Raises:
        RuntimeError: `spec` comes to a GPU for the first time while a CUDA graph is being recorded.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "hash grid: its shape must be on the GPU before a CUDA graph is recorded; call the function once before"
        )
    rows = [
        (spec.resolutions[level], spec.offsets[level], spec.sizes[level], int(spec.is_dense(level)))
        for level in range(spec.n_levels)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=device)
