"""Nouns, colours and the caption table."""

import numpy as np
import pytest

from nerf_bridge.prior.data.captions import (
    DEGRADATIONS,
    N_VARIANTS,
    NEGATIVE_WORDS,
    SOURCE_WORDS,
    STATES,
    WHOLE_PROMPTS,
    build_caption_table,
    caption_variants,
    degraded_variants,
)
from nerf_bridge.prior.data.colours import TINT_WORDS, TINTS, colour_word, dominant_colour_word, tint_distribution
from nerf_bridge.prior.data.holdout import HELD_OUT_PAIRS, choose_held_out_models, is_held_out, mark_holdout
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.nouns import article_of, noun_of


def model(name, noun, tintable=True, colour=None, category="Living room"):
    return LibraryModel(
        name, noun, article_of(noun), category, "me", "CC0", np.zeros((3, 3), np.float32),
        np.array([[0, 1, 2]], np.int32), np.zeros((1, 3), np.uint8), np.full(1, tintable, np.uint8), colour,
    )  # fmt: skip


def small_library():
    nouns = ["armchair", "sofa", "chair", "table", "wardrobe", "umbrella", "shelves"]
    models = [model(f"Test#{noun}-{k}", noun, colour="red" if k == 0 else None) for noun in nouns for k in range(5)]
    return [*models, model("Test#woman", "woman", tintable=False)]


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("Armchair 2", "armchair"), ("Couch", "sofa"), ("Female", "woman"), ("Wooden alder table", "table"),
        ("TV 16:9", "TV"), ("Scissors", "pair of scissors"), ("Rubik's cube", "rubik's cube"),
    ],
)  # fmt: skip
def test_nouns_are_what_people_type(name, noun):
    assert noun_of("Test#x", name) == noun


@pytest.mark.parametrize(
    ("noun", "article"),
    [("armchair", "an"), ("sofa", "a"), ("umbrella", "an"), ("urinal", "a"), ("SUV", "an"), ("shelves", "")],
)
def test_articles_follow_the_sound(noun, article):
    assert article_of(noun) == article


def test_article_belongs_to_the_first_word():
    assert caption_variants("armchair", "an", "red")[:2] == ["a red armchair", "red armchair"]
    assert caption_variants("chair", "a", "orange")[0] == "an orange chair"
    assert caption_variants("shelves", "", "orange")[0] == "orange shelves"


def test_every_flaw_has_its_words():
    rng = np.random.default_rng(0)
    for kind, words in DEGRADATIONS.items():
        variants = degraded_variants("a chair", kind, rng, 4)
        assert len(variants) == 4 and variants[0] == f"a chair, {words[0]}"
        plain = variants[:-1] if kind in WHOLE_PROMPTS else variants
        assert all(set(text.split(", ")[1:]) <= set(words) for text in plain)
    assert degraded_variants("a chair", "distilled", rng, 2)[-1] == f"a chair, {SOURCE_WORDS}"
    assert degraded_variants("a chair", "dark", rng, 2)[-1] == f"a chair, {NEGATIVE_WORDS}"


def test_table_names_noun_and_colour():
    models = small_library()
    table = build_caption_table(models, seed=0)
    assert table.caption_index.shape == (len(models), len(TINT_WORDS) + 1, len(STATES), N_VARIANTS)
    assert table.caption_index.dtype == np.int32
    assert table.texts[0] == "" and len(set(table.texts)) == len(table.texts)
    green = TINT_WORDS.index("green") + 1
    texts = [table.texts[i] for i in table.caption_index[0, green, 0]]
    assert "a green armchair" in texts and all("green" in text for text in texts)
    sofas = [table.texts[i] for i in table.caption_index[5, green, 0]]
    assert "a green couch" in sofas
    own = [table.texts[i] for i in table.caption_index[0, 0, 0]]
    assert own[:2] == ["a red armchair", "red armchair"] and own[3:5] == ["an armchair", "armchair"]
    foggy = [table.texts[i] for i in table.caption_index[0, 0, STATES.index("fog")]]
    assert foggy[0].startswith("a red armchair, foggy") and foggy[3].startswith("an armchair, foggy")
    nameless = [table.texts[i] for i in table.caption_index[1, 0, 0]]  # a model whose colour has no word
    assert not any("red" in text for text in nameless)


