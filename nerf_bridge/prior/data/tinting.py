"""Which faces a colour word changes ("a red armchair" recolours the upholstery, not the feet), and the own colour."""

from __future__ import annotations

import colorsys

import numpy as np

from nerf_bridge.prior.data.colours import dominant_colour_word
from nerf_bridge.prior.data.surface import PaintedMesh

SAME_COLOUR = 0.13  # materials whose mean colours differ less (Euclidean, 0..1) are tinted together
MIN_SHARE = 0.25  # of all that shows; below it a tint would not be seen as the object's colour
_SKIN = ("skin", "hair", "face", "head", "body", "eye", "flesh", "hand")
_WOOD = ("wood", "oak", "teak", "pine", "madera", "bois", "holz", "walnut", "birch", "beech", "cherry", "haya", "roble")


def tintable_faces(painted: PaintedMesh, seen: np.ndarray) -> np.ndarray:
    """Mark the material that is seen most and those that share its colour; glass only where all else shows too little.

    Args:
        painted: a mesh with face colours and materials; seen: [f] how much of each face shows.

    Returns:
        [f] uint8, all zero when no material shows enough.
    """
    n = len(painted.material_names)
    area = np.bincount(painted.materials, weights=seen, minlength=n)
    sums = [np.bincount(painted.materials, weights=seen * painted.colors[:, k], minlength=n) for k in range(3)]
    color = np.stack(sums, axis=1) / np.maximum(area, 1e-12)[:, None]
    skin = np.array([any(word in name.lower() for word in _SKIN) for name in painted.material_names])
    for allowed in (~skin & ~painted.is_glass & (area > 0), ~skin & (area > 0)):
        if allowed.any():
            main = int(np.argmax(np.where(allowed, area, -1.0)))
            chosen = allowed & (np.linalg.norm(color - color[main], axis=1) < SAME_COLOUR)
            if area[chosen].sum() >= MIN_SHARE * area.sum():
                return chosen[painted.materials].astype(np.uint8)
    return np.zeros(len(painted.faces), dtype=np.uint8)


def own_colour_word(painted: PaintedMesh, tintable: np.ndarray, seen: np.ndarray) -> str | None:
    """Name the model's own colour or wood where it is unmistakable.

    Args:
        painted: the mesh; tintable: [f] uint8 of tintable_faces; seen: [f] how much of each face shows.

    Returns:
        A word of the tint table, or None.
    """
    main = np.where(tintable > 0, seen, 0)
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
