"""Procedural solids: closed, centred, coloured as their captions say."""

import numpy as np
import pytest

from nerf_bridge.prior.data.colours import colour_word
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.data.shapes import SHAPES


def signed_volume(vertices, faces):
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6.0)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_solids_are_closed_and_stand_on_the_ground(name):
    vertices, faces = SHAPES[name]()
    positions, index = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)
    welded = index.reshape(-1)[faces]
    edges = np.concatenate([welded[:, [0, 1]], welded[:, [1, 2]], welded[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    forward = {tuple(edge) for edge in edges.tolist()}
    assert all((b, a) in forward for a, b in forward)
    assert abs(signed_volume(positions, welded)) > 0.01
    assert vertices[:, 2].min() == pytest.approx(0.0, abs=0.06)


def test_volumes_are_exact():
    assert abs(signed_volume(*SHAPES["cube"]())) == pytest.approx(0.85**3)
    assert abs(signed_volume(*SHAPES["pyramid"]())) == pytest.approx(2 * 0.65**2 * 0.9 / 3)
    assert abs(signed_volume(*SHAPES["ball"]())) == pytest.approx(np.pi / 6, rel=0.03)


def test_counts_and_frames():
    models = build_primitives(0, n_single=20, n_pairs=30)
    assert len(models) == 50 and len({m.noun for m in models[20:]}) == 30
    for model in models:
        assert 0.5 * np.linalg.norm(np.ptp(model.vertices, axis=0)) == pytest.approx(0.9, abs=1e-4)
        assert model.faces.max() < len(model.vertices)
        assert len(model.face_colors) == len(model.faces) == len(model.face_tintable)


def test_singles_are_tintable_and_pairs_are_not():
    models = build_primitives(0, n_single=20, n_pairs=30)
    assert all(m.face_tintable.all() for m in models[:20])
    assert not any(m.face_tintable.any() for m in models[20:])


def test_pairs_are_coloured_as_captioned():
    pairs = [m for m in build_primitives(1, n_single=0, n_pairs=60) if " on a " in m.noun]
    assert len(pairs) > 10
    agree = 0
    for model in pairs:
        centres = model.vertices[model.faces].mean(axis=1)
        upper = model.face_colors[centres[:, 2].argmax()] / 255.0
        agree += colour_word(upper) in (None, model.noun.split()[0])
    assert agree >= 0.9 * len(pairs)


def test_next_to_puts_the_first_on_the_left():
    pair = next(m for m in build_primitives(0, n_single=0, n_pairs=20) if "next to" in m.noun)
    assert len(np.unique(pair.face_colors, axis=0)) == 2
    first_color = pair.face_colors[0]
    left = (pair.face_colors == first_color).all(axis=1)
    x = pair.vertices[pair.faces].mean(axis=1)[:, 0]
    assert x[left].max() < x[~left].min()


def test_same_seed_same_models():
    one, two, other = build_primitives(5, 5, 5), build_primitives(5, 5, 5), build_primitives(6, 5, 5)
    assert all(np.array_equal(a.vertices, b.vertices) and a.noun == b.noun for a, b in zip(one, two, strict=True))
    assert [m.noun for m in one] != [m.noun for m in other]
