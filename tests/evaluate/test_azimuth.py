"""The azimuth gate: an ideal denoiser shows the largest penalty, and a deaf one fails."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from evaluate.small_world import encoder

from nerf_bridge.evaluate import azimuth
from nerf_bridge.evaluate.azimuth import AzimuthErrors, azimuth_rows, ideal_errors, measure_azimuth, stored_renders
from nerf_bridge.evaluate.prior import azimuth_table
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.probe import AzimuthProbe
from nerf_bridge.prior.unet import UNet, UNetConfig, schedule

TINY = UNetConfig(image_size=64, channels=(64, 64), blocks=1, embedding=64, text_length=8)


PAIRS = build_primitives(0, n_single=0, n_pairs=12)  # of solids: they have a front and a back
MODELS = [replace(model, noun=("horse", "desk")[i % 2], article="a") for i, model in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def probe():
    return AzimuthProbe.build(MODELS, encoder(), torch.device("cpu"), n_images=5)


@pytest.mark.parametrize("log_snr", [-6.0, -3.0, 0.0, 2.0])
def test_times_have_their_log_snr(log_snr):
    alpha, sigma = schedule(torch.tensor(azimuth.time_of(log_snr), dtype=torch.float64))
    assert 2 * math.log(alpha / sigma) == pytest.approx(log_snr)


@pytest.mark.compiler
def test_the_ideal_denoiser_knows_the_truth_and_loses_most_when_misled(probe):
    right, turned = stored_renders(probe, MODELS, 0), stored_renders(probe, MODELS, 180)
    assert all(len(renders) == 6 for renders in right)
    true_is_there = [
        float((renders - image).abs().amax((1, 2, 3)).min()) for renders, image in zip(right, probe.images, strict=True)
    ]
    assert max(true_is_there) < 1e-6
    clear = ideal_errors(probe, right, azimuth.time_of(0.0))
    assert float(clear.max()) < 1e-6
    assert float(ideal_errors(probe, turned, azimuth.time_of(0.0)).min()) > 1e-3


@pytest.mark.compiler
def test_where_nothing_is_seen_the_ideal_answer_is_the_mean(probe):
    right = stored_renders(probe, MODELS, 0)
    blind = ideal_errors(probe, right, 1 - 1e-6)
    expected = [(renders.mean(0) - image).square().mean() for renders, image in zip(right, probe.images, strict=True)]
    assert torch.allclose(blind, torch.stack(expected), rtol=1e-2)


@pytest.mark.compiler
def test_the_table_is_of_trained_and_of_held_out_models():
    models = [replace(model, holdout=i % 3 == 0) for i, model in enumerate(MODELS)]
    prior = SimpleNamespace(network=UNet(TINY), text_encoder=encoder(), device=torch.device("cpu"))
    rows = azimuth_table(prior, models, 3, (-4.0,))
    assert {row.case for row in rows} == {"new views, log-SNR -4", "new models, log-SNR -4"}
    assert [row.value for row in rows if row.metric == "gate"] == [0.0, 0.0]
    trained = azimuth_table(prior, [model for model in models if not model.holdout], 3, (-4.0,))
    assert {row.case for row in trained} == {"new views, log-SNR -4"}


@pytest.mark.compiler
def test_the_ideal_denoiser_knows_only_what_the_caption_fits(probe):
    """Half of the desks are red in themselves: told so, it does not think of the others."""
    named = [replace(model, base_colour_word="red" if i % 4 == 1 else None) for i, model in enumerate(MODELS)]
    probe = AzimuthProbe.build(named, encoder(), torch.device("cpu"), n_images=6)
    counts = dict(zip(probe.captions, map(len, stored_renders(probe, named, 0)), strict=True))
    assert counts.get("a red desk", 3) == 3 and counts.get("a desk", 3) == 3 and counts.get("a horse", 6) == 6
    assert len(counts) > 1


def errors(prior, ideal):
    return AzimuthErrors(
        -4.0, *({d: torch.tensor(v) for d, v in zip((0, 90, 180), e, strict=True)} for e in (prior, ideal))
    )


def test_the_gate():
    ideal = ([0.0, 0.0], [0.1, 0.1], [0.2, 0.2])
    assert errors(([0.1, 0.1], [0.16, 0.16], [0.22, 0.22]), ideal).passed()
    assert not errors(([0.1, 0.1], [0.16, 0.16], [0.18, 0.18]), ideal).passed()  # less than half at 180
    assert not errors(([9.0, 9.0], [9.1, 9.1], [9.2, 9.2]), ideal).passed()  # less than a tenth
    assert errors(([0.1, 0.3], [0.2, 0.6], [0.3, 0.7]), ideal).rise(90).value == pytest.approx(1.0)


@pytest.mark.compiler
def test_a_network_before_training_fails_and_the_rows_say_so(probe):
    rows = azimuth_rows(measure_azimuth(UNet(TINY), probe, MODELS, (-4.0,)), "new views")
    by_metric = {row.metric: row for row in rows}
    assert by_metric["gate"].value == 0 and by_metric["rise_90"].value == pytest.approx(0, abs=1e-6)
    assert by_metric["penalty_180"].peer == "ideal" and by_metric["penalty_180"].peer_value > 1e-3
    assert all(row.case == "new views, log-SNR -4" for row in rows)
