"""Colour words: the tints of the training images, and naming the colour that a model already has."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tint:
    """A word and the sRGB colours it stands for: a Gaussian around mean with independent jitter, clipped to 0..1."""

    word: str
    mean: tuple[float, float, float]
    jitter: tuple[float, float, float]


# Index 0 of every table means "no tint", so TINTS[i] is tint i + 1.
TINTS: tuple[Tint, ...] = (
    Tint("red", (0.80, 0.10, 0.10), (0.08, 0.05, 0.05)),
    Tint("green", (0.15, 0.58, 0.18), (0.07, 0.09, 0.07)),
    Tint("blue", (0.12, 0.28, 0.80), (0.06, 0.09, 0.09)),
    Tint("yellow", (0.95, 0.84, 0.14), (0.04, 0.05, 0.07)),
    Tint("orange", (0.95, 0.52, 0.08), (0.04, 0.05, 0.05)),
    Tint("purple", (0.50, 0.18, 0.68), (0.07, 0.06, 0.08)),
    Tint("pink", (0.96, 0.55, 0.72), (0.03, 0.08, 0.07)),
    Tint("brown", (0.42, 0.26, 0.14), (0.04, 0.03, 0.03)),
    Tint("black", (0.09, 0.09, 0.09), (0.02, 0.02, 0.02)),
    Tint("white", (0.96, 0.96, 0.95), (0.015, 0.015, 0.015)),
    Tint("grey", (0.52, 0.52, 0.53), (0.02, 0.02, 0.02)),
    Tint("turquoise", (0.16, 0.76, 0.73), (0.06, 0.06, 0.06)),
    Tint("wooden", (0.66, 0.45, 0.25), (0.06, 0.05, 0.05)),
    Tint("metal", (0.64, 0.66, 0.69), (0.04, 0.04, 0.04)),
    Tint("golden", (0.85, 0.66, 0.22), (0.04, 0.05, 0.05)),
    Tint("silver", (0.78, 0.79, 0.82), (0.03, 0.03, 0.03)),
)
TINT_WORDS: tuple[str, ...] = tuple(tint.word for tint in TINTS)
MATERIAL_WORDS = frozenset({"wooden", "metal", "golden", "silver"})


def tint_distribution() -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of every tint's colour, each [n_tints, 3] float32 in 0..1."""
    mean = np.array([tint.mean for tint in TINTS], dtype=np.float32)
    return mean, np.array([tint.jitter for tint in TINTS], dtype=np.float32)


def colour_word(rgb: np.ndarray) -> str | None:
    """Name one colour by its hue, saturation and value.

    Args:
        rgb: [3] in 0..1.

    Returns:
        A word of TINT_WORDS (never a material), or None where people would disagree.
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(channel) for channel in rgb))
    hue *= 360.0
    if value < 0.20:
        return "black"
    if saturation < 0.10:
        return "white" if value > 0.85 else ("grey" if 0.30 < value < 0.72 else None)
    if 315 <= hue < 352 and value > 0.75 and 0.2 < saturation < 0.75:
        return "pink"
    if saturation < 0.35:
        return None
    if value < 0.62 and 8 <= hue < 45 and saturation > 0.35:
        return "brown"
    if saturation < 0.45 or value < 0.30:
        return None
    return _hue_word(hue, saturation, value)


def _hue_word(hue: float, saturation: float, value: float) -> str | None:
    if hue < 10 or hue >= 348:
        return "red"
    if 18 <= hue < 38 and value > 0.8 and saturation > 0.75:
        return "orange"
    if 46 <= hue < 64 and value > 0.65:
        return "yellow"
    if 85 <= hue < 150:
        return "green"
    if 165 <= hue < 188:
        return "turquoise"
    if 205 <= hue < 248:
        return "blue"
    return "purple" if 265 <= hue < 295 else None


def dominant_colour_word(colors: np.ndarray, weights: np.ndarray, share: float = 0.7) -> str | None:
    """Name the colour that covers most of a surface.

    Args:
        colors: [n, 3] in 0..1; weights: [n] areas; share: part of the area that must agree on the word.

    Returns:
        The word, or None where no word reaches the share.
    """
    rounded, inverse = np.unique(np.round(colors * 31).astype(np.int64), axis=0, return_inverse=True)
    area = np.bincount(inverse.reshape(-1), weights=weights)
    totals: dict[str | None, float] = {}
    for rgb, part in zip(rounded / 31.0, area, strict=True):
        word = colour_word(rgb)
        totals[word] = totals.get(word, 0.0) + float(part)
    named = {word: part for word, part in totals.items() if word is not None}
    if not named:
        return None
    best = max(named, key=lambda word: named[word])
    return best if named[best] >= share * sum(totals.values()) else None
