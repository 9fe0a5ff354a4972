"""Shading: the light's formula, where the light stands, and which shading a step has."""

from collections import Counter

import pytest
import torch

from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.shading import AMBIENT, draw_light_directions, headlight_directions, shade, shading_at

ALBEDO = torch.tensor([[0.8, 0.4, 0.2]] * 3)
NORMALS = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # towards the light, across, away
LIGHT = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)


def test_lambertian_is_full_towards_the_light_and_ambient_away_from_it() -> None:
    colour = shade(ALBEDO, NORMALS, LIGHT, "lambertian")
    assert torch.allclose(colour, ALBEDO * torch.tensor([[1.0], [AMBIENT], [AMBIENT]]))


def test_textureless_shows_only_the_light_and_albedo_only_the_colour() -> None:
    grey = shade(ALBEDO, NORMALS, LIGHT, "textureless")
    assert torch.allclose(grey, torch.tensor([[1.0], [AMBIENT], [AMBIENT]]).expand(3, 3))
    assert torch.equal(shade(ALBEDO, NORMALS, LIGHT, "albedo"), ALBEDO)


def test_light_stands_near_the_camera_and_repeats_by_seed() -> None:
    cameras = turntable_cameras(64, 0.3, 3.0, 0.7)
    first, again, other = (draw_light_directions(cameras, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(first.norm(dim=-1), torch.ones(64), atol=1e-6)
    cosine = (first * headlight_directions(cameras)).sum(-1)
    assert cosine.mean() > 0.7 and cosine.std() > 0.05
    assert torch.allclose(headlight_directions(cameras)[0], torch.tensor([0.0, -0.9553, 0.2955]), atol=1e-4)


@pytest.mark.parametrize("setting", ["albedo", "lambertian", "textureless"])
def test_a_named_shading_is_the_same_at_every_step(setting: str) -> None:
    assert {shading_at(setting, seed=1, step=step) for step in range(5)} == {setting}


def test_mixed_is_a_pure_function_of_seed_and_step_that_uses_all_three() -> None:
    drawn = [shading_at("mixed", 0, step) for step in range(300)]
    assert drawn == [shading_at("mixed", 0, step) for step in range(300)]
    assert drawn != [shading_at("mixed", 1, step) for step in range(300)]
    assert min(Counter(drawn).values()) > 60 and len(set(drawn)) == 3
