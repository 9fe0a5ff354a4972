"""What the prior has learned of cameras and words: how much worse it denoises when it is told something wrong.

    python -m nerf_bridge.prior.probe --library library.npz

prints the rise of the denoising error with the azimuth wrong by 90 and by 180 degrees, the elevation wrong by 30
degrees, and the words of another object, on objects whose silhouettes tell these apart; told no design. Then the error
of those whose noun has several models, told their design, and its rise with another model's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.captions import CaptionTable, build_caption_table, caption_variants
from nerf_bridge.prior.data.design_masks import design_masks
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.pack import load_library
from nerf_bridge.prior.designs import DESIGNS, add_designs, design_vectors
from nerf_bridge.prior.embedded import load_embedded
from nerf_bridge.prior.text import TextEncoder
from nerf_bridge.prior.unet import Condition, UNet, camera_features, ray_map, schedule
from nerf_bridge.prior.views import render_model
from nerf_bridge.scene.cameras import Cameras, orbit_cameras

LARGEST_OVERLAP = 0.8  # IoU of true silhouettes below which an object counts as asymmetric
TIME = 0.9
IMAGE_SIZE = 64  # pixels, as the prior's


@dataclass(frozen=True)
class Told:
    """What the network is told of each image: azimuth and elevation [n], words [n, length, width] with mask."""

    azimuth_rad: Tensor
    elevation_rad: Tensor
    text: Tensor
    text_mask: Tensor


@dataclass(frozen=True)
class ToldDesigns:
    """The truth with a design of each image's model, and with another's; which captions fit `several`, bool [n]."""

    own: Told
    other: Told
    several: Tensor


@dataclass(frozen=True)
class AzimuthProbe:
    """Images [n, 3, s, s] in -1..1 of asymmetric objects, what is true of them, and one fixed noise for all.

    Background is mid grey, distance 3, field of view 40 degrees. `captions`: what each image shows; `designs`: None
    where they are not known, or no caption fits several models.
    """

    images: Tensor
    noise: Tensor
    truth: Told
    captions: tuple[str, ...]
    designs: ToldDesigns | None = None

    @staticmethod
    def build(
        models: Sequence[LibraryModel],
        encoder: TextEncoder,
        device: torch.device,
        n_images: int = 192,
        seed: int = 17,
        designs: Tensor | None = None,
    ) -> AzimuthProbe:
        """Take views of `models` in a random order until `n_images` are found, at most two of a model.

        Args:
            designs: of the own captions of `models`, as bits, [models], for a network that was told them in training.

        Raises:
            UserError: no view is asymmetric.
        """
        generator = torch.Generator().manual_seed(seed)
        images: list[Tensor] = []
        shown: list[LibraryModel] = []
        rows: list[int] = []
        angles: list[tuple[float, float]] = []
        for i in torch.randperm(2 * len(models), generator=generator).tolist():
            model = models[i % len(models)]
            azimuth = float(torch.rand((), generator=generator)) * 2 * math.pi
            elevation = float(torch.rand((), generator=generator)) * 0.5
            image = _asymmetric_view(model, azimuth, elevation)
            if image is not None and len(images) < n_images:
                images.append(image)
                shown.append(model)
                rows.append(i % len(models))
                angles.append((azimuth, elevation))
        if not shown:
            raise UserError(f"none of the {len(models)} models looks different enough from other sides for the probe")
        captions = tuple(own_caption(model) for model in shown)
        text, mask = encoder(captions)
        azimuths, elevations = torch.tensor(angles, device=device).unbind(-1)
        stacked = torch.stack(images)
        noise = torch.randn(stacked.shape, generator=generator)
        truth = Told(azimuths, elevations, text.to(device), mask.to(device))
        told = None if designs is None else _told_designs(truth, designs.to(device)[rows])
        return AzimuthProbe(stacked.to(device), noise.to(device), truth, captions, told)

    def measure(self, network: UNet) -> dict[str, float]:
        """Error of v at TIME when told the truth, and its relative rise when told something wrong."""
        truth = self.truth
        shifted = torch.arange(len(self.images), device=self.images.device).roll(len(self.images) // 2)
        wrong = {
            "azimuth_90": replace(truth, azimuth_rad=truth.azimuth_rad + math.pi / 2),
            "azimuth_180": replace(truth, azimuth_rad=truth.azimuth_rad + math.pi),
            "elevation_30": replace(truth, elevation_rad=truth.elevation_rad + math.pi / 6),
            "words": replace(truth, text=truth.text[shifted], text_mask=truth.text_mask[shifted]),
        }
        right = self._error(network, truth)
        figures = {"error": right}
        figures |= {f"rise_{name}": self._error(network, told) / right - 1 for name, told in wrong.items()}
        if self.designs is not None:
            own, other = (
                float(self.errors(network, told, TIME)[self.designs.several].mean())
                for told in (self.designs.own, self.designs.other)
            )
            figures |= {"error_design": own, "rise_design": other / own - 1}
        return figures

    def _error(self, network: UNet, told: Told) -> float:
        return float(self.errors(network, told, TIME).mean())

    @torch.no_grad()
    def errors(self, network: UNet, told: Told, time: float) -> Tensor:
        """Mean squared error of v [n] of each image at `time` when the network is told `told`."""
        parameter = next(network.parameters())
        device, dtype = parameter.device, parameter.dtype
        t = torch.full((len(self.images),), time, device=device)
        alpha, sigma = (level[:, None, None, None] for level in schedule(t))
        noised = alpha * self.images + sigma * self.noise
        target = alpha * self.noise - sigma * self.images
        condition = _condition(told, network.config.image_size // 2, dtype)
        found = []
        for rows in torch.arange(len(self.images), device=device).split(32):
            part = Condition(
                condition.text[rows], condition.text_mask[rows], condition.camera[rows], condition.rays[rows]
            )
            v = network(noised[rows].to(dtype), t[rows], part).float()
            found.append(((v - target[rows]) ** 2).mean((1, 2, 3)))
        return torch.cat(found)


def _told_designs(truth: Told, masks: Tensor) -> ToldDesigns | None:
    """`truth` with the first design of `masks` [n], and with the first that is none of them; None: there are none."""
    bits = (masks[:, None] >> torch.arange(DESIGNS, device=masks.device)) & 1
    several = (bits.amax(1) == 1) & (bits.amin(1) == 0)
    vectors = design_vectors(truth.text.shape[-1]).to(masks.device)

    def telling(design: Tensor) -> Told:
        text, mask = add_designs(truth.text, truth.text_mask, design, vectors)
        return replace(truth, text=text, text_mask=mask)

    own, other = telling(bits.argmax(1) + 1), telling(bits.argmin(1) + 1)
    return ToldDesigns(own, other, several) if bool(several.any()) else None


def own_designs(captions: CaptionTable, models: Sequence[LibraryModel], designs: Tensor) -> Tensor:
    """The designs that mean each model when it is called by its own caption, as bits, [models] int64; 0 where no
    caption may say its colour. `designs`: of all captions, as data/design_masks.py has them."""
    named = [captions.texts[i] for i in captions.caption_index[:, 0, 0, 0]]
    own = [text == own_caption(model) for text, model in zip(named, models, strict=True)]
    return designs[:, 0, 0, 0] * torch.tensor(own, device=designs.device)


def own_caption(model: LibraryModel) -> str:
    """What a model in its own colours is called: with its colour where that is unmistakable, as in training."""
    return caption_variants(model.noun, model.article, model.base_colour_word)[0]


def _condition(told: Told, size: int, dtype: torch.dtype) -> Condition:
    cameras = probe_cameras(told.azimuth_rad, told.elevation_rad)
    grey = torch.full((len(cameras), 3), 0.5, device=told.text.device)
    known = torch.ones(len(cameras), dtype=torch.bool, device=told.text.device)
    camera = camera_features(
        cameras.azimuth_rad, cameras.elevation_rad, cameras.distance, cameras.fovy_rad, grey, known
    )
    rays = ray_map(cameras.c2w, cameras.fovy_rad, size)
    return Condition(told.text.to(dtype), told.text_mask, camera.to(dtype), rays.to(dtype))


def probe_cameras(azimuth_rad: Tensor, elevation_rad: Tensor) -> Cameras:
    """The cameras of the probe's images, [n] each."""
    same = torch.ones_like(azimuth_rad)
    return orbit_cameras(azimuth_rad, elevation_rad, 3 * same, math.radians(40) * same)


