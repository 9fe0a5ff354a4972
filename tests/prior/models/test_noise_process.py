"""Noise levels and conversions to epsilon against closed forms and diffusers' own schedulers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.noise import RectifiedFlow, read_process

CPU = torch.device("cpu")
SCHEDULES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
    {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
]


def sample(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, noise, torch.tensor([0.02, 0.3, 0.61, 0.98], dtype=torch.float64)


@pytest.mark.parametrize("settings", SCHEDULES)
def test_levels_are_those_of_diffusers(settings):
    process = read_process(settings, CPU)
    expected = DDPMScheduler(**settings).alphas_cumprod.double()
    assert torch.allclose(process.alphas**2, expected, rtol=1e-4, atol=1e-7)
    assert torch.allclose(process.alphas**2 + process.sigmas**2, torch.ones(len(expected), dtype=torch.float64))


def test_scaled_linear_in_closed_form():
    process = read_process(SCHEDULES[0], CPU)
    alpha_bar = 1.0
    for i in range(501):
        alpha_bar *= 1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999) ** 2
    alpha, sigma = process.alpha_sigma(torch.tensor([0.5004], dtype=torch.float64))
    assert alpha.item() == pytest.approx(math.sqrt(alpha_bar), rel=1e-12)
    assert sigma.item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-12)


def test_time_is_the_training_step():
    process = read_process(SCHEDULES[0], CPU)
    assert process.network_time(torch.tensor([0.0, 0.02, 0.5, 0.9999, 1.0])).tolist() == [0, 20, 500, 999, 999]


def test_levels_keep_the_dtype_of_the_time():
    process = read_process(SCHEDULES[0], CPU)
    assert [level.dtype for level in process.alpha_sigma(torch.tensor([0.5]))] == [torch.float32] * 2


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", [0, 2, 3])
def test_answers_of_a_variance_preserving_model_become_noise(predicts, schedule):
    process = read_process(SCHEDULES[schedule] | {"prediction_type": predicts}, CPU)
    x, noise, t = sample()
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in process.alpha_sigma(t))
    answer = noise if predicts == "epsilon" else alpha * noise - sigma * x
    assert torch.allclose(process.to_noise(answer, alpha * x + sigma * noise, t), noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_velocities_of_a_flow_become_noise(scale):
    process = RectifiedFlow(scale)
    x, noise, t = sample()
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in process.alpha_sigma(t))
    assert torch.equal(alpha.flatten(), 1 - t) and torch.equal(sigma.flatten(), t)
    assert torch.allclose(process.to_noise(noise - x, alpha * x + sigma * noise, t), noise, rtol=0, atol=1e-12)
    assert torch.equal(process.network_time(t), scale * t)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prediction_type": "sample"}, "prediction_type is 'sample', expected epsilon or v_prediction"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid', expected linear, scaled_linear or"),
    ],
)
def test_what_is_not_known_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        read_process(settings, CPU)
