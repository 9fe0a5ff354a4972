"""Stages, times, noise and weights as functions of the step alone."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerf_bridge.config import GuidanceConfig, OccupancyConfig, RenderConfig, build_config
from nerf_bridge.errors import UserError
from nerf_bridge.guidance.schedule import (
    draw_noise,
    draw_times,
    is_refreshed_at,
    noise_weight,
    ramp_at,
    rate_at,
    size_at,
    stage_at,
    step_generator,
    t_max_at,
    t_min_at,
)


@pytest.mark.parametrize(
    ("steps", "bridge_from", "first_of_two"),
    [(300, 0.75, 225), (10, 0.7, 7), (10, 0.3, 3), (7, 0.5, 4), (100, 0.0, 0), (1, 0.75, 1), (25_000, 0.8, 20_000)],
)
def test_stage_two_starts_at_the_fraction(steps, bridge_from, first_of_two):
    stages = [stage_at(step, steps, bridge_from) for step in range(steps)]
    assert stages == [1] * min(first_of_two, steps) + [2] * (steps - first_of_two)


def test_no_stage_two_when_it_would_start_at_the_end():
    assert {stage_at(step, 40, 1.0) for step in range(40)} == {1}


def test_t_max_is_linear_from_start_to_end():
    settings = GuidanceConfig(t_max_start=0.95, t_max_end=0.5)
    assert t_max_at(0, 101, settings) == 0.95
    assert t_max_at(100, 101, settings) == pytest.approx(0.5)
    assert t_max_at(50, 101, settings) == pytest.approx(0.725)
    assert t_max_at(0, 1, settings) == 0.95


def test_t_max_may_jump_as_published():
    settings = GuidanceConfig(t_min=0.02, t_max_start=0.98, t_max_end=0.5, t_max_from=0.2, t_max_until=0.2)
    assert [t_max_at(step, 25_000, settings) for step in (0, 4_999, 5_000, 24_999)] == [0.98, 0.98, 0.5, 0.5]


def test_t_min_falls_with_t_max_where_it_has_an_end():
    settings = GuidanceConfig(t_min=0.4, t_min_end=0.1, t_max_from=0.2, t_max_until=0.6)
    assert [t_min_at(step, 101, settings) for step in (0, 20, 40, 60, 100)] == pytest.approx([0.4, 0.4, 0.25, 0.1, 0.1])
    assert {t_min_at(step, 101, GuidanceConfig(t_min=0.2, t_min_end=None)) for step in range(101)} == {0.2}


def test_a_ramp_is_flat_linear_and_flat():
    assert [ramp_at(step, 101, 0.2, 0.6) for step in (0, 20, 30, 40, 60, 100)] == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [ramp_at(step, 10, 0.7, 0.7) for step in range(10)] == [0.0] * 7 + [1.0] * 3
    assert ramp_at(0, 1, 0.0, 1.0) == 0.0


def test_the_size_changes_at_its_fraction():
    settings = RenderConfig(size=512, early_size=64, early_until=0.2)
    assert [size_at(step, 25_000, settings) for step in (0, 4_999, 5_000, 24_999)] == [64, 64, 512, 512]
    assert {size_at(step, 50, RenderConfig(size=32, early_size=64)) for step in range(50)} == {32}  # never above size
    assert {size_at(step, 50, RenderConfig(size=32, early_size=None)) for step in range(50)} == {32}


def test_the_views_may_grow_by_doubling():
    settings = RenderConfig(size=512, early_size=64, early_until=0.4, grow_until=0.8)
    sizes = [size_at(step, 100, settings) for step in range(100)]
    assert sizes == [64] * 40 + [128] * 20 + [256] * 20 + [512] * 20


@pytest.mark.parametrize(
    ("early", "last", "between"), [(64, 128, {128}), (64, 64, {64}), (100, 512, {200, 400}), (64, 500, {128, 256})]
)
def test_views_grow_in_doublings_and_never_past_the_last_size(early, last, between):
    settings = RenderConfig(size=last, early_size=early, early_until=0.2, grow_until=0.6)
    sizes = [size_at(step, 1000, settings) for step in range(1000)]
    assert sizes == sorted(sizes) and set(sizes) == {early, last} | between
    assert sizes[199] == early and sizes[600] == last


@given(
    steps=st.integers(1, 400),
    early=st.sampled_from([16, 64, 100]),
    size=st.sampled_from([100, 256, 512]),
    edges=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_sizes_of_any_schedule_grow_from_the_first_to_the_last(steps, early, size, edges):
    settings = RenderConfig(size=size, early_size=early, early_until=edges[0], grow_until=edges[1])
    sizes = [size_at(step, steps, settings) for step in range(steps)]
    assert sizes == sorted(sizes) and all(early <= each <= size for each in sizes)


@pytest.mark.parametrize(
    ("render", "said"),
    [
        ({"grow_until": 0.9, "early_size": None}, "render.grow_until needs an early_size up to size (128), got None"),
        ({"grow_until": 0.9, "early_size": 256}, "render.grow_until needs an early_size up to size (128), got 256"),
        ({"grow_until": 0.1, "early_size": 32}, "render.early_until (0.8) is above grow_until (0.1)"),
    ],
)
def test_a_schedule_of_sizes_that_cannot_be_is_refused(render, said):
    with pytest.raises(UserError) as caught:
        build_config({"prompt": "a", "render": render})
    assert str(caught.value) == said


def test_the_occupancy_is_looked_at_seldomer_in_the_late_part():
    settings = OccupancyConfig(every=8, late_every=32, late_from=0.5)
    assert [step for step in range(200) if is_refreshed_at(step, 200, settings)] == [*range(0, 100, 8), 128, 160, 192]
    plain = OccupancyConfig(every=3)
    assert [step for step in range(10) if is_refreshed_at(step, 10, plain)] == [0, 3, 6, 9]


def test_the_learning_rate_falls_by_the_same_share_each_step():
    rates = [rate_at(step, 10, 0.1) for step in range(11)]
    assert rates[0] == 1 and rates[10] == pytest.approx(0.1)
    assert all(b / a == pytest.approx(0.1**0.1) for a, b in itertools.pairwise(rates))
    assert {rate_at(step, 10, 1.0) for step in range(10)} == {1.0}


@given(
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 10**6),
    t_min=st.floats(0, 0.4),
    span=st.floats(0.01, 0.6),
)
def test_times_stay_in_range_and_inside_zero_and_one(seed, step, t_min, span):
    times = draw_times(seed, step, 8, t_min, t_min + span)
    assert times.shape == (8,) and times.dtype == torch.float32
    assert (times > 0).all() and (times < 1).all()
    assert (times >= t_min - 1e-6).all() and (times <= max(t_min + span, 1e-4) + 1e-6).all()


def test_times_fill_the_range_evenly():
    times = torch.cat([draw_times(1, step, 4, 0.1, 0.9) for step in range(2500)])
    shares = torch.histc(times, bins=4, min=0.1, max=0.9) / times.numel()
    assert (shares - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / times.numel())


def test_a_resumed_run_draws_the_same():
    unbroken = [(draw_times(7, step, 4, 0.05, 0.9), draw_noise(7, step, (4, 3, 2, 2))) for step in range(6)]
    torch.manual_seed(0)
    torch.rand(100)
    for step in (4, 5):
        assert torch.equal(unbroken[step][0], draw_times(7, step, 4, 0.05, 0.9))
        assert torch.equal(unbroken[step][1], draw_noise(7, step, (4, 3, 2, 2)))


def test_steps_seeds_and_purposes_draw_differently():
    draws = [draw_noise(seed, step, (16,)) for seed in (0, 1) for step in (0, 1, 2)]
    draws.append(torch.randn(16, generator=step_generator(0, 0, "cameras")))
    for i, a in enumerate(draws):
        assert all(not torch.equal(a, b) for b in draws[:i])


def test_sigma2_weight_is_one_minus_alpha_bar_and_holds_for_flows():
    alpha_bar = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    assert torch.allclose(noise_weight(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), "sigma2"), 1 - alpha_bar)
    tau = torch.tensor([0.25], dtype=torch.float64)
    assert noise_weight(1 - tau, tau, "sigma2").item() == pytest.approx(0.25**2 / (0.75**2 + 0.25**2))


def test_weight_one_is_one():
    assert torch.equal(noise_weight(torch.tensor([0.3]), torch.tensor([0.4]), "one"), torch.ones(1))
