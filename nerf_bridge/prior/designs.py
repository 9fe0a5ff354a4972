"""Designs: which of a noun's models is meant, as one more word of the prompt.

Where a noun has many models, a prior that draws one view at a time draws another model in every view, and what is
distilled from it keeps only what they have in common: a chair without legs. Told a design, it draws the same model in
all of them. Design 1 is the first model of a kind, design 2 the second, and so on around (`design_masks`).

The word is a fixed vector among those of the text encoder, in the last place. A prompt names it by ", design 3".
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.captions import CaptionTable
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import SYNONYMS
from nerf_bridge.prior.protocol import DesigningPrior, Prior

DESIGNS = 32
SIZE = 0.6  # of each number of a vector; those of words are 0.4 on average
PHRASE = re.compile(r",\s*design\s+(\d+)\b", re.IGNORECASE)


def design_vectors(width: int) -> Tensor:
    """The words' vectors [DESIGNS, width], float32; `width` is a multiple of 8.

    Their signs are the bits of a hash, so that they are the same everywhere and for ever.
    """
    rows = [hashlib.shake_256(f"design {i + 1}".encode()).digest(width // 8) for i in range(DESIGNS)]
    bits = np.unpackbits(np.frombuffer(b"".join(rows), np.uint8)).reshape(DESIGNS, width)
    return torch.from_numpy(SIZE * (2.0 * bits - 1.0)).float()


def split_design(prompt: str) -> tuple[str, int]:
    """The prompt without its design, and the design; 0 where it names none.

    Raises:
        UserError: there is no design of that number.
    """
    named = PHRASE.search(prompt)
    if named is None:
        return prompt, 0
    design = int(named[1])
    if not 1 <= design <= DESIGNS:
        raise UserError(f"{prompt!r}: there are designs 1 to {DESIGNS}, none is {design}")
    return PHRASE.sub("", prompt, count=1), design


def designs_of(prior: Prior) -> int:
    """How many designs of a noun `prior` knows; 0 for a prior that is told none."""
    return prior.designs if isinstance(prior, DesigningPrior) else 0


def with_design(prompt: str, designs: int, wanted: int | None, seed: int) -> str:
    """The prompt with a design: the one that it names itself, else the `wanted` one, else one by the `seed`.

    Args:
        designs: how many the prior knows of a noun.
        wanted: 0 leaves the prompt as it is, whatever view it is for; None: by the seed.

    Raises:
        UserError: the prior does not know that design.
    """
    named = PHRASE.search(prompt)
    if wanted and not named and wanted > designs:
        known = f"knows designs 1 to {designs}" if designs else "knows no designs"
        raise UserError(f"model.design {wanted}: the prior {known}; leave it out")
    if not designs or wanted == 0 or named:
        return prompt
    return f"{prompt}, design {wanted or 1 + seed % designs}"


def add_designs(tokens: Tensor, mask: Tensor, design: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts with their designs' words in the last place, where no other word is read.

    Args:
        tokens, mask: [b, n, width] and [b, n] bool.
        design: [b] int64, 0 for none.
        vectors: [DESIGNS, width].

    Returns:
        New tokens and mask of the same shapes.
    """
    told = design > 0
    last = torch.where(told[:, None], vectors[design.clamp(min=1) - 1].to(tokens), tokens[:, -1])
    with_last = torch.cat([tokens[:, :-1], last[:, None]], 1)
    return with_last, torch.cat([mask[:, :-1], told[:, None]], 1)


def design_masks(captions: CaptionTable, models: Sequence[LibraryModel]) -> np.ndarray:
    """Which designs a caption may be told with to mean a model: bit d - 1 for design d.

    A number means one model for every caption, also where kinds of different names share it (a bar stool is called a
    stool too), and always one that the caption fits: "a red chair, design 3" is a chair that can be red. All models of
    kinds that share names stand in a row; design 1 begins at the first, 2 at the second, and so on around, and means
    the next from there on that fits. So a design is the same model in most colours.

    Args:
        captions: of `models`, in their order.

    Returns:
        int64, of the shape of captions.caption_index; 0 where no design means the model, or the tint is not drawn.
    """
    n, texts = len(models), captions.caption_index.astype(np.int64)
    drawn = captions.usable.copy()
    drawn[:, 0] = True
    keys = texts * n + np.arange(n)[:, None, None, None]
    known = np.unique(keys[drawn])
    owner, text = known % n, known // n
    rank, size = _places_among_kinds(models)
    masks = np.empty(len(known), dtype=np.int64)
    for rows in np.split(np.arange(len(known)), np.flatnonzero(np.diff(text)) + 1):
        masks[rows] = _masks_of(rank[owner[rows]], int(size[owner[rows[0]]]))
    found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(drawn[:, :, None, None], masks[found], 0)


def _places_among_kinds(models: Sequence[LibraryModel]) -> tuple[np.ndarray, np.ndarray]:
    """The place of each model among all models of kinds that share names, and how many those are.

    First come those of the kind whose name most others bear too (the sofas before the corner sofas), in their order.
    """
    kinds: dict[str, set[str]] = {}
    for noun in {model.noun for model in models}:
        joined = {noun, *SYNONYMS.get(noun, ())}
        joined |= {word for name in joined for word in kinds.get(name, ())}
        kinds |= dict.fromkeys(joined, joined)
    borne = Counter(name for noun in kinds for name in SYNONYMS.get(noun, ()))
    members: dict[int, list[int]] = {}
    for row in sorted(range(len(models)), key=lambda row: (-borne[models[row].noun], models[row].noun)):
        model = models[row]
        members.setdefault(id(kinds[model.noun]), []).append(row)
    rank, size = (np.zeros(len(models), dtype=np.int64) for _ in range(2))
    for rows in members.values():
        rank[rows], size[rows] = np.arange(len(rows)), len(rows)
    return rank, size


def _masks_of(places: np.ndarray, size: int) -> np.ndarray:
    """The designs of models at `places` [m] of `size`, all that a caption fits, as bits: int64 [m]."""
    design = np.arange(DESIGNS)
    begin = design % size if size <= DESIGNS else design * size // DESIGNS
    meant = np.argmin((places[:, None] - begin) % size, axis=0)
    return np.bincount(meant, weights=2.0**design, minlength=len(places)).astype(np.int64)


def draw_designs(masks: Tensor) -> Tensor:
    """One of the designs of each mask [b], by lot: [b] int64, 0 where it has none."""
    bits = (masks[:, None] >> torch.arange(DESIGNS, device=masks.device)) & 1
    lot = (torch.rand(bits.shape, device=masks.device) + 1) * bits
    return (lot.argmax(1) + 1) * (masks != 0)
