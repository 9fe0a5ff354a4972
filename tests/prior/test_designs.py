"""Designs: every model of a noun has some, every design one model, and a prompt's words are found in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import designs
from nerf_bridge.prior.batches import draw_designs
from nerf_bridge.prior.data.captions import build_caption_table
from nerf_bridge.prior.data.design_masks import design_masks, model_of_design
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.designs import (
    DESIGNS,
    add_designs,
    design_vectors,
    split_design,
    with_design,
)
from nerf_bridge.prior.embedded import EmbeddedPrior, load_weights, save_weights
from nerf_bridge.prior.unet import UNet, UNetConfig

SOLID = build_primitives(0, n_single=2, n_pairs=0)[0]


def models_of(*nouns: str, plain: tuple[int, ...] = ()) -> list[LibraryModel]:
    """A model for each noun; those numbered in `plain` take no tint."""
    none = np.zeros_like(SOLID.face_tintable)
    named = [replace(SOLID, name=f"{i}", noun=noun, article="a", base_colour_word=None) for i, noun in enumerate(nouns)]
    return [replace(model, face_tintable=none) if i in plain else model for i, model in enumerate(named)]


def meant(models: list[LibraryModel]) -> Callable[[str], dict[int, set[int]]]:
    """A function from a caption to the designs that mean each model when told with it."""
    captions = build_caption_table(models, 0)
    masks = design_masks(captions, models)

    def designs_of(text: str) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for cell in zip(*np.nonzero(captions.caption_index == captions.texts.index(text)), strict=True):
            if captions.usable[cell[0], cell[1]]:
                bits = {d + 1 for d in range(DESIGNS) if masks[cell] >> d & 1}
                assert found.setdefault(int(cell[0]), bits) == bits
        return found

    return designs_of


def test_designs_go_around_the_models_of_a_noun() -> None:
    designs_of = meant(models_of("chair", "horse", "chair", "chair"))
    assert designs_of("a horse") == {1: set(range(1, DESIGNS + 1))}
    assert designs_of("a chair") == {model: set(range(k, DESIGNS + 1, 3)) for k, model in enumerate((0, 2, 3), 1)}


@pytest.mark.parametrize("n", [1, 2, 5, DESIGNS - 1, DESIGNS])
def test_each_design_stands_for_one_model_as_long_as_there_are_enough(n: int) -> None:
    of_each = meant(models_of(*["chair"] * n))("a red chair")
    assert sorted(of_each) == list(range(n)) and [min(of_each[i]) for i in range(n)] == list(range(1, n + 1))
    assert sum(map(len, of_each.values())) == DESIGNS == len(set().union(*of_each.values()))


def test_the_model_of_a_design_is_the_one_that_the_masks_name() -> None:
    models = models_of("bar stool", "stool", "horse", "bar stool", "stool", "chair", plain=(4,))
    designs_of = meant(models)
    for text in ("a red stool", "a stool", "a red bar stool", "a red horse", "a chair"):
        of_each = designs_of(text)
        for design in range(1, DESIGNS + 1):
            assert design in of_each[model_of_design(models, sorted(of_each), design)]


def test_more_models_than_designs_leave_some_without() -> None:
    of_each = meant(models_of(*["chair"] * (DESIGNS + 8)))("a red chair")
    assert sorted(map(len, of_each.values())) == [0] * 8 + [1] * DESIGNS


def test_a_number_means_one_model_also_where_kinds_share_a_name() -> None:
    """A bar stool is called a stool too; the stools themselves come first."""
    designs_of = meant(models_of("bar stool", "stool", "bar stool", "stool"))
    stools, bars = designs_of("a red stool"), designs_of("a red bar stool")
    assert {model: min(some) for model, some in stools.items()} == {1: 1, 3: 2, 0: 3, 2: 4}
    assert sum(map(len, stools.values())) == sum(map(len, bars.values())) == DESIGNS
    assert set(bars) == {0, 2} and all(stools[model] <= bars[model] for model in bars)


def test_a_design_is_always_one_that_can_have_the_colour() -> None:
    """The second of three chairs takes no tint: in red its number means the third, and the others stay."""
    designs_of = meant(models_of("chair", "chair", "chair", plain=(1,)))
    own, red = designs_of("a chair"), designs_of("a red chair")
    assert set(red) == {0, 2} and red[0] == own[0] and red[2] == own[1] | own[2]


def test_designs_are_drawn_from_those_that_mean_the_model() -> None:
    torch.manual_seed(0)
    masks = torch.tensor([0b1001, 1 << (DESIGNS - 1), 0]).repeat_interleave(500)
    found = draw_designs(masks).unflatten(0, (3, 500))
    assert [set(row.tolist()) for row in found] == [{1, 4}, {DESIGNS}, {0}]


def test_the_words_are_fixed_and_apart() -> None:
    vectors = design_vectors(384)
    assert vectors.shape == (DESIGNS, 384) and torch.equal(vectors.abs(), torch.full_like(vectors, designs.SIZE))
    cosines = vectors @ vectors.T / (384 * designs.SIZE**2) - torch.eye(DESIGNS)
    assert float(cosines.abs().max()) < 0.25
    assert torch.equal(vectors[0, :8] > 0, torch.tensor([0, 0, 0, 1, 1, 0, 0, 1]).bool())  # as in the training


def test_a_design_takes_the_last_place() -> None:
    tokens, mask = torch.randn(3, 5, 16), torch.tensor([[True, True, False, False, False]] * 2 + [[True] * 5])
    vectors = design_vectors(16)
    told, seen = add_designs(tokens, mask, torch.tensor([0, 7, 2]), vectors)
    assert not add_designs(tokens, mask, torch.zeros(3, dtype=torch.long), vectors)[1][:, -1].any()  # no word is there
    assert torch.equal(told[0], tokens[0]) and torch.equal(seen[0], mask[0])
    assert torch.equal(told[1:, -1], vectors[[6, 1]]) and torch.equal(told[:, :-1], tokens[:, :-1])
    assert seen[1].tolist() == [True, True, False, False, True] and seen[2].all()


def test_prompts_name_designs() -> None:
    assert split_design("a red chair, design 3, foggy") == ("a red chair, foggy", 3)
    assert split_design("a design chair") == ("a design chair", 0)
    for wrong in ("a chair, design 0", f"a chair, design {DESIGNS + 1}"):
        with pytest.raises(UserError, match=f"there are designs 1 to {DESIGNS}"):
            split_design(wrong)


def test_the_design_of_a_run() -> None:
    assert with_design("a chair", 0, None, 5) == with_design("a chair", DESIGNS, 0, 5) == "a chair"
    assert with_design("a chair", DESIGNS, None, DESIGNS + 4) == "a chair, design 5"
    assert with_design("a chair", DESIGNS, 9, 0) == "a chair, design 9"
    assert with_design("a chair, design 2", DESIGNS, 9, 0) == "a chair, design 2"
    with pytest.raises(UserError, match=r"model\.design 9: the prior knows no designs; leave it out"):
        with_design("a chair", 0, 9, 0)


class Spelling(torch.nn.Module):
    """A text encoder that remembers what it was given."""

    def forward(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.texts = texts
        return torch.zeros(len(texts), 4, 384), torch.zeros(len(texts), 4, dtype=torch.bool)


@pytest.mark.parametrize("known", [0, DESIGNS])
def test_the_prior_tells_the_network_what_it_knows(known: int) -> None:
    network = UNet(UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=4))
    words = Spelling()
    prior = EmbeddedPrior(network, words, torch.device("cpu"), {}, known)
    encoded = prior.encode_prompts(["a chair, design 4", ""])
    assert words.texts == (["a chair", ""] if known else ["a chair, design 4", ""])
    assert encoded.mask.any(1).tolist() == [bool(known), False]
    assert torch.equal(encoded.tokens[0, -1], design_vectors(384)[3] if known else torch.zeros(384))


def test_the_weights_say_how_many_designs_they_know(tmp_path) -> None:
    network = UNet(UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=4))
    save_weights(network, tmp_path, {}, DESIGNS)
    assert load_weights(tmp_path).designs == DESIGNS
