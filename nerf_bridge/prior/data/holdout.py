"""What is kept out of training, to tell learning from memory: models, and colours of nouns."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace

from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import SYNONYMS

N_MODELS = 40
MIN_MODELS = 4  # a noun needs as many models before one of them is held out

# Colours that no training caption gives these nouns or kinds of them (is_held_out), and that no training image tints
# them. Chosen by lot among nouns with several models, then without colours that such things often have, and without
# what people try first ("green armchair", "red sofa", "blue chair", "yellow cupboard", "wooden table").
_HELD_OUT_COLOURS: dict[str, tuple[str, ...]] = {
    "armchair": ("purple", "turquoise"),
    "bathroom vanity": ("green",),
    "bathtub": ("green",),
    "bed": ("turquoise",),
    "bedside table": ("pink",),
    "bench": ("purple",),
    "bowl": ("turquoise",),
    "car": ("yellow",),
    "ceiling light": ("pink", "turquoise"),
    "chair": ("orange",),
    "child's bed": ("pink",),
    "christmas tree": ("orange",),
    "coffee maker": ("purple",),
    "coffee table": ("red",),
    "cooktop": ("brown", "pink"),
    "crate": ("purple",),
    "deck chair": ("pink",),
    "desk": ("green",),
    "door": ("orange",),
    "double door": ("blue",),
    "fireplace": ("orange",),
    "football goal": ("red",),
    "fridge": ("red",),
    "glass table": ("green", "yellow"),
    "horse": ("turquoise",),
    "jug": ("yellow",),
    "kitchen cabinet": ("purple",),
    "laptop": ("purple",),
    "mobile phone": ("green",),
    "oven": ("blue",),
    "palm tree": ("red",),
    "pendant lamp": ("turquoise",),
    "picture frame": ("purple",),
    "plate": ("red",),
    "potted plant": ("red", "yellow"),
    "railing": ("green", "orange"),
    "sofa": ("yellow",),
    "sofa bed": ("blue", "orange"),
    "spoon": ("green",),
    "telephone": ("yellow",),
    "toilet": ("purple",),
    "toilet paper dispenser": ("green",),
    "towel rack": ("pink",),
    "TV cabinet": ("turquoise", "yellow"),
    "wardrobe": ("orange",),
    "watch": ("blue", "red"),
    "water heater": ("blue",),
    "trash can": ("pink",),
    "vase": ("purple",),
    "table": ("pink",),
    "truck": ("pink",),
}
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    (noun, colour) for noun, colours in _HELD_OUT_COLOURS.items() for colour in colours
)


def is_held_out(noun: str, colour: str, pairs: frozenset[tuple[str, str]] = HELD_OUT_PAIRS) -> bool:
    """Whether nothing called `noun` may be tinted or called `colour`: it, or what it is a kind of, is held out in it.

    A kind has the noun among its names, or as the last of its words before "of", "with" or "on": an SUV is a car, a
    rocking horse a horse and a vase of tulips a vase, but a table lamp is no table.
    """
    names = (noun, *SYNONYMS.get(noun, ()))
    heads = [re.split(r" (?:of|with|on) ", name, maxsplit=1)[0] for name in names]
    return any(c == colour and (n in names or any(f" {head}".endswith(f" {n}") for head in heads)) for n, c in pairs)


def stable_order(text: str) -> int:
    """A number that depends on the text alone, to order things as if by lot."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def choose_held_out_models(models: Sequence[LibraryModel], count: int = N_MODELS) -> list[str]:
    """Choose models of nouns with several: one in five of a noun at most, the largest nouns first in each round.

    Args:
        models: the library; primitives are never taken; count: how many at most.

    Returns:
        Names of the models, sorted.
    """
    by_noun: dict[str, list[str]] = {}
    for model in models:
        if model.category != "Primitives":
            by_noun.setdefault(model.noun, []).append(model.name)
    queues = {
        noun: sorted(names, key=stable_order)[: max(1, len(names) // 5)]
        for noun, names in by_noun.items()
        if len(names) >= MIN_MODELS
    }
    ranked = sorted(queues, key=lambda noun: (-len(by_noun[noun]), noun))
    rounds = max((len(names) for names in queues.values()), default=0)
    chosen = [queues[noun][k] for k in range(rounds) for noun in ranked if k < len(queues[noun])]
    return sorted(chosen[:count])


def mark_holdout(models: Sequence[LibraryModel]) -> list[LibraryModel]:
    """Return the models with holdout set for those of choose_held_out_models."""
    names = set(choose_held_out_models(models))
    return [replace(model, holdout=model.name in names) for model in models]


def holdout_json(models: Sequence[LibraryModel]) -> str:
    """List what is held out of a marked library, as the JSON of ``data/prior/holdout.json``."""
    held = [{"name": model.name, "noun": model.noun} for model in models if model.holdout]
    pairs = [{"noun": noun, "colour": colour} for noun, colour in sorted(HELD_OUT_PAIRS)]
    return json.dumps({"models": held, "pairs": pairs}, indent=1) + "\n"
