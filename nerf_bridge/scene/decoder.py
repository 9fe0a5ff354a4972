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
    by_kernel = backend == "cpu" and hidden_weight.shape[0] in WIDTHS
    function = _DecodeByKernel if by_kernel else _Decode
    return function.apply(features, hidden_weight, hidden_bias, out_weight, out_bias)


def _chunks(features: Tensor) -> list[slice]:
    rows = CPU_CHUNK if features.device.type == "cpu" else GPU_CHUNK
    return [slice(start, start + rows) for start in range(0, features.shape[0], rows)]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, out_weight: Tensor, out_bias: Tensor
    ) -> Tensor:
        ctx.save_for_backward(features, hidden_weight, hidden_bias, out_weight)
        out = features.new_empty(features.shape[0], out_weight.shape[0])
        for rows in _chunks(features):
            hidden = torch.addmm(hidden_bias, features[rows], hidden_weight.t()).relu_()
            torch.addmm(out_bias, hidden, out_weight.t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        features, hidden_weight, hidden_bias, out_weight = ctx.saved_tensors
        grad_features = torch.empty_like(features)
        grad_hidden_weight, grad_hidden_bias = torch.zeros_like(hidden_weight), torch.zeros_like(hidden_bias)
        grad_out_weight = torch.zeros_like(out_weight)
        for rows in _chunks(features):
            hidden = torch.addmm(hidden_bias, features[rows], hidden_weight.t()).relu_()
            grad_out_weight.addmm_(grad_out[rows].t(), hidden)
            grad_hidden = torch.mm(grad_out[rows], out_weight).mul_(hidden.sign_())  # 1 where the ReLU let through
            grad_hidden_weight.addmm_(grad_hidden.t(), features[rows])
            grad_hidden_bias += grad_hidden.sum(0)
            torch.mm(grad_hidden, hidden_weight, out=grad_features[rows])
        return grad_features, grad_hidden_weight, grad_hidden_bias, grad_out_weight, grad_out.sum(0)


class _DecodeByKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        features, hidden_weight, hidden_bias, out_weight, out_bias = (tensor.contiguous() for tensor in inputs)
        (n, n_inputs), (n_outputs, width) = features.shape, out_weight.shape
        ctx.save_for_backward(features, hidden_weight, hidden_bias, out_weight)
        out = features.new_empty(n, n_outputs)
        network = (features, hidden_weight, hidden_bias, out_weight, out_bias)
        run_kernel("cpu", "mlp_fwd", *network, out, n, n_inputs, width, n_outputs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, ...]:
        features, hidden_weight, _, out_weight = network = ctx.saved_tensors
        (n, n_inputs), (n_outputs, width) = features.shape, out_weight.shape
        grad_features, grad_out = torch.empty_like(features), grad_out.contiguous()
        sums = features.new_empty(KERNEL_CHUNKS, width * (n_inputs + 1 + n_outputs))
        sizes = (n, n_inputs, width, n_outputs, KERNEL_CHUNKS)
        run_kernel("cpu", "mlp_bwd", *network, grad_out, grad_features, sums, *sizes)
        of_hidden, of_bias, of_out = sums.sum(0).split([width * n_inputs, width, n_outputs * width])
        weights = (of_hidden.view_as(hidden_weight), of_bias, of_out.view_as(out_weight))
        return grad_features, *weights, grad_out.sum(0)