def _asymmetric_view(model: LibraryModel, azimuth: float, elevation: float) -> Tensor | None:
    """The view [3, s, s] in -1..1 on grey, or None where the object's outline is much the same from other sides."""
    angles = torch.tensor([azimuth, azimuth + math.pi / 2, azimuth + math.pi])
    cameras = probe_cameras(angles, torch.full_like(angles, elevation))
    layers = render_model(model, cameras, IMAGE_SIZE)
    solid = layers[:, 7] > 127
    overlap = max(float((solid[0] & other).sum() / (solid[0] | other).sum().clamp(min=1)) for other in solid[1:])
    if overlap >= LARGEST_OVERLAP or solid[0].float().mean() < 0.05:
        return None
    return on_grey(layers[:1])[0]


def on_grey(layers: Tensor) -> Tensor:
    """Images [n, 3, s, s] in -1..1 on mid grey, in the models' own colours, of layers [n, 8, s, s] uint8."""
    x = layers.float() / 255
    return 2 * (x[:, 0:3] + x[:, 3:6] + (1 - x[:, 7:8]) * 0.5) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True, help="packed models (nerf_bridge.prior.data.pack)")
    parser.add_argument("--weights", type=Path, help="folder of weights; default: the package's own")
    parser.add_argument("--models", choices=["trained", "holdout"], default="trained", help="which models to look at")
    arguments = parser.parse_args()
    held_out = arguments.models == "holdout"
    models = [model for model in load_library(arguments.library) if model.holdout == held_out]
    prior = load_embedded("cpu", arguments.weights)
    designs = None
    if prior.designs and not held_out:
        captions = build_caption_table(models, 0)
        designs = own_designs(captions, models, torch.from_numpy(design_masks(captions, models)))
    probe = AzimuthProbe.build(models, prior.text_encoder, torch.device("cpu"), designs=designs)
    figures = {"images": len(probe.images), **probe.measure(prior.network)}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
