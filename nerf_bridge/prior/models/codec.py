"""Images to what a prior noises, and back: pixels, or latents of an autoencoder."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.models.frozen_encoder import FrozenEncoder


class Codec(Protocol):
    """Between images [b, 3, h, w] in 0..1 and x."""

    image_size: int

    def encode(self, images: Tensor) -> Tensor:
        """x of `images` of any size; differentiable in the images."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images in 0..1 of `x`."""
        ...


class PixelCodec:
    """x is the image itself in -1..1."""

    def __init__(self, image_size: int):
        self.image_size = image_size

    def encode(self, images: Tensor) -> Tensor:
        """Images brought to the prior's size, in -1..1."""
        return 2 * resized(images, self.image_size) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Pixels in -1..1 as images in 0..1."""
        return (0.5 * x + 0.5).clamp(0, 1)


class LatentCodec:
    """x is the mean latent of an autoencoder, (z - shift) * scale.

    The mean, and not a sample: x stays a function of the image, and the spread is far below the noise that is added.

    Attributes:
        encoder: images in 0..1 to mean latents.
        vae: diffusers' AutoencoderKL, or anything with the same `decode`; computes in its own dtype.
    """

    def __init__(self, encoder: FrozenEncoder, vae: Any, image_size: int, scale: float, shift: float):
        self.encoder = encoder
        self.vae = vae.eval().requires_grad_(False)
        self.image_size = image_size
        self.scale = scale
        self.shift = shift

    def encode(self, images: Tensor) -> Tensor:
        """Latents [b, c, s / f, s / f] in the images' dtype, float32 at least."""
        z = self.encoder(resized(images, self.image_size))
        return (z.to(torch.promote_types(images.dtype, torch.float32)) - self.shift) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Images in 0..1 in the dtype of x."""
        z = (x / self.scale + self.shift).to(next(self.vae.parameters()).dtype)
        return (0.5 * self.vae.decode(z).sample.to(x.dtype) + 0.5).clamp(0, 1)


def resized(images: Tensor, size: int) -> Tensor:
    """`images` [b, 3, h, w] at `size` x `size`, bilinear, without aliasing; differentiable."""
    if images.shape[2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
