"""Batches for training the evaluator: true renders in many colours, composed on the device as the prior's are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.evaluate.augment import backgrounds, move, spoil, uniform
from nerf_bridge.evaluate.model import Noun, pool_tokens
from nerf_bridge.prior.data.colours import TINT_WORDS, tint_distribution
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import with_article
from nerf_bridge.prior.data.primitives import CATEGORY as PRIMITIVES
from nerf_bridge.prior.text import TextEncoder
from nerf_bridge.prior.views import RenderedViews, compose

TINTED_SHARE = 0.6
NO_COLOUR = -1


@dataclass(frozen=True)
class EvaluatorData:
    """All that a batch is drawn from, on one device.

    Attributes:
        views: rendered layers of the models.
        share: [models] how often each is drawn; a noun with n models gets the part sqrt(n), shared among them.
        noun, own_colour, tintable: [models]; noun index, colour index or NO_COLOUR, and whether a tint shows.
        noun_text: [nouns, 2, width] mean token vectors of "an armchair" and "armchair".
        colour_text: [nouns, tints, width] of "a red armchair"; no pair of noun and colour is held out here, so that the
            judge knows both kinds alike.
        tint_mean, tint_spread: [tints, 3].
    """

    views: RenderedViews
    share: Tensor
    noun: Tensor
    own_colour: Tensor
    tintable: Tensor
    noun_text: Tensor
    colour_text: Tensor
    tint_mean: Tensor
    tint_spread: Tensor


@dataclass(frozen=True)
class EvaluatorBatch:
    """Images [b, 3, s, s] in 0..1, the noun of each [b], and its colour [b], NO_COLOUR where it has no name."""

    images: Tensor
    noun: Tensor
    colour: Tensor


def has_noun(model: LibraryModel) -> bool:
    """Whether a model's noun is a word of its own: pairs of solids ("blue ball on a red cube") are left out."""
    return not (model.category == PRIMITIVES and " " in model.noun and not model.face_tintable.any())


def nouns_of(models: Sequence[LibraryModel]) -> list[Noun]:
    """The nouns of `models`, each once, by word."""
    return [Noun(word, article) for word, article in sorted({model.noun: model.article for model in models}.items())]


def prepare(
    models: Sequence[LibraryModel],
    nouns: Sequence[Noun],
    views: RenderedViews,
    encoder: TextEncoder,
    device: torch.device,
) -> EvaluatorData:
    """Move everything to `device` and pool the token vectors of every caption once; the encoder is there already."""
    places = {noun.word: i for i, noun in enumerate(nouns)}
    counts = Counter(model.noun for model in models)
    colours = [NO_COLOUR if m.base_colour_word is None else TINT_WORDS.index(m.base_colour_word) for m in models]
    mean, spread = tint_distribution()
    plain = [text for noun in nouns for text in (noun.caption, noun.word)]
    coloured = [with_article(f"{word} {n.word}", bool(n.article)) for n in nouns for word in TINT_WORDS]
    return EvaluatorData(
        views=views.to(device),
        share=torch.tensor([counts[model.noun] ** -0.5 for model in models], device=device),
        noun=torch.tensor([places[model.noun] for model in models], device=device),
        own_colour=torch.tensor(colours, device=device),
        tintable=torch.tensor([bool(model.face_tintable.any()) for model in models], device=device),
        noun_text=pooled_captions(encoder, plain).unflatten(0, (len(nouns), 2)).to(device),
        colour_text=pooled_captions(encoder, coloured).unflatten(0, (len(nouns), len(TINT_WORDS))).to(device),
        tint_mean=torch.as_tensor(mean, device=device),
        tint_spread=torch.as_tensor(spread, device=device),
    )


def pooled_captions(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Mean token vectors [n, width] of captions, on the encoder's device."""
    return torch.cat([pool_tokens(*encoder(captions[i : i + 512])) for i in range(0, len(captions), 512)])


def draw_batch(data: EvaluatorData, b: int, strength: float, generator: torch.Generator) -> EvaluatorBatch:
    """Draw models, views, tints and backgrounds, and spoil the pictures.

    Args:
        b: images; strength: of the spoiling, 0..1; generator: on the data's device.
    """
    device = data.share.device
    models = torch.multinomial(data.share, b, replacement=True, generator=generator)
    view = torch.randint(data.views.per_model, (b,), generator=generator, device=device)
    wanted = uniform(0, 1, (b,), generator) < TINTED_SHARE
    tinted = wanted & data.tintable[models]
    tint = torch.randint(len(data.tint_mean), (b,), generator=generator, device=device)
    noise = torch.randn(b, 3, generator=generator, device=device)
    colour = (data.tint_mean[tint] + data.tint_spread[tint] * noise).clamp(0, 1)
    layers = move(data.views.layers[models * data.views.per_model + view].float(), generator)
    images = compose(layers, colour, tinted, backgrounds(b, generator))
    named = torch.where(tinted, tint, data.own_colour[models])
    return EvaluatorBatch(spoil(images, strength, generator), data.noun[models], named)
