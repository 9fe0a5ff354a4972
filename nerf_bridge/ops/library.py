"""The kernels as operators of torch.library, so that torch.compile takes them whole: it cannot look into a C call.

An operator has a kernel (tensors in, new tensors out), a fake of it (the same shapes without data) and, where it is
differentiable, what an autograd.Function has: `setup_context` and `backward`, which calls operators in its turn. Grids
come as the numbers of a `HashGridSpec`. Outside of compiled graphs the functions of `ops` call their autograd.Function
themselves: the dispatch of an operator written in Python takes five times as long.

`march_all`, the march without a capacity, makes as many samples as there are. torch.compile takes it into a graph with
fullgraph=True, or with `torch._dynamo.config.capture_dynamic_output_shape_ops`; else it ends the graph before it and
begins another behind it. CUDA graphs need a capacity.

No operators: the optimiser's kernel (`adam`), which changes parameters and moments in place, outside of any graph; the
rasteriser (`raster`), which draws finished meshes and has no gradient; what other people's packages do (`peers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nerf_bridge.ops import composite, decoder, field_composite, grid_mlp, hash_encoding, march, rays
from nerf_bridge.ops.hash_encoding import HashGridSpec

NAMESPACE = "nerf_bridge"
KERNELS = torch.ops.nerf_bridge


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register the operator that `schema` names ("composite(Tensor sigmas, ...) -> Tensor"), on the CPU and on CUDA."""
    name, _, signature = schema.partition("(")
    name = f"{NAMESPACE}::{name}"
    torch.library.define(name, f"({signature}")
    # disabled: called between two graphs, it would itself be compiled, into a call of this operator
    torch.library.impl(name, ("CPU", "CUDA"), torch.compiler.disable(kernel))
    torch.library.register_fake(name, fake)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context)


def _march(*arguments: Any) -> tuple[Tensor, ...]:
    samples = march.march_rays(*arguments)
    rows = (samples.packed_info, samples.ray_indices, samples.t_starts, samples.t_ends, samples.points)
    assert samples.overflow is not None
    return *rows, samples.overflow


