"""Procedural models with exact geometry and captions: single solids, and pairs of solids of two colours."""

from __future__ import annotations

import numpy as np

from nerf_bridge.prior.data.colours import MATERIAL_WORDS, TINTS, Tint
from nerf_bridge.prior.data.model import LibraryModel, normalise_vertices
from nerf_bridge.prior.data.nouns import article_of, with_article
from nerf_bridge.prior.data.shapes import FLAT_TOPPED, SHAPES, STACKABLE, Shape

CATEGORY = "Primitives"
_PLAIN_TINTS = tuple(tint for tint in TINTS if tint.word not in MATERIAL_WORDS)
_STRETCH = 0.12  # natural logarithm; standard deviation of each axis's stretch of a single solid


def build_primitives(seed: int, n_single: int = 60, n_pairs: int = 200) -> list[LibraryModel]:
    """Build solids ("cube", tintable) and pairs ("blue ball on a red cube", not tintable).

    Args:
        seed: of stretches, colours and arrangements; n_single: how many single solids; n_pairs: how many pairs.

    Returns:
        n_single + n_pairs models; pairs have distinct captions.
    """
    rng = np.random.default_rng(seed)
    singles = [_single(list(SHAPES)[i % len(SHAPES)], i // len(SHAPES), rng) for i in range(n_single)]
    pairs: dict[str, LibraryModel] = {}
    while len(pairs) < n_pairs:
        pair = _on_top(rng) if len(pairs) % 2 == 0 else _next_to(rng)
        pairs.setdefault(pair.noun, pair)
    return singles + list(pairs.values())


def _single(noun: str, copy: int, rng: np.random.Generator) -> LibraryModel:
    vertices, faces = SHAPES[noun]()
    if copy > 0 and noun not in ("ball", "cube"):
        spread, height = np.exp(_STRETCH * rng.standard_normal(2))
        vertices = vertices * np.array([spread, spread, height])
    tint = _PLAIN_TINTS[int(rng.integers(len(_PLAIN_TINTS)))]
    return _model(f"Primitives#{noun}-{copy}", noun, [(vertices, faces, tint)], rng, tint.word, tintable=True)


def _on_top(rng: np.random.Generator) -> LibraryModel:
    lower, upper = str(rng.choice(FLAT_TOPPED)), str(rng.choice(STACKABLE))
    tint_a, tint_b = _two_tints(rng)
    base_vertices, base_faces = SHAPES[lower]()
    top_vertices, top_faces = SHAPES[upper]()
    width = np.ptp(base_vertices[:, 0])
    size = min(1.0, 0.9 * width / np.ptp(top_vertices[:, 0])) if lower == "pillar" else 0.85
    lifted = top_vertices * size + np.array([0.0, 0.0, base_vertices[:, 2].max()])
    noun = f"{tint_b.word} {upper} on {with_article(f'{tint_a.word} {lower}', countable=True)}"
    return _model(f"Primitives#{noun}", noun, [(base_vertices, base_faces, tint_a), (lifted, top_faces, tint_b)], rng)


def _next_to(rng: np.random.Generator) -> LibraryModel:
    first, second = (str(name) for name in rng.choice(list(SHAPES), size=2, replace=False))
    tint_a, tint_b = _two_tints(rng)
    left, right = SHAPES[first](), SHAPES[second]()
    gap = 0.5 * (np.ptp(left[0][:, 0]) + np.ptp(right[0][:, 0])) + 0.08
    moved = right[0] + np.array([gap, 0.0, 0.0])
    noun = f"{tint_a.word} {first} next to {with_article(f'{tint_b.word} {second}', countable=True)}"
    return _model(f"Primitives#{noun}", noun, [(left[0], left[1], tint_a), (moved, right[1], tint_b)], rng)


def _two_tints(rng: np.random.Generator) -> tuple[Tint, Tint]:
    first, second = rng.choice(len(_PLAIN_TINTS), size=2, replace=False)
    return _PLAIN_TINTS[int(first)], _PLAIN_TINTS[int(second)]


def _model(
    name: str,
    noun: str,
    parts: list[tuple[np.ndarray, np.ndarray, Tint]],
    rng: np.random.Generator,
    colour_word: str | None = None,
    tintable: bool = False,
) -> LibraryModel:
    shapes: list[Shape] = [(vertices, faces) for vertices, faces, _ in parts]
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in shapes])
    colors = [_draw_colour(tint, rng) for _, _, tint in parts]
    faces = np.concatenate([faces + o for (_, faces), o in zip(shapes, offsets, strict=False)])
    face_colors = np.concatenate([np.tile(c, (len(f), 1)) for c, (_, f) in zip(colors, shapes, strict=True)])
    return LibraryModel(
        name=name,
        noun=noun,
        article=article_of(noun),
        category=CATEGORY,
        creator="nerf_bridge",
        licence="CC0",
        vertices=normalise_vertices(np.concatenate([vertices for vertices, _ in shapes])),
        faces=faces.astype(np.int32),
        face_colors=face_colors,
        face_tintable=np.full(len(faces), int(tintable), dtype=np.uint8),
        base_colour_word=colour_word,
    )


def _draw_colour(tint: Tint, rng: np.random.Generator) -> np.ndarray:
    color = np.array(tint.mean) + np.array(tint.jitter) * rng.standard_normal(3)
    return np.clip(np.round(255.0 * color), 0, 255).astype(np.uint8)
