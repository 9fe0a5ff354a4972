"""Sampling straight from a prior finds what the prior knows."""

import sys

import imageio.v3 as iio
import pytest
import torch
from oracle import OraclePrior
from oracle_objects import OBJECTS

from nerf_bridge.prior import sample
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.prior.sample import ddim_sample, sample_sheet
from nerf_bridge.scene.cameras import turntable_cameras

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle():
    return OraclePrior(image_size=24, supersample=1)


@pytest.fixture(scope="module")
def condition():
    return ViewCondition(turntable_cameras(2, 0.26, 3.0, 0.7), torch.tensor([[1.0, 1.0, 1.0], [0.2, 0.4, 0.6]]))


def draw(oracle, condition, prompts, seed=0, **settings):
    noise = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return ddim_sample(
        oracle, oracle.encode_prompts(prompts), oracle.encode_prompts([""]), condition, noise, **settings
    )


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing.noun)
def test_it_draws_what_the_words_and_the_camera_say(oracle, condition, thing):
    images = draw(oracle, condition, [thing.prompt] * 2, scale=1.0)
    truth = oracle.render(condition)[OBJECTS.index(thing)]
    assert images.shape == (2, 3, 24, 24)
    assert float((images - truth).abs().max()) < 0.02


def test_each_image_follows_its_own_prompt(oracle, condition):
    images = draw(oracle, condition, [OBJECTS[0].prompt, OBJECTS[1].prompt], scale=1.0)
    truth = oracle.render(condition)
    assert float((images[0] - truth[0, 0]).abs().mean()) < 0.01
    assert float((images[1] - truth[1, 1]).abs().mean()) < 0.01


def test_without_words_it_draws_one_of_the_objects(oracle, condition):
    images = draw(oracle, condition, ["", ""], scale=1.0)
    distances = (oracle.render(condition) - images).abs().mean((2, 3, 4)).min(0).values
    assert bool((distances < 0.02).all())


def test_guidance_of_zero_ignores_the_words(oracle, condition):
    one, other = (draw(oracle, condition, [thing.prompt] * 2, scale=0.0, steps=6) for thing in OBJECTS[:2])
    assert torch.equal(one, other)


def test_the_noise_alone_decides_the_rest(oracle, condition):
    first, again, other = (draw(oracle, condition, ["", ""], seed=seed, steps=6) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sheet_has_a_row_for_each_prompt_seen_from_all_around(oracle):
    prompts = [OBJECTS[0].prompt, OBJECTS[1].prompt]
    images = sample_sheet(oracle, prompts, views=3, scale=1.0, seed=0, device=CPU)
    assert images.shape == (6, 3, 24, 24)
    cameras = turntable_cameras(3, 0.2618, 3.0, 0.6981)
    truth = oracle.render(ViewCondition(cameras, torch.ones(3, 3)))[:2].flatten(0, 1)
    assert float((images - truth).abs().mean()) < 0.02


def test_the_command_writes_a_picture(oracle, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "load_embedded", lambda device, weights: oracle)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "sheet.png"
    monkeypatch.setattr(
        sys, "argv", ["sample", *[thing.prompt for thing in OBJECTS[:2]], "--out", str(out), "--views", "3"]
    )
    sample.main()
    assert iio.imread(out).shape == (2 * 24, 3 * 24, 3)
