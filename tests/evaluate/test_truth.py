"""Prompts find their true shapes, which show the colour that is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate.small_world import library

from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.colours import judge_colours
from nerf_bridge.evaluate.requests import draw_cases, trained_colour
from nerf_bridge.evaluate.truth import LARGE, SMALL, around, background_for, of_design, read_prompt, true_views
from nerf_bridge.prior.data.captions import build_caption_table
from nerf_bridge.prior.data.design_masks import design_masks
from nerf_bridge.prior.data.holdout import HELD_OUT_PAIRS


@pytest.mark.parametrize(
    ("prompt", "noun", "colour"),
    [("a red chair", "chair", "red"), ("an armchair", "armchair", None), ("the wooden couch", "sofa", "wooden")],
)
def test_noun_and_colour_are_found(prompt, noun, colour):
    request = read_prompt(prompt, library())
    assert (request.noun, request.colour, {m.noun for m in request.models}) == (noun, colour, {noun})


def test_what_has_no_truth_is_told():
    with pytest.raises(UserError, match="did you mean horse"):
        read_prompt("a red hors", library())
    plain = [replace(m, face_tintable=0 * m.face_tintable, base_colour_word="green") for m in library()]
    assert read_prompt("a green horse", plain).colour == "green"
    with pytest.raises(UserError, match="no horse of the library can be red"):
        read_prompt("a red horse", plain)


def test_a_design_means_the_model_that_training_told_it_of():
    """For every caption of nouns whose kinds share names, with colours or none; where none was told, one that fits."""
    solid = next(m for m in library() if m.noun == "horse")
    plain = 0 * solid.face_tintable
    models = [
        replace(solid, name=f"{i}", noun=noun, base_colour_word=colour, face_tintable=plain if own else plain + True)
        for i, (noun, colour, own) in enumerate(
            [
                ("bar stool", None, False), ("stool", "red", True), ("stool", None, False), ("sofa", "blue", True),
                ("corner sofa", None, False), ("sofa", None, False), ("bar stool", "red", True), ("chair", None, False),
            ]
        )
    ]  # fmt: skip
    captions = build_caption_table(models, 0)
    masks = design_masks(captions, models)
    compared = 0
    for text in captions.texts:
        try:
            request = read_prompt(text, models)
        except UserError:
            continue  # a flaw's words
        cells = (captions.caption_index == captions.texts.index(text)) & captions.usable[:, :, None, None]
        for design in (1, 2, 3, 5):
            rows = {int(cell[0]) for cell in np.argwhere(cells & (masks >> (design - 1) & 1 == 1))}
            if rows:
                assert {of_design(request, models, design).models[0].name} == {models[row].name for row in rows}
                compared += 1
    assert compared > 200
    noun, colour = next((n, c) for n, c in sorted(HELD_OUT_PAIRS) if n == "sofa")
    held_out = of_design(read_prompt(f"a {colour} {noun}", models), models, 1).models
    assert len(held_out) == 1 and held_out[0].noun in ("sofa", "corner sofa")
    every = read_prompt("a stool", models)
    assert of_design(every, models, 0) is every


@pytest.mark.compiler
@pytest.mark.parametrize("colour", ["red", "green", "blue", "white", "black", "wooden"])
def test_true_renders_obey_their_own_prompt(colour):
    request = read_prompt(f"a {colour} horse", library())
    views = true_views(request, around(4), 1)
    assert views.images.shape == (4, 3, LARGE, LARGE) and views.small().shape == (4, 3, SMALL, SMALL)
    assert judge_colours(views.inside(), [colour])[1] is True
    assert float(views.images[0, :, 0, 0].mean()) == pytest.approx(background_for(request.prompt), abs=0.01)
    assert 0.02 < float(views.solid().float().mean()) < 0.6


@pytest.mark.compiler
def test_lots_draw_other_models_and_shades():
    request = read_prompt("a red horse", library())
    first, same, other, later = (true_views(request, around(4), lot).images for lot in (0, 0, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    shape_of_first = (first - 1).abs().amax(1) > 0.02
    assert not torch.equal(first, later) and torch.equal(shape_of_first, (later - 1).abs().amax(1) > 0.02)


def test_pale_things_stand_before_grey():
    assert background_for("a white horse") == 0.5 and background_for("a red horse") == 1.0


def test_cases_are_drawn_by_lot_and_keep_to_what_is_held_out():
    cases = draw_cases(library(), 4)
    groups = {name: [c.request for c in cases if c.group == name] for name in ("nouns", "held-out pairs", "same nouns")}
    assert len({request.noun for request in groups["nouns"]}) == 4
    held_out = {(request.noun, request.colour) for request in groups["held-out pairs"]}
    assert held_out == {pair for pair in HELD_OUT_PAIRS if pair[0] in {m.noun for m in library()}}
    assert [r.noun for r in groups["same nouns"]] == [r.noun for r in groups["held-out pairs"]]
    trained = [(r.noun, r.colour) for name in ("nouns", "same nouns") for r in groups[name]]
    assert not set(trained) & HELD_OUT_PAIRS
    assert [c.request.prompt for c in draw_cases(library(), 4)] == [c.request.prompt for c in cases]


def test_trained_colours_differ_from_lot_to_lot():
    assert len({trained_colour("armchair", str(lot)) for lot in range(30)}) > 5
    assert np.all([("armchair", trained_colour("armchair", str(lot))) not in HELD_OUT_PAIRS for lot in range(60)])
