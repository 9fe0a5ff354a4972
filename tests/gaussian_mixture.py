"""A prior with a closed-form answer: Gaussian mixtures in the plane, one mixture for each prompt.

x is [b, 2, 1, 1]. Each component has a name; a prompt stands for the components whose names it holds, in proportion to
how it weighs them, and for all of them when it holds none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings, ViewCondition


@dataclass(frozen=True)
class Component:
    """One Gaussian of the mixture, isotropic."""

    name: str
    mean: tuple[float, float]
    std: float
    weight: float = 1.0


class GaussianMixturePrior:
    """A Prior whose noise prediction is exact, in float64."""

    name = "gaussian mixture"
    image_size = 1
    view_group = 1
    x_limit = None

    def __init__(self, components: list[Component], knows_cameras: bool = True):
        self.components = components
        self.knows_cameras = knows_cameras
        self.means = torch.tensor([c.mean for c in components], dtype=torch.float64)  # [m, 2]
        self.stds = torch.tensor([c.std for c in components], dtype=torch.float64)  # [m]
        self.calls: list[tuple[int, ViewCondition | None]] = []  # (batch, condition) of every predict_noise

    def info(self) -> PriorInfo:
        return PriorInfo(self.name, "none", "closed form", {})

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        tokens = torch.stack([self._mixture_weights(prompt) for prompt in prompts])[:, None]
        return PromptEmbeddings(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def decode_image(self, x: Tensor) -> Tensor:
        return x

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)

    @torch.no_grad()
    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """-sigma * grad log p_t(noised), with p_t = sum_i w_i N(alpha * mean_i, alpha^2 std_i^2 + sigma^2)."""
        assert len(embeddings) == noised.shape[0] == t.shape[0]
        self.calls.append((noised.shape[0], condition))
        alpha, sigma = self.alpha_sigma(t.double())
        points = noised.double().reshape(-1, 1, 2)
        variance = (alpha[:, None] * self.stds) ** 2 + sigma[:, None] ** 2  # [b, m]
        offset = points - alpha[:, None, None] * self.means  # [b, m, 2]
        log_density = -offset.square().sum(-1) / (2 * variance) - variance.log()
        share = torch.softmax(log_density + embeddings.tokens[:, 0].log(), dim=1)  # [b, m]
        score = -(share / variance)[..., None] * offset
        return (-sigma[:, None] * score.sum(1)).reshape(noised.shape)

    def _mixture_weights(self, prompt: str) -> Tensor:
        named = [c.name in prompt for c in self.components]
        weights = [c.weight if held or not any(named) else 0.0 for c, held in zip(self.components, named, strict=True)]
        return torch.tensor(weights, dtype=torch.float64) / sum(weights)
