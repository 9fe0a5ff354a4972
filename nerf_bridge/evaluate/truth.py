"""The true shapes: what a prompt asks for, found in the library and rendered, as the upper bound of every table."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.colours import TINT_WORDS, TINTS
from nerf_bridge.prior.data.design_masks import model_of_design
from nerf_bridge.prior.data.holdout import is_held_out, stable_order
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import SYNONYMS
from nerf_bridge.prior.designs import split_design
from nerf_bridge.prior.views import compose, render_model
from nerf_bridge.scene.cameras import Cameras, turntable_cameras

LARGE, SMALL = 256, 64  # pixels: of the renders, and of what the evaluator sees
AZIMUTHS = 8
ELEVATION_DEG, DISTANCE, FOVY_DEG = 15.0, 3.0, 40.0
PALE = frozenset({"white", "silver"})  # colours that white would hide
MOST_MODELS = 4  # of a noun, where truth is averaged over its models


@dataclass(frozen=True)
class Request:
    """What a prompt asks for.

    Attributes:
        name: what the prompt calls it; noun: the noun of the library that goes by this name.
        colour: a word of TINT_WORDS, or None.
        models: those of the noun that can show the colour, in an order as if by lot.
    """

    prompt: str
    name: str
    noun: str
    colour: str | None
    models: tuple[LibraryModel, ...]


@dataclass(frozen=True)
class Views:
    """Renders of one object: images [n, 3, s, s] in 0..1 over their background, coverage [n, s, s] in 0..1."""

    images: Tensor
    coverage: Tensor

    def small(self) -> Tensor:
        """The images at SMALL pixels, each the mean of its part: [n, 3, SMALL, SMALL]."""
        return functional.avg_pool2d(self.images, self.images.shape[-1] // SMALL)

    def inside(self) -> np.ndarray:
        """The colours [m, 3] of all pixels that lie wholly inside the silhouette."""
        return self.images.permute(0, 2, 3, 1)[self.coverage > 1 - 1e-3].numpy()

    def solid(self) -> Tensor:
        """Silhouettes [n, s, s], bool."""
        return self.coverage > 0.5


def read_prompt(prompt: str, models: Sequence[LibraryModel]) -> Request:
    """Find noun and colour of `prompt`, a design left aside, in the library `models`.

    Raises:
        UserError: the library does not know the noun, or none of its models can show the colour; or there is no such
            design.
    """
    nouns = {model.noun for model in models}
    words = split_design(prompt)[0].strip().split()
    phrase = " ".join(words[1:] if words and words[0].lower() in ("a", "an", "the") else words)
    colour, name = None, phrase
    noun = _known(name, nouns)
    first, _, rest = phrase.partition(" ")
    if noun is None and first.lower() in TINT_WORDS:
        colour, name = first.lower(), rest
        noun = _known(name, nouns)
    if noun is None:
        near = difflib.get_close_matches(rest if colour else phrase, sorted(nouns), n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"there is no true shape of {prompt!r}: the library's nouns, with a colour before, are known{hint}"
        )
    fitting = [model for model in models if model.noun == noun and shows(model, colour)]
    if not fitting:
        raise UserError(f"there is no true shape of {prompt!r}: no {noun} of the library can be {colour}")
    return Request(prompt, name, noun, colour, tuple(sorted(fitting, key=lambda model: stable_order(model.name))))


def _known(phrase: str, nouns: set[str]) -> str | None:
    if phrase in nouns:
        return phrase
    return next((noun for noun, others in SYNONYMS.items() if phrase in others and noun in nouns), None)


def of_design(request: Request, models: Sequence[LibraryModel], design: int) -> Request:
    """The same request with one model, the one that a `design` of it means to the embedded prior.

    Where training never told such a prompt (pairs that are held out, rarer synonyms), the design is counted among all
    models that bear the name and can show the colour.

    Args:
        models: the library; design: 0 is none, and leaves the request as it is.
    """
    if design == 0:
        return request
    shown = [model for model in models if not model.holdout]
    fitting = [i for i, model in enumerate(shown) if is_told(model, request.name, request.colour)] or [
        i
        for i, model in enumerate(shown)
        if request.name in (model.noun, *SYNONYMS.get(model.noun, ())) and shows(model, request.colour)
    ]
    return replace(request, models=(shown[model_of_design(shown, fitting, design)],))


def is_told(model: LibraryModel, name: str, colour: str | None) -> bool:
    """Whether training calls `model` by `name` in `colour` (data/captions.py): in its own colours by its noun alone, in
    a tint by the first of its synonyms too."""
    if colour is None:
        return model.noun == name
    own = model.noun == name and model.base_colour_word == colour
    tinted = name in (model.noun, *SYNONYMS.get(model.noun, ())[:1]) and bool(model.face_tintable.any())
    return (own or tinted) and not is_held_out(model.noun, colour)


def shows(model: LibraryModel, colour: str | None) -> bool:
    """Whether `model` can be seen in `colour`; None is its own."""
    return colour is None or model.base_colour_word == colour or bool(model.face_tintable.any())


def background_for(prompt: str) -> float:
    """Grey level behind the renders of a prompt: white, but mid grey for what is to be as pale as that."""
    return 0.5 if PALE & set(prompt.lower().split()) else 1.0


def around(n: int = AZIMUTHS) -> Cameras:
    """`n` cameras once around the object, from the front on, as all tables use them."""
    return turntable_cameras(n, math.radians(ELEVATION_DEG), DISTANCE, math.radians(FOVY_DEG))


def true_views(request: Request, cameras: Cameras, lot: int, size: int = LARGE) -> Views:
    """Renders of the model number `lot` of a request, in a shade of its colour that `lot` draws.

    Args:
        cameras: n views; lot: 0 is the first model; goes around when there are fewer.

    Returns:
        Views of size x size pixels over the prompt's background.
    """
    model = request.models[lot % len(request.models)]
    n = len(cameras)
    layers = render_model(model, cameras, size, os.cpu_count() or 1, supersample=2)
    tinted = request.colour is not None and bool(model.face_tintable.any())
    shade = torch.zeros(3)
    if request.colour is not None:
        tint = TINTS[TINT_WORDS.index(request.colour)]
        generator = torch.Generator().manual_seed(stable_order(f"{request.prompt}|{lot}") % 2**62)
        shade = (torch.tensor(tint.mean) + torch.tensor(tint.jitter) * torch.randn(3, generator=generator)).clamp(0, 1)
    behind = torch.full((n, 3), background_for(request.prompt))
    images = compose(layers, shade.expand(n, 3), torch.full((n,), tinted), behind)
    return Views(images.clamp(0, 1), layers[:, 7].float() / 255)
