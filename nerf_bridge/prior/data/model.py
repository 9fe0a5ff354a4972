"""One 3D model of the training library: geometry, colours and what to call it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HALF_DIAGONAL = 0.9  # half of every model's bounding-box diagonal, in world units


@dataclass(frozen=True)
class LibraryModel:
    """A coloured triangle mesh in world space (right-handed, z up, front towards −y), with its words.

    Attributes:
        name: unique key, catalogue and model, e.g. ``Scopia#chair4``.
        noun: what the object is called, lower case, e.g. ``armchair``.
        article: ``a``, ``an``, or ``""`` for plurals and mass nouns.
        category: the catalogue's category, e.g. ``Living room``; ``Primitives`` for procedural ones.
        creator: who made the model.
        licence: short licence name, e.g. ``CC-BY 3.0``.
        vertices: [v, 3] float32, box centred at the origin, half box diagonal 0.9.
        faces: [f, 3] int32, either winding.
        face_colors: [f, 3] uint8, sRGB base colour of each face.
        face_tintable: [f] uint8, the number of the face's part where a tint replaces the base colour, else 0.
        base_colour_word: the untinted model's own colour where it is unmistakable, else None.
        holdout: True when the model is kept out of training (see ``data/prior/holdout.json``).
    """

    name: str
    noun: str
    article: str
    category: str
    creator: str
    licence: str
    vertices: np.ndarray
    faces: np.ndarray
    face_colors: np.ndarray
    face_tintable: np.ndarray
    base_colour_word: str | None = None
    holdout: bool = False


def normalise_vertices(vertices: np.ndarray) -> np.ndarray:
    """Centre the bounding box at the origin and scale its half diagonal to 0.9.

    Args:
        vertices: [v, 3] float.

    Returns:
        [v, 3] float32.

    Raises:
        ValueError: if the box has no extent.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    half_diagonal = 0.5 * float(np.linalg.norm(high - low))
    if not half_diagonal > 0:
        raise ValueError(f"a model needs an extent, got a bounding box from {low} to {high}")
    return ((vertices - 0.5 * (low + high)) * (HALF_DIAGONAL / half_diagonal)).astype(np.float32)


def face_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the area of each triangle, [f] float64, for vertices [v, 3] and faces [f, 3]."""
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return 0.5 * np.linalg.norm(normals, axis=1)
