"""Whether the colour words of a prompt are obeyed, by one rule for assets, samples and true renders alike.

1. Every pixel of the object counts once, so that colours weigh by the area that is seen.
2. Each pixel gets the nearest of the prior's colour words (the means of prior/data/colours.py in the mean of the
   prior's light, materials left out). Near is meant by hue first: the squared distance is (hue / 20 deg)^2 +
   (saturation / 0.5)^2 + (value / 0.5)^2. Where the saturation is below 0.2 or the value below 0.15 a hue means
   nothing: there it is the nearest of black, grey and white by value. A prompt that says "wooden" adds that word for
   hues of 12 to 48 deg with a saturation of 0.2 to 0.9 and a value of 0.15 to 0.9, before all others.
3. The pixels of the word that is found most are the largest colour cluster. The prompt is obeyed when its n colour
   words are the n words that are found most; a prompt without a colour word is not judged.
4. Beside true shapes: where most of them obey, step 3 judges. Where they show the colour on a smaller part only (the
   leaves of "a potted plant" in a red pot), the prompt is obeyed when its words cover at least half of the area that
   they cover on the true shapes; where that is less than a twentieth, it is not judged.

On true renders of the 707 catalogue models that take tints, each of the 12 words and "wooden" once, step 3 says what
was asked for in 97.7 % (wooden and brown 95 %, white 97 %).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nerf_bridge.prior.data.colours import MATERIAL_WORDS, TINTS

COLOURS = tuple(tint for tint in TINTS if tint.word not in MATERIAL_WORDS)
HUELESS = ("black", "grey", "white")
WOOD_LOW, WOOD_HIGH = np.array([12.0, 0.2, 0.15]), np.array([48.0, 0.9, 0.9])  # hue in degrees, saturation, value
SCALES = np.array([20.0, 0.5, 0.5])
LIGHT = 0.775  # mean of 0.55 + 0.45 (0.5 + 0.5 n . L) over all normals, see prior/render_views.py
SHOWN, ENOUGH = 0.05, 0.5  # parts of the area that true shapes show, and of that what is asked of others


@dataclass(frozen=True)
class Colour:
    """The colours of an asset as they are seen.

    Attributes:
        shares: word -> part of the visible area, the largest first; they sum to 1.
        main_rgb: median of the largest word's pixels, in 0..1.
        median_rgb: median of all pixels, in 0..1.
    """

    shares: dict[str, float]
    main_rgb: tuple[float, float, float]
    median_rgb: tuple[float, float, float]


def hue_saturation_value(rgb: np.ndarray) -> np.ndarray:
    """[n, 3] hue in degrees, saturation and value in 0..1 of colours [n, 3] in 0..1."""
    value = rgb.max(axis=1)
    chroma = value - rgb.min(axis=1)
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-9)
    by_channel = [(green - blue) / safe % 6, (blue - red) / safe + 2, (red - green) / safe + 4]
    hue = 60.0 * np.choose(rgb.argmax(axis=1), by_channel)
    return np.stack([hue, chroma / np.maximum(value, 1e-9), value], axis=1)


def name_colours(rgb: np.ndarray, wooden: bool = False) -> np.ndarray:
    """The word [n] of each colour [n, 3] in 0..1 by step 2 of the rule; `wooden`: whether that word may be given."""
    seen = hue_saturation_value(rgb)
    means = hue_saturation_value(LIGHT * np.array([tint.mean for tint in COLOURS]))
    words = np.array([tint.word for tint in COLOURS])
    has_hue = ~np.isin(words, HUELESS)
    difference = np.abs(seen[:, None] - means[None])
    difference[..., 0] = np.minimum(difference[..., 0], 360.0 - difference[..., 0])
    by_hue = ((difference / SCALES) ** 2).sum(axis=-1)
    chromatic = (seen[:, 1] >= 0.2) & (seen[:, 2] >= 0.15)
    distance = np.where(chromatic[:, None], by_hue, difference[..., 2])
    distance[chromatic[:, None] != has_hue[None]] = np.inf
    named = words[distance.argmin(axis=1)]
    if wooden:
        named = np.where(((seen >= WOOD_LOW) & (seen <= WOOD_HIGH)).all(axis=1), "wooden", named)
    return named


def asked_colours(prompt: str) -> tuple[str, ...]:
    """The colour words of a prompt, each once, in their order."""
    known = {"wooden", *(tint.word for tint in COLOURS)}
    return tuple(dict.fromkeys(word for word in re.findall(r"[a-z]+", prompt.lower()) if word in known))


def judge_colours(pixels: np.ndarray, asked: Sequence[str]) -> tuple[Colour, bool | None]:
    """The colours of pixels [n, 3] in 0..1, n at least 1, and whether they are those `asked` for (rule, step 3)."""
    named = name_colours(pixels, "wooden" in asked)
    words, counts = np.unique(named, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = {str(words[i]): float(counts[i] / len(named)) for i in order}
    main = next(iter(shares))
    colour = Colour(shares, _median(pixels[named == main]), _median(pixels))
    return colour, set(list(shares)[: len(asked)]) == set(asked) if asked else None


def judge_beside_truth(
    seen: Sequence[np.ndarray], truths: Sequence[np.ndarray], asked: Sequence[str]
) -> tuple[list[float], list[float]] | None:
    """1 or 0 for the pixels [n, 3] of each of `seen`, and of each true shape, by step 4 of the rule; None: not judged.

    No pixels at all obey nothing.
    """
    if not asked:
        return None
    (own, most), (true, true_most) = (_covered(objects, asked) for objects in (seen, truths))
    if np.mean(true) < SHOWN:
        return None
    if np.mean(true_most) > 0.5:
        return most, true_most
    least = ENOUGH * np.mean(true)
    return [float(share >= least) for share in own], [float(share >= least) for share in true]


def _covered(objects: Sequence[np.ndarray], asked: Sequence[str]) -> tuple[list[float], list[float]]:
    """Of each object the part of the area that the words `asked` cover, and 1 where they are found most, else 0."""
    judged = [judge_colours(pixels, asked) if len(pixels) else None for pixels in objects]
    shares = [sum(one[0].shares.get(word, 0.0) for word in asked) if one else 0.0 for one in judged]
    return shares, [float(one is not None and one[1] is True) for one in judged]


def _median(pixels: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = np.median(pixels, axis=0).tolist()
    return red, green, blue
