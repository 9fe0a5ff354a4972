"""A prior that knows the truth: the exact noise prediction for a world that holds a few known objects.

For an image noised from one of a finite set of pictures x_i (of the same camera, with shares w_i), the best estimate of
the clean image is the mean of the x_i weighted by w_i * exp(-|x_t - alpha x_i|^2 / (2 sigma^2)), and the noise follows
from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from oracle_objects import OBJECTS, KnownObject
from torch import Tensor
from torch.nn import functional

from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings, ViewCondition
from nerf_bridge.scene.cameras import Cameras, orbit_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, FaceColors, shade_mesh

FLAW_WORDS = {"oversaturated", "foggy", "hazy", "blurry", "pixelated", "low-resolution"}
SHARE_OF_FLAWS = 0.9
UNKNOWN_VIEWS = 12  # azimuths that stand for an unknown camera


class OraclePrior:
    """The exact-score prior of `objects`, in pixels -1..1 on the cosine schedule.

    A prompt stands for the objects whose nouns it says, or for all when it says none; with a word of FLAW_WORDS, mostly
    for blurred and foggy pictures of them.
    """

    name = "oracle"
    knows_cameras = True
    view_group = 1
    x_limit = 1.0

    def __init__(self, objects: Sequence[KnownObject] = OBJECTS, image_size: int = 64, supersample: int = 3):
        self.objects = tuple(objects)
        self.image_size = image_size
        self.supersample = supersample
        self._unknown_views: Tensor | None = None

    def info(self) -> PriorInfo:
        return PriorInfo(self.name, "none", "exact score of known objects", {})

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        """One token a prompt: the share of each object's clean pictures, then of its flawed ones, [n, 1, 2m]."""
        tokens = torch.stack([self._shares(prompt) for prompt in prompts])[:, None]
        return PromptEmbeddings(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def encode_image(self, images: Tensor) -> Tensor:
        """As the embedded prior's: each pixel is the mean of its part of a larger image."""
        return 2 * functional.avg_pool2d(images, images.shape[-1] // self.image_size) - 1

    def decode_image(self, x: Tensor) -> Tensor:
        return (0.5 * x + 0.5).clamp(0, 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)

    @torch.no_grad()
    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        alpha, sigma = (level.view(-1, 1) for level in self.alpha_sigma(t.float()))
        log_shares = embeddings.tokens[:, 0].log()  # [b, 2m]
        pictures = self._pictures(len(noised), condition)  # b times [2m, views, 3, s, s]
        clean = torch.stack(
            [_posterior_mean(*row) for row in zip(pictures, noised, alpha, sigma, log_shares, strict=True)]
        )
        return (noised - alpha[..., None, None] * clean) / sigma[..., None, None]

    def render(self, condition: ViewCondition) -> Tensor:
        """Pictures [m, b, 3, s, s] in 0..1 of every object from every camera, before its background."""
        return _over(self._layers(condition.cameras.c2w, condition.cameras.fovy_rad), condition.background)

    def _shares(self, prompt: str) -> Tensor:
        words = set(re.findall(r"[a-z-]+", prompt.lower()))
        named = torch.tensor([thing.noun in words for thing in self.objects], dtype=torch.float32)
        shares = named / named.sum() if named.any() else torch.full_like(named, 1 / len(named))
        flawed = SHARE_OF_FLAWS if words & FLAW_WORDS else 0.0
        return torch.cat([(1 - flawed) * shares, flawed * shares])

    def _pictures(self, b: int, condition: ViewCondition | None) -> list[Tensor]:
        """For each image what it may be: [2m, views, 3, s, s] in -1..1; one view where the camera is known."""
        white = torch.ones(b, 3)
        background = white if condition is None else condition.background
        known = torch.zeros(b, dtype=torch.bool)
        if condition is not None:
            known = torch.ones(b, dtype=torch.bool) if condition.camera_known is None else condition.camera_known
            rendered = self.render(condition)
        return [
            with_flaws(rendered[:, i : i + 1] if known[i] else self._from_anywhere(background[i])) for i in range(b)
        ]

    def _from_anywhere(self, background: Tensor) -> Tensor:
        if self._unknown_views is None:
            azimuth = torch.arange(UNKNOWN_VIEWS) * (2 * math.pi / UNKNOWN_VIEWS)
            same = torch.ones_like(azimuth)
            cameras = orbit_cameras(azimuth, math.radians(15) * same, 3.0 * same, math.radians(40) * same)
            self._unknown_views = self._layers(cameras.c2w, cameras.fovy_rad)
        return _over(self._unknown_views, background.expand(UNKNOWN_VIEWS, 3))

    def _layers(self, c2w: Tensor, fovy_rad: Tensor) -> Tensor:
        """Premultiplied colour and coverage [m, b, 4, s, s] in 0..1; a camera that comes twice is rendered once."""
        views, back = torch.unique(torch.cat([c2w.flatten(1), fovy_rad[:, None]], 1), dim=0, return_inverse=True)
        unknown = torch.full((len(views),), math.nan)  # the renderer needs no angles
        cameras = Cameras(views[:, :16].reshape(-1, 4, 4), views[:, 16], unknown, unknown, unknown)
        backend = resolve_backend("auto", "cpu")
        layers = []
        for thing in self.objects:
            vertices, faces, colors = (torch.from_numpy(values) for values in thing.mesh)
            mesh = ColoredMesh(vertices, faces, FaceColors(colors.float() / 255))
            images, coverage = shade_mesh(
                mesh, cameras, self.image_size, backend, (0.0, 0.0, 0.0), self.supersample, lit=True
            )
            layers.append(torch.cat([images, coverage[..., None]], dim=-1).permute(0, 3, 1, 2))
        return torch.stack(layers)[:, back]


def _over(layers: Tensor, background: Tensor) -> Tensor:
    return layers[:, :, :3] + (1 - layers[:, :, 3:]) * background[:, :, None, None]


def with_flaws(pictures: Tensor) -> Tensor:
    """[m, v, 3, s, s] in 0..1 to [2m, v, 3, s, s] in -1..1: as they are, then blurred and in fog."""
    padded = torch.nn.functional.pad(pictures.flatten(0, 1), (2, 2, 2, 2), mode="replicate")
    blurred = torch.nn.functional.avg_pool2d(padded, 5, stride=1).reshape(pictures.shape)
    return 2 * torch.cat([pictures, torch.lerp(blurred, torch.full_like(blurred, 0.8), 0.2)]) - 1


def _posterior_mean(pictures: Tensor, noised: Tensor, alpha: Tensor, sigma: Tensor, log_shares: Tensor) -> Tensor:
    """Mean of `pictures` [2m, v, 3, s, s] given `noised` [3, s, s]; the views of an object share its part evenly."""
    squared = (noised - alpha * pictures).square().flatten(2).sum(-1)  # [2m, v]
    logits = log_shares[:, None] - squared / (2 * sigma**2)
    weights = torch.softmax(logits.flatten(), 0)
    return torch.einsum("i,ichw->chw", weights, pictures.flatten(0, 1))
