"""The rule for colour words: each tint of the prior gets its own word, and the largest cluster judges."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from nerf_bridge.evaluate import colours
from nerf_bridge.prior.data.colours import TINTS

GREEN, RED, BLUE = (0.15, 0.6, 0.2), (0.8, 0.1, 0.1), (0.1, 0.3, 0.8)


def tinted(word: str, light: float) -> np.ndarray:
    """500 colours [500, 3] of the prior's tint `word` under `light` in 0..1."""
    (tint,) = [tint for tint in TINTS if tint.word == word]
    noise = np.random.default_rng(0).standard_normal((500, 3))
    return np.clip(np.array(tint.mean) + noise * np.array(tint.jitter), 0, 1) * light


@pytest.mark.parametrize("light", [1.0, 0.8, 0.65])
@pytest.mark.parametrize("tint", colours.COLOURS, ids=lambda tint: tint.word)
def test_each_tint_of_the_prior_gets_its_own_word(tint, light):
    named = colours.name_colours(tinted(tint.word, light))
    assert (named == tint.word).mean() > 0.85


def test_wood_is_a_range_of_browns_and_only_where_it_is_asked_for():
    wood = tinted("wooden", 0.9)
    assert (colours.name_colours(wood, wooden=True) == "wooden").mean() > 0.85
    assert "wooden" not in colours.name_colours(wood)
    others = np.array([RED, GREEN, BLUE, (0.95, 0.84, 0.14), (0.5, 0.5, 0.5), (0.05, 0.04, 0.03)])
    assert "wooden" not in colours.name_colours(others, wooden=True)


def test_hue_decides_before_light():
    dark_green, dark_red, pale_blue = (0.05, 0.22, 0.06), (0.30, 0.02, 0.02), (0.55, 0.65, 0.95)
    named = colours.name_colours(np.array([dark_green, dark_red, pale_blue, (0.05, 0.14, 0.05), (0.9, 0.85, 0.88)]))
    assert named.tolist() == ["green", "red", "blue", "black", "white"]


def test_hue_saturation_and_value_are_those_of_colorsys():
    rgb = np.random.default_rng(1).random((200, 3))
    expected = np.array([colorsys.rgb_to_hsv(*colour) for colour in rgb]) * [360, 1, 1]
    assert colours.hue_saturation_value(rgb) == pytest.approx(expected, abs=1e-6)
    assert colours.hue_saturation_value(np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])).tolist() == [[0, 0, 0], [0, 0, 0.5]]


def test_the_largest_cluster_judges():
    pixels = np.array([GREEN] * 6 + [RED] * 4)
    colour, obeyed = colours.judge_colours(pixels, ["green"])
    assert obeyed is True and colour.shares == {"green": 0.6, "red": 0.4}
    assert colour.main_rgb == pytest.approx(GREEN) and colour.median_rgb == pytest.approx(GREEN)
    assert colours.judge_colours(pixels, ["red"])[1] is False
    assert colours.judge_colours(pixels, [])[1] is None
    assert colours.judge_colours(pixels, ["red", "green"])[1] is True
    assert colours.judge_colours(pixels, ["red", "blue"])[1] is False
    assert colours.judge_colours(pixels[:5], ["red", "green"])[1] is False


def test_the_colour_words_of_a_prompt():
    assert colours.asked_colours("a blue ball on a red cube, blue") == ("blue", "red")
    assert colours.asked_colours("a Wooden table") == ("wooden",)
    assert colours.asked_colours("a horse in a greenhouse") == ()


def area(**parts: int) -> np.ndarray:
    """Pixels of an object: so many of each colour."""
    known = {"green": GREEN, "red": RED, "blue": BLUE}
    return np.array([known[word] for word, n in parts.items() for _ in range(n)])


def test_beside_truth_the_largest_cluster_judges_where_it_does_in_truth():
    truths = [area(red=9, blue=1), area(red=6, blue=4)]
    seen = [area(red=6, blue=4), area(red=4, blue=6), np.empty((0, 3))]
    assert colours.judge_beside_truth(seen, truths, ["red"]) == ([1.0, 0.0, 0.0], [1.0, 1.0])


def test_beside_truth_a_part_is_enough_where_truth_shows_a_part():
    truths = [area(red=3, green=7), area(red=5, green=15)]  # 0.275 on average
    seen = [area(red=2, green=8), area(red=1, green=9), area(green=9)]
    assert colours.judge_beside_truth(seen, truths, ["red"]) == ([1.0, 0.0, 0.0], [1.0, 1.0])


def test_colours_that_truth_does_not_show_or_nobody_asked_for_are_not_judged():
    assert colours.judge_beside_truth([area(red=9)], [area(green=99, red=1)], ["red"]) is None
    assert colours.judge_beside_truth([area(red=9)], [area(red=9)], []) is None
