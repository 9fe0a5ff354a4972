"""Which faces a colour word changes ("a red armchair" recolours the upholstery, not the feet), and the own colour."""

from __future__ import annotations

import colorsys

import numpy as np

from nerf_bridge.prior.data.colours import dominant_colour_word
from nerf_bridge.prior.data.surface import PaintedMesh

SAME_COLOUR = 0.13  # materials whose mean colours differ less (Euclidean, 0..1) are tinted together
MIN_SHARE = 0.25  # of all that shows: what is seen most must have so much, or the object has too many colours to tint
ENOUGH = 0.6  # of all that shows: materials are added until so much is tinted
LEAST = 0.4  # of all that shows: where all but glass is less, glass is taken like the rest
_WOOD = ("wood", "oak", "teak", "pine", "madera", "bois", "holz", "walnut", "birch", "beech", "cherry", "haya", "roble")


def tintable_faces(painted: PaintedMesh, seen: np.ndarray) -> np.ndarray:
    """Mark the material that is seen most and those that share its colour, and while these show less than ENOUGH, the
    next ones in the same way. Glass keeps its colour, unless all else shows less than LEAST: then it is a material like
    the others, and may be the only one. People are taken out later, by their noun.

    Args:
        painted: a mesh with face colours and materials; seen: [f] how much of each face shows.

    Returns:
        [f] uint8: 1 for the material that is seen most and its like, 2 for the next, and so on; 0 where a face keeps
        its colour. All zero when what is seen most shows less than MIN_SHARE.
    """
    n, nothing = len(painted.material_names), np.zeros(len(painted.faces), dtype=np.uint8)
    area = np.bincount(painted.materials, weights=seen, minlength=n)
    if area.sum() == 0:
        return nothing
    share = area / area.sum()
    sums = [np.bincount(painted.materials, weights=seen * painted.colors[:, k], minlength=n) for k in range(3)]
    color = np.stack(sums, axis=1) / np.maximum(area, 1e-12)[:, None]
    for allowed in (~painted.is_glass & (share > 0), share > 0):
        parts = _parts(share, color, allowed)
        if share[parts == 1].sum() >= MIN_SHARE and share[parts > 0].sum() >= LEAST:
            return parts[painted.materials]
    return nothing


def _parts(share: np.ndarray, color: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Number [n] uint8 of each material's part, from 1 on by what shows, until the parts are ENOUGH; 0: in none."""
    parts = np.zeros(len(share), dtype=np.uint8)
    for number in range(1, 256):
        free = allowed & (parts == 0)
        if not free.any() or share[parts > 0].sum() >= ENOUGH:
            break
        main = int(np.argmax(np.where(free, share, -1.0)))
        parts[free & (np.linalg.norm(color - color[main], axis=1) < SAME_COLOUR)] = number
    return parts


def own_colour_word(painted: PaintedMesh, tintable: np.ndarray, seen: np.ndarray) -> str | None:
    """Name the model's own colour or wood where it is unmistakable.

    Args:
        painted: the mesh; tintable: [f] uint8 of tintable_faces; seen: [f] how much of each face shows.

    Returns:
        A word of the tint table, or None.
    """
    main = np.where(tintable == 1, seen, 0)
    if main.sum() >= 0.5 * seen.sum() > 0:
        if _is_wooden(painted, main):
            return "wooden"
        word = dominant_colour_word(painted.colors, main, share=0.75)
        if word is not None:
            return word
    return dominant_colour_word(painted.colors, seen, share=0.65)


def _is_wooden(painted: PaintedMesh, weights: np.ndarray) -> bool:
    names = [name.lower() for name in painted.material_names]
    named = np.array([any(word in name for word in _WOOD) and "lea" not in name for name in names])
    if weights[named[painted.materials]].sum() < 0.6 * weights.sum():
        return False
    mean = (painted.colors * weights[:, None]).sum(axis=0) / weights.sum()
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(channel) for channel in mean))
    return 10 <= hue * 360 <= 52 and saturation > 0.15 and value > 0.2
