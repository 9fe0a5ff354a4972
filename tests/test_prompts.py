"""Composition of prompts, and the view in words."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.prompts import (
    VIEWS,
    add_words,
    compose_words,
    negative_view_weights,
    use_view_words,
    view_weights,
)

SETTINGS = GuidanceConfig(target_words="sharp", source_words="foggy, blurry", negative_prompt=" ugly ")


def weights_at(azimuth_deg, elevation_deg=0.0):
    angles = torch.deg2rad(torch.tensor([[azimuth_deg], [elevation_deg]], dtype=torch.float64))
    return dict(zip(VIEWS, view_weights(angles[0], angles[1])[0].tolist(), strict=True))


def test_target_and_source_words_follow_the_prompt():
    words = compose_words("a green armchair", SETTINGS, by_view=False)
    assert words.text == ("a green armchair",)
    assert words.target == ("a green armchair, sharp",)
    assert words.source == ("a green armchair, foggy, blurry",)
    assert (words.negative, words.null) == ("ugly", "")


def test_view_words_come_before_the_others():
    words = compose_words("a cat", SETTINGS, by_view=True)
    assert words.text == ("a cat, front view", "a cat, side view", "a cat, back view", "a cat, overhead view")
    assert words.source[2] == "a cat, back view, foggy, blurry"
    assert len(words.target) == 4


@pytest.mark.parametrize(
    ("prompt", "words", "joined"),
    [
        ("a cat.", "sharp", "a cat, sharp"),
        (" a cat , ", " sharp ", "a cat, sharp"),
        ("a cat", "", "a cat"),
        ("a cat", "  ", "a cat"),
    ],
)
def test_add_words_joins_with_one_comma(prompt, words, joined):
    assert add_words(prompt, words) == joined


@pytest.mark.parametrize("prompt", ["", "   \n", "x" * 501, None])
def test_bad_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="the prompt"):
        compose_words(prompt, SETTINGS, by_view=False)


def test_view_words_by_choice_and_prior():
    assert [use_view_words("auto", knows) for knows in (True, False)] == [False, True]
    assert all(use_view_words("on", knows) for knows in (True, False))
    assert not any(use_view_words("off", knows) for knows in (True, False))


@pytest.mark.parametrize(
    ("azimuth_deg", "view"),
    [
        (0, "front view"),
        (-10, "front view"),
        (350, "front view"),
        (90, "side view"),
        (270, "side view"),
        (180, "back view"),
        (-170, "back view"),
        (540, "back view"),
    ],
)
def test_each_direction_has_its_view(azimuth_deg, view):
    assert weights_at(azimuth_deg)[view] == pytest.approx(1)


@pytest.mark.parametrize(
    ("azimuth_deg", "view"), [(30, "front view"), (-30, "front view"), (150, "back view"), (210, "back view")]
)
def test_front_and_back_end_half_way_at_30_degrees(azimuth_deg, view):
    weights = weights_at(azimuth_deg)
    assert weights[view] == pytest.approx(0.5)
    assert weights["side view"] == pytest.approx(0.5)


def test_overhead_from_60_degrees_of_elevation():
    assert weights_at(0, 40)["overhead view"] == 0
    assert weights_at(0, 60)["overhead view"] == pytest.approx(0.5)
    assert weights_at(123, 80)["overhead view"] == pytest.approx(1)
    assert weights_at(0, -80)["overhead view"] == 0


@given(azimuth=st.floats(-10, 10), elevation=st.floats(-math.pi / 2, math.pi / 2))
def test_weights_are_shares_and_change_smoothly(azimuth, elevation):
    azimuths = torch.tensor([azimuth, azimuth + 1e-3, azimuth], dtype=torch.float64)
    elevations = torch.tensor([elevation, elevation, elevation + 1e-3], dtype=torch.float64)
    weights = view_weights(azimuths, elevations)
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert (weights - weights[:1]).abs().max() < 4e-3  # smoothstep over 30 degrees rises by at most 2.9 per radian


@given(azimuth=st.floats(-4, 4))
def test_left_and_right_are_alike(azimuth):
    both = torch.tensor([azimuth, -azimuth], dtype=torch.float64)
    weights = view_weights(both, torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(weights[0], weights[1])


def test_negative_views_follow_the_published_decays():
    """Between front and side by the share of the front, between side and back by the share of the side."""
    for r in (0.0, 0.3, 1.0):
        facing, averted = torch.tensor([[r, 1 - r, 0.0, 0.0]]), torch.tensor([[0.0, r, 1 - r, 0.0]])
        expected = (4 * math.exp(-0.5 * r) - 2.426, 4 * math.exp(-0.5 * (1 - r)) - 2.426)
        assert negative_view_weights(facing)[0].tolist() == pytest.approx([max(w, 0) for w in expected], abs=1e-6)
        if r < 1:
            expected = (math.exp(-0.5 * r) + 0.967, math.exp(-0.5 * r) - 0.606)
            assert negative_view_weights(averted)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_negative_views_are_continuous_at_the_side_and_vanish_in_front_and_overhead():
    at_side = [negative_view_weights(torch.tensor([[a, 1 - a - b, b, 0.0]])) for a, b in ((1e-6, 0.0), (0.0, 1e-6))]
    assert torch.allclose(*at_side, atol=2e-3)
    assert negative_view_weights(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))[0, 0] < 1e-3
    assert negative_view_weights(torch.tensor([[0.0, 0.0, 0.0, 1.0]])).tolist() == [[0.0, 0.0]]


def test_half_from_overhead_negative_views_count_half():
    level, raised = torch.tensor([[0.5, 0.5, 0.0, 0.0]]), torch.tensor([[0.25, 0.25, 0.0, 0.5]])
    assert torch.allclose(negative_view_weights(raised), 0.5 * negative_view_weights(level))
