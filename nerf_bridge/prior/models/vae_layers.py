"""Layers of the autoencoder's encoder with frozen weights: each a forward pass and its gradient to the input.

Channels-last throughout, [b, c, h, w]. Convolutions leave their bias to whoever reads them next (`pending` biases of
[c], float32), since the libraries would spend a pass over the memory on it. Half precision on a CPU computes in float32
and rounds, which is what the GPU's matrix units do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.models.group_norm import backward, moments, normalise
from nerf_bridge.prior.models.norm import Norm

MOST_SCORES = 1 << 25  # attention scores that are held at once: 64 MiB in half precision


@dataclass(frozen=True)
class Conv:
    """A convolution without its bias.

    Attributes:
        weight: [c_out, c_in, k, k].
        adjoint: the weight of the convolution that is its gradient, [c_in, c_out, k, k]; where the stride is 2 the
            weight itself.
        bias: [c_out], float32: pending.
        stride: 1 with padding k // 2, or 2 with a row and a column of zeros below and to the right.
    """

    weight: Tensor
    adjoint: Tensor
    bias: Tensor
    stride: int

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] to [b, c_out, h / stride, w / stride], its bias pending."""
        if self.stride == 2:
            return _conv(_padded(x), self.weight, 2, 0)
        return _conv(x, self.weight, 1, self.weight.shape[2] // 2)

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient with respect to x."""
        if self.stride == 1:
            return _conv(grad, self.adjoint, 1, self.weight.shape[2] // 2)
        wide = _wide(grad)
        full = functional.conv_transpose2d(grad.to(wide), self.adjoint.to(wide), stride=2).to(grad.dtype)
        return _cropped(full)


@dataclass(frozen=True)
class ResNet:
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1 convolution where the channels change.

    Attributes:
        pending: [c_in], what is still to be added to x.
        out_bias: [c_out], all that the sum still wants.
        recompute: keep x alone, and compute what is between the convolutions again in the backward pass.
    """

    norm1: Norm
    conv1: Conv
    norm2: Norm
    conv2: Conv
    shortcut: Conv | None
    pending: Tensor
    out_bias: Tensor
    recompute: bool = False

    def forward(self, x: Tensor, stats: Tensor, kept: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum and its statistics; what the gradient needs goes to the end of `kept`."""
        h, inner = self._between(x, stats)
        kept += [x, stats] if self.recompute else [h, inner, x, stats]
        branch = self.conv2.forward(normalise(h, self.conv1.bias, inner, self.norm2, silu=True))
        skip = x if self.shortcut is None else self.shortcut.forward(x)
        return moments(branch, self.out_bias, self.norm2.groups, skip)

    def backward(self, grad: Tensor, kept: list[Tensor]) -> Tensor:
        """The gradient with respect to x; takes what forward kept."""
        stats, x = kept.pop(), kept.pop()
        if self.recompute:
            h, inner = self._between(x, stats)
        else:
            inner, h = kept.pop(), kept.pop()
        skip = grad if self.shortcut is None else self.shortcut.backward(grad)
        grad = backward(self.conv2.backward(grad), h, self.conv1.bias, inner, self.norm2, silu=True)
        return backward(self.conv1.backward(grad), x, self.pending, stats, self.norm1, silu=True, skip=skip)

    def _between(self, x: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution's answer and its statistics."""
        h = self.conv1.forward(normalise(x, self.pending, stats, self.norm1, silu=True))
        return moments(h, self.conv1.bias, self.norm2.groups)


@dataclass(frozen=True)
class Attention:
    """x + softmax(q k^T / sqrt(c)) v with one head as wide as the channels.

    What the softmax cannot see, the bias of k, is left out. Its rows sum to 1, so that the output layer is a part of v
    and their biases one constant.

    Attributes:
        weight: [3 c, c], of q, k and v with the output layer in it.
        bias: [3 c], that of q and zeros.
        pending, out_bias: [c], as in ResNet.
        amplitude: v is multiplied by it: the scale in which the sum is held.
    """

    norm: Norm
    weight: Tensor
    bias: Tensor
    pending: Tensor
    out_bias: Tensor
    amplitude: float

    def forward(self, x: Tensor, stats: Tensor, kept: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The sum and its statistics, as ResNet.forward."""
        q, k, v = self._projected(x, stats)
        answer = torch.empty_like(q)
        for rows in _row_slices(q):
            answer[:, rows] = _product(self._shares(q[:, rows], k), v, self.amplitude)
        kept += [x, stats]
        return moments(_pixels(answer, x), self.out_bias, self.norm.groups, x)

    def backward(self, grad: Tensor, kept: list[Tensor]) -> Tensor:
        """The gradient with respect to x. Scores are made again, a slice of rows at a time."""
        stats, x = kept.pop(), kept.pop()
        q, k, v = self._projected(x, stats)
        rows_grad, wide = _tokens(grad), _wide(grad)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros_like(k, dtype=torch.promote_types(k.dtype, torch.float32)) for _ in range(2))
        for rows in _row_slices(q):
            shares, grad_rows = self._shares(q[:, rows], k), rows_grad[:, rows]
            grad_v += _product(shares.mT, grad_rows, self.amplitude)
            grad_shares = _product(grad_rows, v.mT, self.amplitude)
            grad_scores = torch._softmax_backward_data(grad_shares.to(wide), shares.to(wide), -1, wide).to(q.dtype)
            grad_q[:, rows] = _product(grad_scores, k, self._scale)
            grad_k += _product(grad_scores.mT, q[:, rows], self._scale)
        joined = torch.cat([grad_q, grad_k.to(q.dtype), grad_v.to(q.dtype)], -1)
        grad_normal = _pixels((joined.to(wide) @ self.weight.to(wide)).to(q.dtype), x)
        return backward(grad_normal, x, self.pending, stats, self.norm, silu=False, skip=grad)

    @property
    def _scale(self) -> float:
        return self.weight.shape[1] ** -0.5

    def _projected(self, x: Tensor, stats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, [b, h * w, c] each."""
        tokens = _tokens(normalise(x, self.pending, stats, self.norm, silu=False))
        wide = _wide(tokens)
        projected = functional.linear(tokens.to(wide), self.weight.to(wide), self.bias.to(wide)).to(tokens.dtype)
        q, k, v = projected.chunk(3, -1)
        return q, k, v

    def _shares(self, q: Tensor, k: Tensor) -> Tensor:
        """The softmax, [b, rows, h * w]."""
        scores = _product(q, k.mT, self._scale)
        return torch.softmax(scores.to(_wide(scores)), -1).to(scores.dtype)


def make_conv(weight: Tensor, bias: Tensor, stride: int, dtype: torch.dtype) -> Conv:
    """A Conv that computes in `dtype` from exact `weight` and `bias`."""
    rounded = weight.to(dtype, memory_format=torch.channels_last)
    turned = weight.flip(2, 3).transpose(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
    return Conv(rounded, turned if stride == 1 else rounded, bias, stride)


def _conv(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    wide = _wide(x)
    answer = functional.conv2d(x.to(wide), weight.to(wide), None, stride, padding)
    return answer.to(x.dtype, memory_format=torch.channels_last)


def _padded(x: Tensor) -> Tensor:
    """x [b, c, h, w] with a row of zeros below and a column to the right."""
    b, c, h, w = x.shape
    padded = torch.empty((b, c, h + 1, w + 1), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    padded[:, :, h:] = 0
    padded[:, :, :, w:] = 0
    _copy_pixels(padded[:, :, :h, :w], x)
    return padded


def _cropped(x: Tensor) -> Tensor:
    """x [b, c, h, w] without its last row and column."""
    part = x[:, :, :-1, :-1]
    cropped = torch.empty_like(part, memory_format=torch.channels_last)
    _copy_pixels(cropped, part)
    return cropped


def _copy_pixels(to: Tensor, of: Tensor) -> None:
    """Copy pictures [b, c, h, w], or parts of such, into others. torch copies parts number by number: channels-last
    ones are told as numbers of 16 bytes, where a pixel holds a whole number of these."""
    pixels = [x.permute(0, 2, 3, 1) for x in (to, of)]
    if all(_fill_wide_numbers(x) for x in pixels):
        pixels = [x.view(torch.complex128) for x in pixels]
    pixels[0].copy_(pixels[1])


def _fill_wide_numbers(pixels: Tensor) -> bool:
    """Whether pictures [b, h, w, c] can be told as numbers of 16 bytes."""
    steps = (pixels.shape[3], *pixels.stride()[:3], pixels.storage_offset())
    return pixels.stride(3) == 1 and all(step * pixels.element_size() % 16 == 0 for step in steps)


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * a @ b for [b, n, m] and [b, m, l], scaled before it is rounded, so that it overflows no earlier."""
    wide = _wide(a)
    nothing = torch.empty((), dtype=wide, device=a.device).expand(a.shape[0], a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a.to(wide), b.to(wide), beta=0, alpha=scale).to(a.dtype)


def _row_slices(q: Tensor) -> list[slice]:
    """Slices of the rows of q [b, n, c] whose scores fit into MOST_SCORES."""
    b, n, _ = q.shape
    height = max(MOST_SCORES // (b * n), 1)
    return [slice(start, min(start + height, n)) for start in range(0, n, height)]


def _wide(x: Tensor) -> torch.dtype:
    """What the maths of `x` runs in: its own dtype, but on a CPU float32 at least."""
    return x.dtype if x.is_cuda else torch.promote_types(x.dtype, torch.float32)


def _tokens(x: Tensor) -> Tensor:
    """[b, c, h, w], channels-last, as [b, h * w, c] without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _pixels(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of _tokens."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
