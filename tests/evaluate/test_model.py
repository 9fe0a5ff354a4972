"""The evaluator's network: shapes, what it keeps on disk, and that it learns."""

from __future__ import annotations

import json

import pytest
import torch
from evaluate.small_world import TINY

from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.model import (
    WEIGHTS_FILE,
    Evaluator,
    EvaluatorConfig,
    Noun,
    load_evaluator,
    pool_tokens,
    save_evaluator,
)

NOUNS = [Noun("armchair", "an"), Noun("shelves", "")]


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = Evaluator(TINY)
    network.centre_captions(torch.randn(9, TINY.text_width))
    save_evaluator(network.eval(), NOUNS, tmp_path / "w", {"log": []})
    return network, tmp_path / "w"


def test_pictures_and_captions_meet_on_one_sphere():
    network = Evaluator(TINY).eval()
    pictures, words = network.embed_images(torch.rand(3, 3, 64, 64)), network.embed_captions(torch.randn(5, 2, 384))
    assert pictures.shape == (3, 16) and words.shape == (5, 2, 16)
    assert torch.allclose(pictures.norm(dim=-1), torch.ones(3)) and torch.allclose(words.norm(dim=-1), torch.ones(5, 2))
    assert network.features(torch.rand(3, 3, 64, 64)).shape == (3, TINY.channels[-1])


def test_what_all_captions_share_is_taken_away():
    torch.manual_seed(1)
    shared = 30 * torch.randn(384)
    captions = shared + torch.randn(40, 384)
    network = Evaluator(TINY).eval()
    alike = network.embed_captions(captions).detach()
    network.centre_captions(captions)
    apart = network.embed_captions(captions).detach()
    assert float((alike @ alike.T).mean()) > 0.95 > 0.7 > float((apart @ apart.T).mean())


def test_padding_counts_for_nothing():
    tokens = torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    pooled = pool_tokens(tokens, mask)
    assert torch.allclose(pooled[0], tokens[0, :2].mean(0)) and torch.equal(pooled[1], torch.zeros(4))


def test_weights_come_back(saved):
    network, folder = saved
    loaded, nouns, sha256 = load_evaluator(folder)
    images = torch.rand(2, 3, 64, 64)
    assert nouns == NOUNS and nouns[0].caption == "an armchair" and nouns[1].caption == "shelves" and len(sha256) == 64
    assert torch.allclose(loaded.embed_images(images), network.embed_images(images), atol=2e-2)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())


def test_the_real_size_stays_small():
    parameters = sum(p.numel() for p in Evaluator(EvaluatorConfig()).parameters())
    assert 2 * parameters < 4 * 2**20


def test_missing_and_damaged_weights_are_told(saved, tmp_path):
    _, folder = saved
    with pytest.raises(UserError, match="--evaluator, or train them"):
        load_evaluator(tmp_path / "nowhere")
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        load_evaluator(folder)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({"sha256": index["sha256"]}))
    with pytest.raises(UserError, match="damaged|cannot load"):
        load_evaluator(folder)