def _march_fake(rays_o: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n = rest[-1]
    whole = rays_o.new_empty((rays_o.shape[0], 2), dtype=torch.int64), rays_o.new_empty(n, dtype=torch.int64)
    return (
        *whole,
        rays_o.new_empty(n),
        rays_o.new_empty(n),
        rays_o.new_empty(n, 3),
        rays_o.new_empty((), dtype=torch.bool),
    )


register(
    "march(Tensor rays_o, Tensor rays_d, Tensor occupied, float step_size, Tensor? jitter, str backend,"
    " SymInt capacity) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _march,
    _march_fake,
)


def _march_all(*arguments: Any) -> tuple[Tensor, ...]:
    samples = march.march_rays(*arguments)
    return samples.packed_info, samples.ray_indices, samples.t_starts, samples.t_ends, samples.points


register(
    "march_all(Tensor rays_o, Tensor rays_d, Tensor occupied, float step_size, Tensor? jitter, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _march_all,
    lambda *scene: _march_fake(*scene, torch.library.get_ctx().new_dynamic_size())[:5],
)


def _pixel_rays_fake(c2w: Tensor, fovy_rad: Tensor, height: int, width: int, backend: str) -> tuple[Tensor, Tensor]:
    n = c2w.shape[0] * height * width
    return c2w.new_empty(n, 3), c2w.new_empty(n, 3)


register(
    "pixel_rays(Tensor c2w, Tensor fovy_rad, SymInt height, SymInt width, str backend) -> (Tensor, Tensor)",
    rays.pixel_rays,
    _pixel_rays_fake,
)


def _composite_fake(sigmas: Tensor, features: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n_rays = rest[2].shape[0]
    of_rays = (sigmas.new_empty(n_rays, features.shape[1]), sigmas.new_empty(n_rays), sigmas.new_empty(n_rays))
    return *of_rays, sigmas.new_empty(sigmas.shape)


def _composite_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *kept, ctx.backend = inputs
    ctx.save_for_backward(*kept, output[3], output[1])
    ctx.set_materialize_grads(False)


def _composite_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*KERNELS.composite_bwd(*ctx.saved_tensors, *grads, ctx.backend), None, None, None, None)


register(
    "composite(Tensor sigmas, Tensor features, Tensor t_starts, Tensor t_ends, Tensor packed_info, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    composite.composite_fwd,
    _composite_fake,
    _composite_save,
    _composite_backward,
)
register(
    "composite_bwd(Tensor features, Tensor t_starts, Tensor t_ends, Tensor packed_info, Tensor weights, Tensor opacity,"
    " Tensor? grad_features_out, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_weights, str backend)"
    " -> (Tensor, Tensor)",
    composite.composite_bwd,
    lambda features, *rest: (features.new_empty(features.shape[0]), features.new_empty(features.shape)),
)


def _field_composite_fake(raw: Tensor, behind: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    n_rays = behind.shape[0]
    of_rays = [raw.new_empty(shape) for shape in ((n_rays, 3), n_rays, n_rays, n_rays, n_rays)]
    return *of_rays, raw.new_empty(n_rays, dtype=torch.int64), raw.new_empty(raw.shape[0])


def _field_composite_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.settings = inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, output[1], *output[4:])
    ctx.set_materialize_grads(False)


def _field_composite_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_raw = KERNELS.field_composite_bwd(*ctx.saved_tensors, *grads[:4], *ctx.settings)
    return (grad_raw, field_composite.gradient_behind(ctx.saved_tensors[7], grads[0]), *[None] * 9)


_PACKED = "Tensor raw, Tensor behind, Tensor points, Tensor t_starts, Tensor t_ends, Tensor packed_info, Tensor middles"
_DENSITY = "float blob_scale, float blob_radius, bool is_exp, str backend"
register(
    f"field_composite({_PACKED}, {_DENSITY}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    field_composite.field_composite_fwd,
    _field_composite_fake,
    _field_composite_save,
    _field_composite_backward,
)
register(
    f"field_composite_bwd({_PACKED}, Tensor opacity, Tensor first_moments, Tensor seen, Tensor weights,"
    f" Tensor? grad_color, Tensor? grad_opacity, Tensor? grad_depth, Tensor? grad_thickness, {_DENSITY}) -> Tensor",
    field_composite.gradient_raw,
    lambda raw, *rest: raw.new_empty(raw.shape),
)


def _grid_mlp_fake(points: Tensor, table: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    n_outputs, (n_levels, n_features, *_) = rest[3].shape[0], rest[-1]
    features = points.new_empty((n_levels, points.shape[0], n_features), dtype=torch.half)
    return points.new_empty(points.shape[0], n_outputs), features


def _grid_mlp_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    points, _, hidden_weight, hidden_bias, out_weight, _, packed_info, *ctx.how = inputs
    ctx.save_for_backward(points, output[1], hidden_weight, hidden_bias, out_weight, packed_info)


def _grid_mlp_backward(ctx: Any, grad_out: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    return None, *KERNELS.grid_mlp_bwd(*ctx.saved_tensors, grad_out, *ctx.how), None, None, None


def _grid_mlp_fwd(*inputs: Any) -> tuple[Tensor, Tensor]:
    *tensors, _, centred, shape = inputs  # the rays matter to the backward pass alone
    arguments = (*tensors, centred, HashGridSpec(*shape))
    return grid_mlp.grid_mlp_fwd(*arguments)


def _grid_mlp_bwd(*inputs: Any) -> tuple[Tensor, ...]:
    arguments = (*inputs[:-1], HashGridSpec(*inputs[-1]))
    return grid_mlp.grid_mlp_bwd(*arguments)


def _grid_mlp_bwd_fake(points: Tensor, features: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    hidden_weight, hidden_bias, out_weight, _, grad_out, _, shape = rest
    table = points.new_empty(HashGridSpec(*shape).n_entries, shape[1])
    like = tuple(weight.new_empty(weight.shape) for weight in (hidden_weight, hidden_bias, out_weight))
    return table, *like, points.new_empty(grad_out.shape[1])


register(
    "grid_mlp(Tensor points, Tensor table, Tensor hidden_weight, Tensor hidden_bias, Tensor out_weight,"
    " Tensor out_bias, Tensor? packed_info, bool centred, int[] shape) -> (Tensor, Tensor)",
    _grid_mlp_fwd,
    _grid_mlp_fake,
    _grid_mlp_save,
    _grid_mlp_backward,
)
register(
    "grid_mlp_bwd(Tensor points, Tensor features, Tensor hidden_weight, Tensor hidden_bias, Tensor out_weight,"
    " Tensor? packed_info, Tensor grad_out, bool centred, int[] shape) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _grid_mlp_bwd,
    _grid_mlp_bwd_fake,
)


def _encode_fwd(points: Tensor, along: Tensor | None, table: Tensor, shape: Sequence[int], backend: str) -> Tensor:
    place, tangents = points.contiguous(), None if along is None else along.contiguous()
    return hash_encoding.encode_fwd(place, tangents, hash_encoding.aligned(table), HashGridSpec(*shape), backend)


def _encode_bwd_table(
    points: Tensor, along: Tensor | None, grad_out: Tensor, shape: Sequence[int], backend: str
) -> Tensor:
    place, tangents = points.contiguous(), None if along is None else along.contiguous()
    return hash_encoding.encode_bwd_table(
        place, tangents, hash_encoding.aligned(grad_out), HashGridSpec(*shape), backend
    )


def _encode_bwd_points(
    points: Tensor, along: Tensor | None, table: Tensor, grad_out: Tensor, shape: Sequence[int], backend: str
) -> Tensor:
    place, tangents = points.contiguous(), None if along is None else along.contiguous()
    rows = (hash_encoding.aligned(table), hash_encoding.aligned(grad_out))
    return hash_encoding.encode_bwd_points(place, tangents, *rows, HashGridSpec(*shape), backend)


def _encode_fake(points: Tensor, *rest: Any) -> Tensor:
    n_levels, n_features, *_ = rest[-2]
    return points.new_empty(points.shape[0], n_levels * n_features)


def _encode_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.shape, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _encode_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (points, table), how = ctx.saved_tensors, (ctx.shape, ctx.backend)
    need_points, need_table = ctx.needs_input_grad[:2]
    grad_points = KERNELS.hash_encode_point_gradient(points, table, grad_out, *how) if need_points else None
    grad_table = KERNELS.hash_encode_bwd_table(points, None, grad_out, *how) if need_table else None
    return grad_points, grad_table, None, None


def _point_gradient_backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
    (points, table, grad_out), how = ctx.saved_tensors, (ctx.shape, ctx.backend)
    need_points, need_table, need_out = ctx.needs_input_grad[:3]
    grad_points = KERNELS.hash_encode_bwd_points(points, along, table, grad_out, *how) if need_points else None
    grad_table = KERNELS.hash_encode_bwd_table(points, along, grad_out, *how) if need_table else None
    return (
        grad_points,
        grad_table,
        KERNELS.hash_encode_fwd(points, along, table, *how) if need_out else None,
        None,
        None,
    )


_HOW = "int[] shape, str backend) -> Tensor"
register(f"hash_encode_fwd(Tensor points, Tensor? tangents, Tensor table, {_HOW}", _encode_fwd, _encode_fake)
register(
    f"hash_encode_bwd_table(Tensor points, Tensor? tangents, Tensor grad_out, {_HOW}",
    _encode_bwd_table,
    lambda points, tangents, grad_out, shape, _: points.new_empty(HashGridSpec(*shape).n_entries, shape[1]),
)
register(
    f"hash_encode_bwd_points(Tensor points, Tensor? tangents, Tensor table, Tensor grad_out, {_HOW}",
    _encode_bwd_points,
    lambda points, *rest: points.new_empty(points.shape),
)
register(
    f"hash_encode(Tensor points, Tensor table, {_HOW}",
    lambda points, *rest: _encode_fwd(points, None, *rest),
    _encode_fake,
    _encode_save,
    _encode_backward,
)
register(
    f"hash_encode_point_gradient(Tensor points, Tensor table, Tensor grad_out, {_HOW}",
    lambda points, *rest: _encode_bwd_points(points, None, *rest),
    lambda points, *rest: points.new_empty(points.shape),
    _encode_save,
    _point_gradient_backward,
)


def _decode_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *network, ctx.by_kernel = inputs
    ctx.save_for_backward(*network[:4])


def _decode_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return *KERNELS.decode_bwd(*ctx.saved_tensors, grad_out, ctx.by_kernel), None


def _decode_bwd_fake(*inputs: Any) -> tuple[Tensor, ...]:
    *network, grad_out, _ = inputs
    return *(tensor.new_empty(tensor.shape) for tensor in network), grad_out.new_empty(grad_out.shape[1])


_NETWORK = "Tensor features, Tensor hidden_weight, Tensor hidden_bias, Tensor out_weight"
register(
    f"decode({_NETWORK}, Tensor out_bias, bool by_kernel) -> Tensor",
    decoder.decode_fwd,
    lambda features, *network: features.new_empty(features.shape[0], network[3].shape[0]),
    _decode_save,
    _decode_backward,
)
register(
    f"decode_bwd({_NETWORK}, Tensor grad_out, bool by_kernel) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    decoder.decode_bwd,
    _decode_bwd_fake,
)
