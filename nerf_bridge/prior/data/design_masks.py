"""Which model of the training library a design means, for every caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nerf_bridge.prior.data.captions import CaptionTable
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import SYNONYMS
from nerf_bridge.prior.designs import DESIGNS


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
    keys = texts * n + np.arange(n)[:, None, None, None]
    known = np.unique(keys[captions.usable])
    owner, text = known % n, known // n
    rank, size = _places_among_kinds(models)
    masks = np.empty(len(known), dtype=np.int64)
    for rows in np.split(np.arange(len(known)), np.flatnonzero(np.diff(text)) + 1):
        masks[rows] = _masks_of(rank[owner[rows]], int(size[owner[rows[0]]]))
    found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(captions.usable[:, :, None, None], masks[found], 0)


def model_of_design(models: Sequence[LibraryModel], fitting: Sequence[int], design: int) -> int:
    """Which of `models` the `design` of a caption means.

    Args:
        models: those that the prior was trained on, in their order.
        fitting: the rows of all of them that the caption fits: one name's, in a colour that they can show.
        design: 1 to DESIGNS.

    Returns:
        One of `fitting`.
    """
    rank, size = _places_among_kinds(models)
    rows = np.asarray(fitting)
    meant = _masks_of(rank[rows], int(size[rows[0]])) >> (design - 1) & 1
    return int(rows[np.flatnonzero(meant)[0]])


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
