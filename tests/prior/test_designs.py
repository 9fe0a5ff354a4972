"""Designs: every model of a noun has some, every design one model, and a prompt's words are found in it."""

from __future__ import annotations

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import designs
from nerf_bridge.prior.designs import DESIGNS, add_designs, design_table, design_vectors, split_design, with_design
from nerf_bridge.prior.embedded import EmbeddedPrior, load_weights, save_weights
from nerf_bridge.prior.unet import UNet, UNetConfig


def drawn(nouns: list[str], model: int, n: int = 2000) -> set[int]:
    torch.manual_seed(model)
    return set(design_table(nouns).draw(torch.full((n,), model)).tolist())


def test_designs_go_around_the_models_of_a_noun() -> None:
    nouns = ["chair", "horse", "chair", "chair"]
    assert drawn(nouns, 1) == set(range(1, DESIGNS + 1))
    assert drawn(nouns, 0) == set(range(1, DESIGNS + 1, 3)) and drawn(nouns, 3) == set(range(3, DESIGNS + 1, 3))
    assert drawn(nouns, 0) | drawn(nouns, 2) | drawn(nouns, 3) == set(range(1, DESIGNS + 1))


@pytest.mark.parametrize("n", [1, 2, 5, DESIGNS - 1, DESIGNS])
def test_each_design_stands_for_one_model_as_long_as_there_are_enough(n: int) -> None:
    of_each = [drawn(["chair"] * n, i) for i in range(n)]
    assert sum(map(len, of_each)) == DESIGNS and len(set().union(*of_each)) == DESIGNS
    assert [min(some) for some in of_each] == list(range(1, n + 1))


def test_more_models_than_designs_share_them() -> None:
    of_each = [drawn(["chair"] * (DESIGNS + 3), i) for i in range(DESIGNS + 3)]
    assert of_each[:DESIGNS] == [{i + 1} for i in range(DESIGNS)] and of_each[DESIGNS:] == [{1}, {2}, {3}]


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
