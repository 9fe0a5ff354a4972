"""A prior put together from its four parts: noise process, codec, network and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nerf_bridge.prior.models.codec import Codec
from nerf_bridge.prior.models.denoisers import Denoiser
from nerf_bridge.prior.models.noise import NoiseProcess
from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings, ViewCondition


class DiffusersPrior:
    """A Prior of any family.

    Attributes:
        process: its noise levels, and what its network's answer means.
        codec: images to x and back.
        denoiser: the network.
        words: prompts to embeddings.
    """

    def __init__(
        self,
        about: PriorInfo,
        process: NoiseProcess,
        codec: Codec,
        denoiser: Denoiser,
        words: Callable[[Sequence[str]], PromptEmbeddings],
    ):
        self.about = about
        self.name = about.name
        self.process = process
        self.codec = codec
        self.denoiser = denoiser
        self.words = words
        self.image_size = codec.image_size
        self.knows_cameras = denoiser.knows_cameras
        self.view_group = denoiser.view_group

    def info(self) -> PriorInfo:
        """Name, licence, origin and hashes."""
        return self.about

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        """Embeddings of `prompts`; the text encoders take memory only while this runs, and only for new prompts."""
        return self.words(prompts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in 0..1 as x; differentiable in the images, and in nothing else."""
        return self.codec.encode(images)

    @torch.no_grad()
    def decode_image(self, x: Tensor) -> Tensor:
        """Images in 0..1 of x."""
        return self.codec.decode(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at `t` [b]."""
        return self.process.alpha_sigma(t)

    @torch.no_grad()
    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """Epsilon in the dtype of `noised`, whatever the network computes in and answers."""
        answer = self.denoiser(noised, self.process.network_time(t), embeddings, condition)
        return self.process.to_noise(answer.to(noised.dtype), noised, t)