def test_untintable_models_have_no_tints():
    table = build_caption_table(small_library(), seed=0)
    assert not table.usable[-1, 1:].any() and table.usable[:, 0].all()
    assert table.texts[table.caption_index[-1, 3, 0, 0]] == "a woman"


def test_table_is_deterministic():
    first, again = (build_caption_table(small_library(), seed=3) for _ in range(2))
    assert first.texts == again.texts and np.array_equal(first.caption_index, again.caption_index)
    other = build_caption_table(small_library(), seed=4)
    assert other.texts != first.texts


def test_held_out_pairs_are_named_by_no_caption():
    models = small_library()
    pairs = frozenset({("armchair", "blue"), ("sofa", "red"), ("wardrobe", "green"), ("couch", "pink")})
    table = build_caption_table(models, seed=0, held_out_pairs=pairs)
    for noun, colour in pairs:
        tint = TINT_WORDS.index(colour) + 1
        rows = [i for i, m in enumerate(models) if m.noun == noun]
        assert not table.usable[rows, tint].any()
        assert not any(f"{colour} {noun}" in text for text in table.texts)
    assert "a pink sofa" not in table.texts  # a sofa is called a couch too
    untinted = table.caption_index[5, 0, 0]  # a red sofa, whose own colour may not be named
    assert [table.texts[i] for i in untinted][:2] == ["a sofa", "sofa"]


@pytest.mark.parametrize(
    ("noun", "kin"),
    [
        ("car", {"SUV", "toy car"}),
        ("vase", {"vase of tulips"}),
        ("table", {"coffee table", "table on trestles", "round table"}),
        ("toilet", set()),
        ("chair", {"sun lounger"}),  # which is called a deck chair too
    ],
)
def test_kinds_of_a_noun_are_held_out_with_it(noun, kin):
    others = {"SUV", "toy car", "vase of tulips", "coffee table", "table on trestles", "round table", "table lamp"}
    others |= {"sun lounger", "toilet brush", "carpet", "glass door cabinet"}
    pairs = frozenset({(noun, "pink")})
    assert {other for other in others if is_held_out(other, "pink", pairs)} == kin
    assert is_held_out(noun, "pink", pairs) and not is_held_out(noun, "red", pairs)


def test_pairs_that_people_try_first_stay():
    first = {("armchair", "green"), ("sofa", "red"), ("chair", "blue"), ("cupboard", "yellow"), ("table", "wooden")}
    assert not HELD_OUT_PAIRS & first
    assert 50 <= len(HELD_OUT_PAIRS) <= 70
    assert all(colour in TINT_WORDS for _, colour in HELD_OUT_PAIRS)
    table = build_caption_table(small_library(), seed=0)
    assert "a green armchair" in table.texts and "an orange armchair" in table.texts
    assert not any("purple armchair" in text for text in table.texts)


def test_held_out_models_leave_most_of_each_noun():
    models = small_library()
    names = choose_held_out_models(models)
    assert len(names) == 7
    marked = mark_holdout(models)
    assert [m.name for m in marked if m.holdout] == [m.name for m in models if m.name in names]


def test_tints_are_named_by_their_own_words():
    mean, deviation = tint_distribution()
    assert mean.shape == deviation.shape == (len(TINTS), 3)
    for tint in TINTS[:12]:
        assert colour_word(np.array(tint.mean)) == tint.word


def test_mixed_surfaces_have_no_colour_word():
    colors = np.array([[0.9, 0.05, 0.05], [0.1, 0.2, 0.9]])
    assert dominant_colour_word(colors, np.array([0.9, 0.1])) == "red"
    assert dominant_colour_word(colors, np.array([0.5, 0.5])) is None
