"""The field's decoder: one hidden layer, worked through in chunks so that its activations never reach memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK = 8192  # rows whose activations (1 MiB at width 32) stay in a core's cache
GPU_CHUNK = 1 << 22  # rows whose activations (512 MiB at width 32) bound the memory


def decode(
    features: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, out_weight: Tensor, out_bias: Tensor
) -> Tensor:
    """relu(features @ hidden_weight^T + hidden_bias) @ out_weight^T + out_bias, without storing the hidden layer.

    On a CPU the hidden activations of a few hundred thousand samples cost more in fresh memory than in arithmetic, so
    they are made, used and forgotten chunk by chunk, and made again in the backward pass.

    Args:
        features: [n, i]; n may be 0.
        hidden_weight, hidden_bias: [h, i], [h].
        out_weight, out_bias: [o, h], [o].

    Returns:
        [n, o]. Differentiable once, in all five arguments.
    """
    return _Decode.apply(features, hidden_weight, hidden_bias, out_weight, out_bias)


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
