"""The field's decoder: one hidden layer, whose activations never reach memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nerf_bridge.ops.backend import check_tensor, run_kernel
from nerf_bridge.ops.grid_mlp import WIDTHS

CPU_CHUNK = 8192  # rows whose activations (1 MiB at width 32) stay in a core's cache
KERNEL_CHUNKS = 64  # of rows, each with sums of its own: their number, not the threads', decides the order of the sums
GPU_CHUNK = 1 << 22  # rows whose activations (512 MiB at width 32) bound the memory


def decode(
    features: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    backend: str = "torch",
) -> Tensor:
    """relu(features @ hidden_weight^T + hidden_bias) @ out_weight^T + out_bias, without storing the hidden layer.

    On a CPU the hidden activations of a few hundred thousand samples cost more in fresh memory than in arithmetic: the
    kernel of the backend cpu holds those of two rows in registers, torch makes, uses and forgets them chunk by chunk,
    and both make them again in the backward pass. On a GPU the products are cuBLAS's: with
    torch.use_deterministic_algorithms(True) torch refuses them unless the environment variable CUBLAS_WORKSPACE_CONFIG
    was :4096:8 (or :16:8) before the first one.

    Args:
        features: [n, i]; n may be 0.
        hidden_weight, hidden_bias: [h, i], [h].
        out_weight, out_bias: [o, h], [o].
        backend: "cpu" for the kernel, where h is one of WIDTHS; torch does the rest.

    Returns:
        [n, o]. Differentiable once, in all five arguments.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    (n_outputs, width), n_inputs = out_weight.shape, features.shape[1]
    check_tensor("hidden_weight", hidden_weight, (width, n_inputs), like=features)
    check_tensor("hidden_bias", hidden_bias, (width,), like=features)
    check_tensor("out_bias", out_bias, (n_outputs,), like=features)
    network = (features, hidden_weight, hidden_bias, out_weight, out_bias)
    by_kernel = backend == "cpu" and width in WIDTHS
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        return KERNELS.decode(*network, by_kernel)
    return _Decode.apply(*network, by_kernel)


def _chunks(features: Tensor) -> list[slice]:
    rows = CPU_CHUNK if features.device.type == "cpu" else GPU_CHUNK
    return [slice(start, start + rows) for start in range(0, features.shape[0], rows)]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *network, ctx.by_kernel = inputs
        ctx.save_for_backward(*network[:4])
        return decode_fwd(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (*ctx.saved_tensors, grad_out, ctx.by_kernel)
        return *decode_bwd(*arguments), None


def decode_fwd(
    features: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, out_weight: Tensor, out_bias: Tensor, by_kernel: bool
) -> Tensor:
    """What `decode` returns, by the CPU's kernel or by torch chunk by chunk."""
    (n, n_inputs), (n_outputs, width) = features.shape, out_weight.shape
    out = features.new_empty(n, n_outputs)
    if by_kernel:
        network = (features, hidden_weight, hidden_bias, out_weight, out_bias)
        dense = (tensor.contiguous() for tensor in network)
        run_kernel("cpu", "mlp_fwd", *dense, out, n, n_inputs, width, n_outputs)
        return out
    for rows in _chunks(features):
        hidden = torch.addmm(hidden_bias, features[rows], hidden_weight.t()).relu_()
        torch.addmm(out_bias, hidden, out_weight.t(), out=out[rows])
    return out


def decode_bwd(
    features: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, out_weight: Tensor, grad_out: Tensor, by_kernel: bool
) -> tuple[Tensor, ...]:
    """Gradients over the five arguments of `decode`, of which the last one's value does not matter to them."""
    network = (features, hidden_weight, hidden_bias, out_weight)
    if by_kernel:
        return _backward_by_kernel(*(tensor.contiguous() for tensor in (*network, grad_out)))
    grad_features = features.new_empty(features.shape)
    grad_hidden_weight, grad_hidden_bias, grad_out_weight = (tensor.new_zeros(tensor.shape) for tensor in network[1:])
    for rows in _chunks(features):
        hidden = torch.addmm(hidden_bias, features[rows], hidden_weight.t()).relu_()
        grad_out_weight.addmm_(grad_out[rows].t(), hidden)
        grad_hidden = torch.mm(grad_out[rows], out_weight).mul_(hidden.sign_())  # 1 where the ReLU let through
        grad_hidden_weight.addmm_(grad_hidden.t(), features[rows])
        grad_hidden_bias += grad_hidden.sum(0)
        torch.mm(grad_hidden, hidden_weight, out=grad_features[rows])
    return grad_features, grad_hidden_weight, grad_hidden_bias, grad_out_weight, grad_out.sum(0)


def _backward_by_kernel(
    features: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, out_weight: Tensor, grad_out: Tensor
) -> tuple[Tensor, ...]:
    (n, n_inputs), (n_outputs, width) = features.shape, out_weight.shape
    grad_features = torch.empty_like(features)
    sums = features.new_empty(KERNEL_CHUNKS, width * (n_inputs + 1 + n_outputs))
    tensors = (features, hidden_weight, hidden_bias, out_weight, grad_out, grad_features, sums)
    run_kernel("cpu", "mlp_bwd", *tensors, n, n_inputs, width, n_outputs, KERNEL_CHUNKS)
    parts = sums.split([width * n_inputs, width, n_outputs * width], dim=1)
    of_hidden, of_bias, of_out = (part.sum(0) for part in parts)
    return grad_features, of_hidden.view_as(hidden_weight), of_bias, of_out.view_as(out_weight), grad_out.sum(0)
