"""The oracle and its measures do what they say, so that what is proven with them is proven."""

import math
import time

import numpy as np
import pytest
import torch
from oracle import OraclePrior, with_flaws
from oracle_objects import (
    HALF_DIAGONAL,
    OBJECTS,
    grid_points,
    occupancy_of_field,
    occupancy_of_mesh,
    volume_iou,
)

from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.scene.cameras import orbit_cameras


def views(azimuth_deg, background=(1.0, 1.0, 1.0)):
    azimuth = torch.deg2rad(torch.tensor(azimuth_deg))
    same = torch.ones_like(azimuth)
    cameras = orbit_cameras(azimuth, 0.3 * same, 3.0 * same, math.radians(40) * same)
    return ViewCondition(cameras, torch.tensor(background).expand(len(azimuth), 3))


@pytest.fixture(scope="module")
def oracle():
    return OraclePrior()


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing.noun)
def test_objects_fill_the_space_that_the_prior_expects(thing):
    vertices, faces, colors = thing.mesh
    low, high = vertices.min(0), vertices.max(0)
    assert np.allclose(low + high, 0, atol=1e-6)
    assert np.linalg.norm(high - low) == pytest.approx(2 * HALF_DIAGONAL, rel=1e-6)
    assert len(faces) == len(colors)
    assert thing.noun in thing.prompt.split()


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing.noun)
def test_mesh_and_inside_test_agree(thing):
    vertices, faces, _ = thing.mesh
    assert volume_iou(occupancy_of_mesh(vertices, faces), thing) > 0.99


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing.noun)
def test_surface_points_lie_on_the_surface(thing):
    points, colors = thing.surface(2000)
    assert len(points) > 1000
    assert ((colors > 0) & (colors < 1)).all()
    step = 0.02 * np.random.default_rng(0).normal(size=(40, 1, 3))
    around = thing.inside(points + step)
    assert (around.any(0) & ~around.all(0)).mean() > 0.99


def test_the_asymmetric_objects_differ_from_their_mirror_images():
    scores = {thing.noun: volume_iou(thing.inside(grid_points()), thing, mirrored=True) for thing in OBJECTS}
    assert scores["letter"] < 0.5 and scores["horse"] < 0.5
    assert scores["chair"] == scores["ball"] == 1.0


def test_field_occupancy_uses_the_threshold():
    thing = OBJECTS[0]
    occupied = occupancy_of_field(lambda points: 10.0 * thing.inside(points), 5.0)
    assert volume_iou(occupied, thing) == 1.0
    assert not occupancy_of_field(lambda points: 10.0 * thing.inside(points), 15.0).any()


def test_mesh_occupancy_does_not_fill_a_cavity_turned_inwards():
    vertices, faces, _ = OBJECTS[2].mesh
    both = np.concatenate([vertices, 0.5 * vertices])
    shell = np.concatenate([faces, faces[:, ::-1] + len(vertices)])
    assert not occupancy_of_mesh(both, shell)[32, 32, 32]
    assert occupancy_of_mesh(vertices, faces)[32, 32, 32]


def test_prediction_is_exact_for_a_prompt_that_names_one_object(oracle):
    condition = views([20.0, 200.0], (0.3, 0.6, 0.9))
    x = oracle.encode_image(oracle.render(condition)[1])
    t = torch.tensor([0.3, 0.9])
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in oracle.alpha_sigma(t))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    words = oracle.encode_prompts(["a green chair"]).repeat(2)
    predicted = oracle.predict_noise(alpha * x + sigma * noise, t, words, condition)
    assert torch.allclose(predicted, noise, atol=1e-4)


def test_null_prediction_finds_the_object_that_is_there_and_averages_at_high_noise(oracle):
    condition = views([50.0])
    pictures = oracle.encode_image(oracle.render(condition)[:, 0])
    null = oracle.encode_prompts([""])
    for t, expected in ((0.3, pictures[3]), (0.9999, pictures.mean(0))):
        alpha, sigma = oracle.alpha_sigma(torch.tensor([t]))
        noise = torch.randn(pictures[3:].shape, generator=torch.Generator().manual_seed(0))
        noised = alpha * pictures[3:] + sigma * noise
        predicted = oracle.predict_noise(noised, torch.tensor([t]), null, condition)
        clean = (noised - sigma * predicted) / alpha
        assert (clean[0] - expected).abs().mean() < 0.02


def test_camera_and_background_are_obeyed(oracle):
    noised, t = torch.zeros(1, 3, 64, 64), torch.tensor([0.9])
    words = oracle.encode_prompts(["a brown horse"])
    seen = [
        oracle.predict_noise(noised, t, words, views([angle], color))
        for angle, color in ((0.0, (1.0, 1.0, 1.0)), (180.0, (1.0, 1.0, 1.0)), (0.0, (0.0, 0.0, 0.0)))
    ]
    assert (seen[0] - seen[1]).abs().max() > 0.1
    assert (seen[0] - seen[2])[0, :, 0, 0].abs().min() > 0.1


def test_flaw_words_describe_flawed_pictures(oracle):
    condition = views([50.0])
    clean = oracle.encode_image(oracle.render(condition)[1, :1])
    flawed = with_flaws(0.5 * clean[None] + 0.5)[1]
    t = torch.tensor([0.5])
    alpha, sigma = oracle.alpha_sigma(t)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    words = oracle.encode_prompts(["a green chair, sharp", "a green chair, foggy, blurry"])

    def bridge(x):
        target, source = (
            oracle.predict_noise(alpha * x + sigma * noise, t, words.select([i]), condition) for i in (0, 1)
        )
        return target - source

    way = torch.nn.functional.cosine_similarity(-bridge(flawed).flatten(), (clean - flawed).flatten(), dim=0)
    assert way > 0.99
    assert bridge(clean).abs().max() < 1e-4


def test_an_unknown_camera_means_every_camera(oracle):
    condition = views([50.0])
    x = oracle.encode_image(oracle.render(condition)[1, :1])
    words, t = oracle.encode_prompts(["a green chair"]), torch.tensor([0.97])
    known = oracle.predict_noise(x, t, words, condition)
    hidden = oracle.predict_noise(x, t, words, condition.hiding(torch.tensor([True])))
    nothing = oracle.predict_noise(x, t, words, None)
    assert torch.equal(hidden, nothing)
    assert (known - hidden).abs().max() > 0.01


@pytest.mark.compiler
def test_a_step_of_four_views_is_quick(oracle):
    condition = views([0.0, 90.0, 180.0, 270.0]).repeat(2)
    words = oracle.encode_prompts(["a green chair"] * 4 + [""] * 4)
    noised, t = torch.randn(8, 3, 64, 64), torch.full((8,), 0.5)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        oracle.predict_noise(noised, t, words, condition)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3
