"""Designs: which of a noun's models is meant, as one more word of the prompt.

Where a noun has many models, a prior that draws one view at a time draws another model in every view, and what is
distilled from it keeps only what they have in common: a chair without legs. Told a design, it draws the same model in
all of them. Design 1 is the first model of a kind, design 2 the second, and so on around (`data/design_masks.py`).

The word is a fixed vector among those of the text encoder, in the last place. A prompt names it by ", design 3".
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.errors import UserError
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
