"""A prior put together from its four parts: noise process, codec, network and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from nerf_bridge.memory.ladder import RUNGS, Rung
from nerf_bridge.prior.models.codec import Codec
from nerf_bridge.prior.models.denoisers import Denoiser
from nerf_bridge.prior.models.fast_network import FastNetwork
from nerf_bridge.prior.models.noise import NoiseProcess
from nerf_bridge.prior.models.sparing import stream_weights
from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings, ViewCondition


class DiffusersPrior:
    """A Prior of any family.

    Attributes:
        process: its noise levels, and what its network's answer means.
        codec: images to x and back.
        denoiser: the network.
        words: prompts to embeddings.
        device: where it computes. The networks come there when they are first used, or by `place`: after the prompts
            are encoded, so that text encoders and network are never there together.
        compile: on a GPU, "auto" and "on" run the network as a FastNetwork, unless its weights are streamed.
    """

    def __init__(
        self,
        about: PriorInfo,
        process: NoiseProcess,
        codec: Codec,
        denoiser: Denoiser,
        words: Callable[[Sequence[str]], PromptEmbeddings],
        device: torch.device,
        compile: Literal["auto", "on", "off"],
    ):
        self.about = about
        self.name = about.name
        self.process = process
        self.codec = codec
        self.denoiser = denoiser
        self.words = words
        self.device = device
        self.compile = compile
        self.rung: Rung | None = None  # until the networks are where they compute
        self.image_size = codec.image_size
        self.x_limit = codec.x_limit
        self.knows_cameras = denoiser.knows_cameras
        self.view_group = denoiser.view_group

    def info(self) -> PriorInfo:
        """Name, licence, origin and hashes."""
        return self.about

    def place(self, rung: Rung) -> None:
        """Put the networks where they compute, as sparing as `rung` says; from there on only more so.

        What was recorded of them on another rung is given back.
        """
        if rung == self.rung:
            return
        self.codec.place(self.device, rung.recompute_encoder)
        self._place_network(rung)
        smaller = self.image_size // rung.image_divisor
        self.codec.image_size = smaller if smaller % self.codec.multiple == 0 else self.image_size
        self.rung = rung

    def _place_network(self, rung: Rung) -> None:
        network = self.denoiser.network
        if rung.stream_network:
            if self.rung is None or not self.rung.stream_network:
                self.denoiser.network = network.released() if isinstance(network, FastNetwork) else network
                stream_weights(self.denoiser.network, self.device)
        elif isinstance(network, FastNetwork):
            network.forget()
        else:
            network.to(self.device)
            if self.device.type == "cuda" and self.compile != "off":
                self.denoiser.network = FastNetwork(network, self.compile)

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        """Embeddings of `prompts`; the text encoders take memory only while this runs, and only for new prompts."""
        return self.words(prompts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in 0..1 as x; differentiable in the images, and in nothing else."""
        self._placed()
        return self.codec.encode(images)

    @torch.no_grad()
    def decode_image(self, x: Tensor) -> Tensor:
        """Images in 0..1 of x."""
        self._placed()
        return self.codec.decode(x)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at `t` [b]."""
        return self.process.alpha_sigma(t)

    @torch.no_grad()
    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """Epsilon in the dtype of `noised`, whatever the network computes in and answers."""
        rung, n = self._placed(), len(noised)
        size = self.view_group if rung.one_prompt else n
        answers = []
        for start in range(0, n, size):
            part = slice(start, start + size)
            views = None if condition is None else condition.select(part)
            rows = embeddings if size == n else embeddings.select(part)
            answers.append(self.denoiser(noised[part], self.process.network_time(t[part]), rows, views))
        return self.process.to_noise(torch.cat(answers).to(noised.dtype), noised, t)

    def _placed(self) -> Rung:
        """The rung that the networks were placed for; the first, now, when they were not yet."""
        if self.rung is None:
            self.place(RUNGS[0])
        assert self.rung is not None
        return self.rung
