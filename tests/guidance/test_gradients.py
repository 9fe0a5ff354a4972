"""The gradients against the formulas written out one number at a time."""

import pytest
import torch

from nerf_bridge.guidance.gradients import bridge, csd, nfsd, perp_neg, sds

SCALE = 7.5
NEGATIVE_SCALE = 1.25
SHAPE = (5, 3, 2, 4)
TIMES = (0.05, 0.199, 0.2, 0.5, 0.95)


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(3)
    names = ("text", "null", "negative", "noise")
    return {name: torch.randn(SHAPE, generator=generator, dtype=torch.float64) for name in names}


def by_hand(formula, predictions):
    """`formula(text, null, negative, noise, t)` for each number on its own."""
    columns = [predictions[name].flatten().tolist() for name in ("text", "null", "negative", "noise")]
    per_sample = len(columns[0]) // SHAPE[0]
    values = [formula(*numbers, TIMES[i // per_sample]) for i, numbers in enumerate(zip(*columns, strict=True))]
    return torch.tensor(values, dtype=torch.float64).reshape(SHAPE)


def assert_same(actual, expected):
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_sds_formula(predictions):
    expected = by_hand(lambda text, null, negative, noise, t: null + SCALE * (text - null) - noise, predictions)
    assert_same(sds(predictions["text"], predictions["null"], predictions["noise"], SCALE), expected)


def test_sds_at_scale_one_ignores_the_null_prompt(predictions):
    other = predictions["null"] + 5
    a = sds(predictions["text"], predictions["null"], predictions["noise"], 1.0)
    b = sds(predictions["text"], other, predictions["noise"], 1.0)
    assert torch.allclose(a, b, atol=1e-12)


def test_csd_formula(predictions):
    expected = by_hand(lambda text, null, negative, noise, t: SCALE * (text - null), predictions)
    assert_same(csd(predictions["text"], predictions["null"], SCALE), expected)


def test_csd_formula_with_a_negative_prompt(predictions):
    expected = by_hand(
        lambda text, null, negative, noise, t: SCALE * (text - null) - NEGATIVE_SCALE * (negative - null), predictions
    )
    actual = csd(predictions["text"], predictions["null"], SCALE, predictions["negative"], NEGATIVE_SCALE)
    assert_same(actual, expected)


def test_nfsd_formula_switches_for_each_sample(predictions):
    def formula(text, null, negative, noise, t):
        return SCALE * (text - null) + (null if t < 0.2 else null - negative)

    t = torch.tensor(TIMES, dtype=torch.float64)
    actual = nfsd(predictions["text"], predictions["null"], predictions["negative"], t, SCALE)
    assert_same(actual, by_hand(formula, predictions))


def test_bridge_formula(predictions):
    expected = by_hand(lambda target, source, negative, noise, t: SCALE * (target - source), predictions)
    assert_same(bridge(predictions["text"], predictions["null"], SCALE), expected)


def test_perp_neg_formula(predictions):
    """Armandpour et al. 2023, equation 8, one sample and one number at a time."""
    text, null = predictions["text"], predictions["null"]
    negatives = (predictions["negative"], predictions["noise"])
    weights = torch.tensor([[0.5, 1.5], [0.0, 2.0], [1.0, 0.0], [0.3, 0.3], [2.0, 1.0]], dtype=torch.float64)
    expected = []
    for i in range(len(text)):
        direction = [a - b for a, b in zip(text[i].flatten().tolist(), null[i].flatten().tolist(), strict=True)]
        row = text[i].flatten().tolist()
        for k, negative in enumerate(negatives):
            away = [a - b for a, b in zip(negative[i].flatten().tolist(), null[i].flatten().tolist(), strict=True)]
            along = sum(a * d for a, d in zip(away, direction, strict=True)) / sum(d * d for d in direction)
            moves = [a - along * d for a, d in zip(away, direction, strict=True)]
            row = [r - weights[i, k].item() * m for r, m in zip(row, moves, strict=True)]
        expected.append(row)
    expected = torch.tensor(expected, dtype=torch.float64).reshape(SHAPE)
    assert_same(perp_neg(text, null, negatives, weights), expected)


def test_perp_neg_never_pushes_against_the_prompt(predictions):
    text, null = predictions["text"], predictions["null"]
    moved = perp_neg(text, null, (predictions["negative"],), torch.full((len(text), 1), 3.0))
    along = ((moved - text) * (text - null)).flatten(1).sum(1)
    assert along.abs().max() < 1e-10
    assert torch.allclose(perp_neg(text, null, (text,), torch.ones(len(text), 1)), text, atol=1e-12)


def test_perp_neg_of_equal_predictions_is_finite(predictions):
    null = predictions["null"]
    assert perp_neg(null, null, (predictions["text"],), torch.ones(len(null), 1)).isfinite().all()


@pytest.mark.parametrize("n", [1, 3])
def test_each_sample_stands_alone(predictions, n):
    t = torch.tensor(TIMES[:n], dtype=torch.float64)
    first = {name: value[:n] for name, value in predictions.items()}
    whole = nfsd(first["text"], first["null"], first["negative"], t, SCALE)
    for i in range(n):
        one = {name: value[i : i + 1] for name, value in first.items()}
        alone = nfsd(one["text"], one["null"], one["negative"], t[i : i + 1], SCALE)
        assert torch.equal(whole[i : i + 1], alone)
