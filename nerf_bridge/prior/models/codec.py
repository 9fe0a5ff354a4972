"""Images to what a prior noises, and back: pixels, or latents of an autoencoder."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.models.frozen_encoder import FrozenEncoder
from nerf_bridge.prior.models.vae_weights import encoder_of

logger = logging.getLogger(__name__)


class Codec(Protocol):
    """Between images [b, 3, h, w] in 0..1 and x."""

    image_size: int
    multiple: int  # of which image_size is one
    x_limit: float | None  # bounds of x, as Prior has them

    def place(self, device: torch.device, recompute: bool) -> None:
        """Move to `device`; with `recompute` keep less for the backward pass."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """x of `images` of any size; differentiable in the images."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images in 0..1 of `x`."""
        ...


class PixelCodec:
    """x is the image itself in -1..1."""

    x_limit: float | None = 1.0

    def __init__(self, image_size: int, multiple: int):
        self.image_size = image_size
        self.multiple = multiple

    def place(self, device: torch.device, recompute: bool) -> None:
        """Nothing to move nor to keep."""

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
        vae: diffusers' AutoencoderKL; decodes in its own dtype. Once placed it has no encoder of its own any more.
        encoder: images in 0..1 to mean latents, from the weights of `vae`; None until it is placed.
    """

    x_limit: float | None = None

    def __init__(
        self,
        vae: Any,
        encoder_dtype: torch.dtype,
        graphs: bool,
        image_size: int,
        multiple: int,
        scale: float,
        shift: float,
    ):
        """Take over an autoencoder whose structure has been checked.

        Args:
            encoder_dtype: that the encoder computes in, where that is precise enough.
            graphs: whether it is recorded as CUDA graphs, which takes a GPU.
        """
        self.vae = vae.eval().requires_grad_(False)
        self.encoder: FrozenEncoder | None = None
        self.encoder_dtype = encoder_dtype
        self.graphs = graphs
        self.image_size = image_size
        self.multiple = multiple
        self.scale = scale
        self.shift = shift

    def place(self, device: torch.device, recompute: bool) -> None:
        """Move the autoencoder; with `recompute` the encoder's blocks are computed again in the backward pass.

        The first time the encoder is made on `device`, and tried out there.
        """
        self.vae.to(device)
        if self.encoder is None:
            encoder, remark = encoder_of(self.vae, self.encoder_dtype)
            if remark is not None:
                logger.warning("%s", remark)
            self.vae.encoder = self.vae.quant_conv = None  # ours has the weights
            self.encoder = FrozenEncoder(encoder, self.graphs)
        self.encoder.spare(recompute)

    def encode(self, images: Tensor) -> Tensor:
        """Latents [b, c, s / f, s / f] in the images' dtype, float32 at least."""
        assert self.encoder is not None, "a codec is placed before it encodes"
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
