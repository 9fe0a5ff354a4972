"""What the steps draw: the same whether made ahead or not, in parts or whole, and kept no longer than needed."""

import dataclasses

import pytest
import torch
from tiny_run import CountingOracle, tiny_config

from nerf_bridge import draws as module
from nerf_bridge.draws import KEPT, Draws, draw_noise_and_times, draw_views
from nerf_bridge.guidance import EncodedWords, encode_words
from nerf_bridge.guidance import words as words_module
from nerf_bridge.guidance.words import embeddings_for_views
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import training_step
from nerf_bridge.prior.protocol import PromptEmbeddings
from nerf_bridge.run.state import Progress, build_optimiser
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")


def tensors(drawn):
    """All tensors of a ViewDraws, by name."""
    cameras = {field.name: getattr(drawn.cameras, field.name) for field in dataclasses.fields(drawn.cameras)}
    others = {"jitter": drawn.jitter, "light": drawn.light_dir, "background": drawn.background}
    return cameras | {name: value for name, value in others.items() if value is not None}


@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
@pytest.mark.parametrize("background", ["random", "learned"])
def test_each_step_draws_its_own_and_all_that_its_look_needs(shading, background):
    config = tiny_config(steps=20, render__shading=shading, render__background=background, camera__views=3)
    one, again, other = (draw_views(config, step, 1, CPU) for step in (4, 4, 5))
    assert set(tensors(one)) >= {"c2w", "jitter"}
    assert (one.light_dir is not None) == (shading == "lambertian") and (one.background is None) == (
        background == "learned"
    )
    for name, value in tensors(one).items():
        assert len(value) == 3 and torch.equal(value, tensors(again)[name])
        assert name in ("distance", "fovy_rad") or not torch.equal(value, tensors(other)[name])


def test_views_of_a_group_share_their_noise_time_and_not_their_noise():
    config = tiny_config(steps=20, camera__views=4)
    times, noise = draw_noise_and_times(config, 3, 2, (4, 3, 8, 8), CPU)
    assert times[0] == times[1] != times[2] == times[3]
    assert noise.shape == (4, 3, 8, 8) and not torch.equal(noise[0], noise[1])


def test_what_is_made_ahead_is_what_the_step_would_draw(monkeypatch):
    config = tiny_config(steps=20, camera__views=2)
    ahead, shape = Draws(config, None, 1, CPU), (2, 3, 16, 16)
    ahead.noise(6, shape)
    ahead.make_ahead(7)
    for name in ("draw_views", "draw_noise_and_times"):
        monkeypatch.setattr(module, name, None)  # nothing more is drawn
    views, (times, noise) = ahead.views(7), ahead.noise(7, shape)
    monkeypatch.undo()
    expected_views, expected = draw_views(config, 7, 1, CPU), draw_noise_and_times(config, 7, 1, shape, CPU)
    assert all(torch.equal(value, tensors(views)[name]) for name, value in tensors(expected_views).items())
    assert torch.equal(times, expected[0]) and torch.equal(noise, expected[1])


def test_a_run_that_goes_back_or_sees_another_size_draws_what_belongs_there():
    config = tiny_config(steps=20, camera__views=2)
    draws = Draws(config, None, 1, CPU)
    for step, size in ((5, 8), (6, 8), (7, 16), (3, 16), (4, 16), (4, 8), (5, 8), (12, 8)):
        shape = (2, 3, size, size)
        assert torch.equal(draws.views(step).jitter, draw_views(config, step, 1, CPU).jitter)
        for found, expected in zip(
            draws.noise(step, shape), draw_noise_and_times(config, step, 1, shape, CPU), strict=True
        ):
            assert torch.equal(found, expected)
        draws.make_ahead(step + 1)


def test_nothing_is_drawn_after_the_last_step_and_little_is_kept():
    config = tiny_config(steps=20)
    draws = Draws(config, None, 1, CPU)
    for step in range(config.steps):
        draws.views(step)
        draws.noise(step, (2, 3, 8, 8))
        draws.make_ahead(step + 1)
        assert len(draws._views) <= KEPT and len(draws._noise) <= KEPT
    assert max(draws._views) == config.steps - 1 and max(step for step, _ in draws._noise) == config.steps - 1


def test_the_words_are_those_of_the_views_and_made_ahead_as_they_were_asked_for(monkeypatch):
    config = tiny_config(steps=20, camera__views=3, guidance__view_words="on")
    text, target, source, negative, null = (
        PromptEmbeddings(torch.randn(n, 5, 8), torch.ones(n, 5, dtype=torch.bool)) for n in (4, 4, 4, 1, 1)
    )
    words = EncodedWords(text, null, negative, target, source)
    draws = Draws(config, words, 1, CPU)
    roles = ("target", "null")
    assert torch.equal(draws.words(2).by_roles(roles).tokens[3:], words.null.repeat(3).tokens)
    draws.make_ahead(3)
    monkeypatch.setattr(words_module, "embeddings_for_views", None)  # nothing more is mixed
    found = draws.words(3).by_roles(roles)
    monkeypatch.undo()
    expected = embeddings_for_views(words.target, draw_views(config, 3, 1, CPU).cameras, 3)
    assert torch.equal(found.tokens[:3], expected.tokens) and not torch.equal(found.tokens[0], found.tokens[1])
    assert len(draws.words(3).by_roles(("source",))) == 3  # what was not asked for before


def test_steps_with_draws_made_ahead_are_those_without(monkeypatch):
    ends, drawn = [], []
    monkeypatch.setattr(module, "draw_views", lambda *arguments: drawn.append(arguments[1]) or draw_views(*arguments))
    for ahead in (False, True):
        config = tiny_config(steps=20, optim__inner_steps=2, guidance__view_words="on")
        scene = build_scene(config, resolve_backend("auto", CPU), CPU)
        optimiser, prior = build_optimiser(scene, config), CountingOracle()
        words = encode_words(prior, config.prompt, config.guidance)
        draws = Draws(config, words, prior.view_group, CPU)
        drawn.clear()
        for number in range(5):
            of_step = draws if ahead else Draws(config, words, prior.view_group, CPU)
            training_step(scene, optimiser, prior, of_step, config, Progress(number))
        ends.append(torch.cat([p.detach().flatten() for p in optimiser.parameters]))
    assert drawn == [0, 1, 2, 3, 4, 5]  # each once, the next one ahead
    assert torch.equal(*ends)
