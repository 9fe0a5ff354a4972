"""The evaluator at work: which noun of the library a picture shows, and features for the Frechet distance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nerf_bridge.evaluate.batches import pooled_captions
from nerf_bridge.evaluate.model import Evaluator, Noun, load_evaluator
from nerf_bridge.paths import data_path
from nerf_bridge.prior.data.nouns import SYNONYMS
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder

BATCH = 128


@dataclass(frozen=True)
class Judge:
    """The evaluator with the captions of its nouns.

    Attributes:
        network: frozen, in evaluation mode.
        nouns: what it tells apart.
        captions: unit vector of each noun's caption, [nouns, embedding].
        sha256: of the weights.
    """

    network: Evaluator
    nouns: tuple[Noun, ...]
    captions: Tensor
    sha256: str

    @torch.no_grad()
    def nearest_nouns(self, images: Tensor) -> list[str]:
        """The word whose caption is nearest to each of images [b, 3, s, s] in 0..1."""
        device = self.captions.device
        near = [
            (self.network.embed_images(part.to(device)) @ self.captions.T).argmax(-1) for part in images.split(BATCH)
        ]
        return [self.nouns[i].word for i in torch.cat(near).tolist()]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features [b, width] on the CPU, float64, of images [b, 3, s, s] in 0..1."""
        device = self.captions.device
        parts = [self.network.features(part.to(device)).double().cpu() for part in images.split(BATCH)]
        return torch.cat(parts)

    def hits(self, images: Tensor, noun: str) -> list[float]:
        """1 for each of images [b, 3, s, s] whose nearest noun is `noun`, or a kind of it, else 0."""
        return [float(is_a(found, noun)) for found in self.nearest_nouns(images)]


def is_a(found: str, noun: str) -> bool:
    """Whether what is called `found` may be called `noun` too: a chesterfield armchair is an armchair."""
    return found == noun or noun in SYNONYMS.get(found, ())


def load_judge(folder: Path | None, device: torch.device, text_encoder: Path | None = None) -> Judge:
    """The evaluator from `folder`, or from the package's data, on `device`.

    Raises:
        UserError: its weights or the text encoder are missing or damaged.
    """
    network, nouns, sha256 = load_evaluator(folder or data_path("evaluate/weights"))
    encoder = TextEncoder(text_encoder or text_encoder_folder(), network.config.text_length)
    return make_judge(network, nouns, sha256, encoder, device)


def make_judge(network: Evaluator, nouns: list[Noun], sha256: str, encoder: TextEncoder, device: torch.device) -> Judge:
    """A judge of `nouns`; the captions are encoded once."""
    with torch.no_grad():
        captions = network.embed_captions(pooled_captions(encoder, [noun.caption for noun in nouns]))
    return Judge(network.to(device), tuple(nouns), captions.to(device), sha256)
