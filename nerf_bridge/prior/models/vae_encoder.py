"""The encoder of Stable Diffusion's autoencoder (Rombach et al. 2022), written for one use: the latents' mean of an
image and the gradient with respect to that image, in half precision, with the weights as constants.

What half precision could overflow in is the sum that runs through the residual blocks, and the two convolutions of a
block. Every reader of these is a group norm or linear, and a group norm does not see a scale: so the sum, and each
block's inner value, can be held multiplied by a power of two (`vae_weights`), and the latents stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.models.group_norm import backward, moments, normalise
from nerf_bridge.prior.models.norm import Norm
from nerf_bridge.prior.models.vae_layers import Attention, Conv, ResNet

INPUT_CHANNELS = 8  # the image's three, and zeros


@dataclass(frozen=True)
class Level:
    """Residual blocks at one size, and the convolution to half of it, which the last level has not."""

    blocks: tuple[ResNet, ...]
    down: Conv | None


@dataclass(frozen=True)
class Encoder:
    """All constants of an encoder.

    Attributes:
        conv_in: of the image, padded to INPUT_CHANNELS.
        amplitude: of the image: the scale in which the sum is held.
        levels: from the image's size to the latents'.
        middle: residual block, attention (if there is one), residual block.
        norm_out, pending: in front of conv_out, and what the last sum still wants.
        conv_out: to the mean, the quantisation's convolution in it; its weight is padded with zero channels to eights.
        dtype: of the activations.
        grad_peak: to which the latents' gradient is scaled on its way through half precision.
    """

    conv_in: Conv
    amplitude: float
    levels: tuple[Level, ...]
    middle: tuple[ResNet | Attention, ...]
    norm_out: Norm
    pending: Tensor
    conv_out: Conv
    dtype: torch.dtype
    grad_peak: float

    @property
    def factor(self) -> int:
        """Pixels of the image along a latent's side."""
        return 2 ** (len(self.levels) - 1)

    def sparing(self, recompute: bool) -> Encoder:
        """The same constants; with `recompute` the residual blocks keep less and compute again in `backward`."""

        def part(whole: ResNet | Attention) -> ResNet | Attention:
            return replace(whole, recompute=recompute) if isinstance(whole, ResNet) else whole

        levels = (
            Level(tuple(replace(block, recompute=recompute) for block in level.blocks), level.down)
            for level in self.levels
        )
        return replace(self, levels=tuple(levels), middle=tuple(part(whole) for whole in self.middle))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mean latents of `images` and what `backward` wants.

        Args:
            images: [b, 3, h, w] in 0..1; h and w multiples of `factor`.

        Returns:
            z [b, c, h / factor, w / factor] in float32 (float64 where dtype is); tensors for `backward`, once.
        """
        kept: list[Tensor] = []
        groups = self.norm_out.groups
        h, stats = moments(self.conv_in.forward(self._prepared(images)), self.conv_in.bias, groups)
        for level in self.levels:
            for block in level.blocks:
                h, stats = block.forward(h, stats, kept)
            if level.down is not None:
                h, stats = moments(level.down.forward(h), level.down.bias, groups)
        for part in self.middle:
            h, stats = part.forward(h, stats, kept)
        kept += [h, stats]
        z = self.conv_out.forward(normalise(h, self.pending, stats, self.norm_out, silu=True))
        bias = self.conv_out.bias
        return z[:, : len(bias)].to(bias.dtype) + bias[:, None, None], kept

    def backward(self, grad_z: Tensor, kept: list[Tensor]) -> Tensor:
        """Gradient with respect to the images, [b, 3, h, w] in the dtype of `grad_z` [b, c, h / f, w / f].

        It takes the tensors out of `kept` one after the other, so that their memory is free for what follows.

        It is linear in `grad_z`, which is brought to a size that half precision holds, and back at the end.
        """
        peak = (grad_z.abs().amax() / self.grad_peak).clamp_min(torch.finfo(grad_z.dtype).tiny)
        unused = self.conv_out.weight.shape[0] - grad_z.shape[1]
        grad = functional.pad(grad_z / peak, (0, 0, 0, 0, 0, unused))
        grad = grad.to(self.dtype, memory_format=torch.channels_last)
        stats, h = kept.pop(), kept.pop()
        grad = backward(self.conv_out.backward(grad), h, self.pending, stats, self.norm_out, silu=True)
        for part in reversed(self.middle):
            grad = part.backward(grad, kept)
        for level in reversed(self.levels):
            if level.down is not None:
                grad = level.down.backward(grad)
            for block in reversed(level.blocks):
                grad = block.backward(grad, kept)
        return (2 * self.amplitude * peak) * self.conv_in.backward(grad)[:, :3].to(grad_z.dtype)

    def _prepared(self, images: Tensor) -> Tensor:
        """The images in -1..1, times the amplitude, with zeros as further channels."""
        b, channels, height, width = images.shape
        shape = (b, INPUT_CHANNELS, height, width)
        padded = torch.zeros(shape, dtype=self.dtype, device=images.device).to(memory_format=torch.channels_last)
        padded[:, :channels] = self.amplitude * (2 * images - 1)
        return padded
