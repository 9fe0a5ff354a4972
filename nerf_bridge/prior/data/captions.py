"""The training captions: what every model, tint and flaw is called, as one small table of distinct texts.

The flaw words are those of the bridge's source prompt (McAllister et al., arXiv 2406.09417) and of NFSD's negative
prompt (Katzir et al., arXiv 2310.17590), so that both prompts mean something to the prior.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nerf_bridge.prior.data.colours import TINT_WORDS
from nerf_bridge.prior.data.holdout import HELD_OUT_PAIRS, is_held_out, stable_order
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import SYNONYMS, with_article

TARGET_WORDS = "detailed high resolution, high quality, sharp"
SOURCE_WORDS = "oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
NEGATIVE_WORDS = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)
# Words for each flaw; the order of the kinds is the order of the states after "clean".
DEGRADATIONS: dict[str, tuple[str, ...]] = {
    "distilled": ("smooth", "oversaturated", "bad structure", "hazy"),
    "blur": ("blurry", "smooth", "out of focus", "low quality", "bad structure"),
    "oversaturate": ("oversaturated", "cartoon", "unrealistic"),
    "pixelate": ("pixelated", "low-resolution", "low quality", "malformed"),
    "posterise": ("cartoon", "unrealistic", "bad structure"),
    "fog": ("foggy", "hazy", "dull"),
    "noise": ("noisy", "malformed", "low quality", "ugly"),
    "low_contrast": ("low contrast", "dull", "hazy"),
    "dark": ("dark", "gloomy", "dull"),
}
# Flaws that also stand for a whole prompt: the first for what stage two of the bridge is to leave behind.
WHOLE_PROMPTS = {"distilled": SOURCE_WORDS, "low_contrast": NEGATIVE_WORDS, "dark": NEGATIVE_WORDS}
STATES: tuple[str, ...] = ("clean", *DEGRADATIONS)
COMMON = 4  # nouns of as many models get flawed captions for each colour
N_VARIANTS = 6  # texts to draw from for each model, tint and state


@dataclass(frozen=True)
class CaptionTable:
    """All training texts and where each (model, tint, state) finds its own.

    Attributes:
        texts: distinct captions; text 0 is the empty prompt.
        caption_index: [n_models, n_tints + 1, n_states, N_VARIANTS] int32 into texts; repeated to fill. Tint 0 is the
            model's own colours, half of the time without their word. Held-out pairs point at captions without it.
        usable: [n_models, n_tints + 1] bool; draw only tints that are usable: held-out pairs and models without
            a tintable part are not.
        states: names along the state axis, "clean" first, then the keys of DEGRADATIONS in order.
        tint_words: names along the tint axis from 1 on.
    """

    texts: list[str]
    caption_index: np.ndarray
    usable: np.ndarray
    states: tuple[str, ...]
    tint_words: tuple[str, ...]


def caption_variants(noun: str, article: str, colour: str | None, material: str | None = None) -> list[str]:
    """List the clean ways to name an object, most usual first.

    Args:
        noun: e.g. ``armchair``; article: ``a``, ``an`` or ``""`` as it stands before the noun alone.
        colour: colour word or None; material: a second word such as ``wooden`` or None.

    Returns:
        Distinct captions, e.g. ``a red armchair``, ``red armchair``, ``a red armchair, detailed ... sharp``.
    """
    words = " ".join(word for word in (colour, material) if word)
    phrase = f"{words} {noun}" if words else noun
    named = with_article(phrase, countable=bool(article))
    return list(dict.fromkeys([named, phrase, f"{named}, {TARGET_WORDS}"]))


def degraded_variants(caption: str, kind: str, rng: np.random.Generator, n: int) -> list[str]:
    """Describe a flawed image: the caption with words of its flaw, or with the whole prompt that it stands for.

    Args:
        caption: a clean caption; kind: a key of DEGRADATIONS; rng: draws the words; n: how many captions, at least 2.

    Returns:
        n captions: first with the kind's first word, last with the whole prompt, if the kind has one.
    """
    words = DEGRADATIONS[kind]
    variants = [f"{caption}, {words[0]}"]
    while len(variants) < n:
        size = int(rng.integers(1, len(words) + 1))
        variants.append(f"{caption}, " + ", ".join(words[i] for i in rng.permutation(len(words))[:size]))
    if kind in WHOLE_PROMPTS:
        variants[-1] = f"{caption}, {WHOLE_PROMPTS[kind]}"
    return variants


def build_caption_table(
    models: Sequence[LibraryModel], seed: int, held_out_pairs: frozenset[tuple[str, str]] = HELD_OUT_PAIRS
) -> CaptionTable:
    """Build the captions of a library.

    Args:
        models: the library, in the order that caption_index follows.
        seed: of the words drawn for flawed images; the same models and seed give the same table.
        held_out_pairs: (noun, colour word) pairs that no caption may name and no tint may show, kinds of the noun
            included.

    Returns:
        The table.
    """
    texts: dict[str, int] = {"": 0}
    cells: dict[tuple[str, str, str | None], np.ndarray] = {}
    number = Counter(model.noun for model in models)
    index = np.zeros((len(models), len(TINT_WORDS) + 1, len(STATES), N_VARIANTS), dtype=np.int32)
    usable = np.zeros((len(models), len(TINT_WORDS) + 1), dtype=bool)
    for row, model in enumerate(models):
        tintable = bool(model.face_tintable.any())
        for tint in range(len(TINT_WORDS) + 1):
            colour = TINT_WORDS[tint - 1] if tint else model.base_colour_word
            held_out = colour is not None and is_held_out(model.noun, colour, held_out_pairs)
            usable[row, tint] = (tintable and not held_out) if tint else True
            colour = None if held_out or not (tintable or tint == 0) else colour
            for named in (colour, None):
                key = (model.noun, model.article, named)
                if key not in cells:
                    cells[key] = _cell(model, named, number[model.noun], seed, texts)
            index[row, tint] = cells[model.noun, model.article, colour]
            if tint == 0:  # whoever asks for a chair without a colour gets one in its own
                half = N_VARIANTS // 2
                index[row, 0, :, half:] = cells[model.noun, model.article, None][:, :half]
    return CaptionTable(list(texts), index, usable, STATES, TINT_WORDS)


def _cell(
    model: LibraryModel,
    colour: str | None,
    n_models: int,
    seed: int,
    texts: dict[str, int],
) -> np.ndarray:
    """Captions of one noun and colour for all states, as indices [n_states, N_VARIANTS]; new texts are added.

    Few texts for each flaw where a colour is named, so that the whole table stays small enough to embed at once.
    """
    rng = np.random.default_rng(stable_order(f"{seed}|{model.noun}|{colour}") % 2**63)
    nouns = [model.noun, *SYNONYMS.get(model.noun, ())]
    clean = [text for noun in nouns for text in caption_variants(noun, model.article, colour)]
    cell = np.zeros((len(STATES), N_VARIANTS), dtype=np.int32)
    cell[0] = _fill(clean, texts)
    plain = colour is None and n_models > 1
    for state, kind in enumerate(DEGRADATIONS, start=1):
        if plain or n_models >= COMMON:
            flawed = degraded_variants(clean[0], kind, rng, 4 if plain else 2)
        else:
            plain_name = with_article(model.noun, countable=bool(model.article))
            flawed = [f"{plain_name}, {DEGRADATIONS[kind][0]}", degraded_variants(clean[0], kind, rng, 2)[-1]]
        cell[state] = _fill(flawed, texts)
    return cell


def _fill(variants: Sequence[str], texts: dict[str, int]) -> list[int]:
    chosen = list(dict.fromkeys(variants))[:N_VARIANTS]
    ids = [texts.setdefault(text, len(texts)) for text in chosen]
    return [ids[i % len(ids)] for i in range(N_VARIANTS)]
