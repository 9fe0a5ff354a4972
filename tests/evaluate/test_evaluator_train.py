"""Batches of the evaluator, its training on a few solids, and going on after a kill."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from evaluate.small_world import TINY, encoder, library

from nerf_bridge.evaluate import train
from nerf_bridge.evaluate.augment import move, spoil
from nerf_bridge.evaluate.batches import NO_COLOUR, draw_batch, has_noun, nouns_of, prepare
from nerf_bridge.evaluate.model import load_evaluator
from nerf_bridge.evaluate.train import Check, Embedded, Trainer, evaluator_loss, retrieval
from nerf_bridge.prior.data.colours import TINT_WORDS, tint_distribution
from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.views import render_library

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    models = [model for model in library() if not model.holdout]
    views = render_library(models, 6, seed=3, size=64, n_threads=1, show_progress=False)
    return prepare(models, nouns_of(models), views, encoder(), CPU)


def drawn(data, b, seed, strength=0.0):
    return draw_batch(data, b, strength, torch.Generator().manual_seed(seed))


@pytest.mark.compiler
def test_a_batch_is_a_function_of_its_seed(data):
    one, again, other = drawn(data, 8, 1, 0.5), drawn(data, 8, 1, 0.5), drawn(data, 8, 2, 0.5)
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)
    assert one.images.shape == (8, 3, 64, 64) and 0 <= float(one.images.min()) <= float(one.images.max()) <= 1


@pytest.mark.compiler
def test_colours_are_those_that_are_named(data, monkeypatch):
    """On black, the pixels of a tinted solid are its tint under the light."""
    monkeypatch.setattr("nerf_bridge.evaluate.batches.backgrounds", lambda b, generator: torch.zeros(b, 3))
    batch = drawn(data, 64, 5)
    mean = torch.as_tensor(tint_distribution()[0])
    for image, colour in zip(batch.images, batch.colour, strict=True):
        if colour != NO_COLOUR and TINT_WORDS[colour] in ("red", "green", "blue", "purple"):
            pixels = image[:, image.amax(0) > 0.1].mean(1)
            near = torch.nn.functional.cosine_similarity(pixels[None], mean[[TINT_WORDS.index(w) for w in COMPARED]])
            assert COMPARED[int(near.argmax())] == TINT_WORDS[colour]


COMPARED = ("red", "green", "blue", "purple")


def test_moving_keeps_the_thing_and_brings_nothing_in():
    layers = torch.zeros(40, 8, 64, 64)
    layers[:, 7, 24:40, 24:40] = 255
    moved = move(layers, torch.Generator().manual_seed(0))
    areas = moved[:, 7].sum((1, 2)) / layers[:, 7].sum((1, 2))
    assert 0.5 < float(areas.min()) < 0.75 < 1.2 < float(areas.max()) < 1.5 and float(moved[:, :7].abs().max()) == 0


def test_spoiling_is_mild_and_none_at_strength_zero():
    images = torch.rand(16, 3, 64, 64)
    assert torch.allclose(spoil(images, 0.0, torch.Generator().manual_seed(0)), images, atol=1e-6)
    assert 0.05 < float((spoil(images, 1.0, torch.Generator().manual_seed(0)) - images).abs().mean()) < 0.35


def test_pairs_of_solids_have_no_noun_of_their_own():
    models = build_primitives(0, n_single=30, n_pairs=4)
    kept = {model.noun for model in models if has_noun(model)}
    assert "hexagonal prism" in kept and not any(" on a" in noun or " next to " in noun for noun in kept)


@pytest.mark.compiler
@pytest.mark.slow
def test_it_learns_nouns_and_colours(data, monkeypatch):
    monkeypatch.setattr("nerf_bridge.evaluate.batches.backgrounds", lambda b, generator: torch.zeros(b, 3))
    trainer = Trainer(replace(TINY, channels=(8, 16, 32), blocks=(1, 1, 1)), CPU, 0)
    for each in (trainer.network, trainer.average):
        each.centre_captions(data.noun_text.flatten(0, 1))
    network = Embedded(trainer.network)
    losses = []
    for step in range(150):
        loss = evaluator_loss(network, data, drawn(data, 32, step))
        trainer.step(loss, step, 5e-3)
        losses.append(loss.item())
    batch = drawn(data, 200, 10_000)
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    assert retrieval(trainer.average, data.noun_text, Check(batch.images, batch.noun)) > 0.5  # chance is a sixth


@pytest.mark.compiler
def test_the_average_follows_the_network(data):
    trainer = Trainer(TINY, CPU, 0)
    trainer.step(evaluator_loss(Embedded(trainer.network), data, drawn(data, 8, 0)), 10**6, 1e-2)
    pairs = list(zip(trainer.average.parameters(), trainer.network.parameters(), strict=True))
    gaps = [float((a - b).detach().abs().max()) for a, b in pairs]
    assert max(gaps) > 1e-3  # it lags far behind at first
    for a, b in zip(trainer.average.buffers(), trainer.network.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the command in small; `stop_at` kills it after as many steps."""
    pack_library(list(library()), tmp_path / "library.npz")
    monkeypatch.setattr(train, "EvaluatorConfig", lambda: TINY)
    monkeypatch.setattr(train, "WARM_STEPS", 4)
    monkeypatch.setattr(train, "agreed", lambda value: 12.0)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)

    def run(out, stop_at=None, *more):
        with monkeypatch.context() as patch:
            if stop_at is not None:
                real = Trainer.step

                def step(self, loss, index, lr):
                    if index == stop_at:
                        raise KeyboardInterrupt
                    real(self, loss, index, lr)

                patch.setattr(Trainer, "step", step)
            words = ["train", "--library", tmp_path / "library.npz", "--out", out, "--device", "cpu", "--views", "2"]
            patch.setattr(sys, "argv", [str(word) for word in [*words, "--batch", 8, "--threads", 1, *more]])
            train.main()

    return run


@pytest.mark.compiler
@pytest.mark.slow
def test_a_killed_training_gives_what_an_unbroken_one_gives(start, tmp_path, capsys):
    start(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "killed", 8)
    assert (tmp_path / "killed" / train.STATE_FILE).is_file() and not (tmp_path / "killed" / "index.json").exists()
    start(tmp_path / "killed")
    whole, killed = (load_evaluator(tmp_path / name)[0].state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    log = json.loads((tmp_path / "killed" / "index.json").read_text())["training"]["log"]
    assert log[-1]["step"] == 12 and {"loss", "new_views", "new_models"} <= log[-1].keys()
    assert not (tmp_path / "killed" / train.STATE_FILE).exists()
    with pytest.raises(SystemExit):
        start(tmp_path / "whole")
    assert "finished evaluator" in capsys.readouterr().err


@pytest.mark.compiler
@pytest.mark.slow
def test_going_on_with_other_options_is_refused(start, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "out", 8)
    with pytest.raises(SystemExit):
        start(tmp_path / "out", None, "--lr", "0.5")
    assert "is of a training with" in capsys.readouterr().err
