"""Solver steps: the ends of the paths of Gaussians, whose probability-flow ODE is solved in closed form."""

import math

import pytest
import torch
from gaussian_mixture import Component, GaussianMixturePrior

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.guidance import encode_words, guidance_gradient, pull
from nerf_bridge.guidance.solver import path_end, path_start, predict_ends
from nerf_bridge.prior.protocol import PromptEmbeddings

ONE = [Component("dot", (1.5, -0.5), 0.4)]
TWO = [Component("left", (-2.0, 0.0), 0.1), Component("right", (2.0, 0.0), 0.1)]
MANY = [
    Component("clean", (2.0, 0.5), 0.3),
    Component("foggy", (-2.0, 0.5), 0.4, weight=2.0),
    Component("ugly", (0.0, -3.0), 0.7),
    Component("dot", (1.0, 1.5), 0.5, weight=0.5),
]
SETTINGS = GuidanceConfig(
    scale=3.0, bridge_scale=2.0, target_words="clean", source_words="foggy", negative_prompt="ugly"
)
PROMPTS = {"text": "dot", "null": "", "negative": "ugly", "target": "dot, clean", "source": "dot, foggy"}


def levels(t):
    return math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)


def points(n, seed=0):
    return torch.randn((n, 2, 1, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5


def ends(prior, prompt, noised, t, n_steps):
    """Where the paths of `prompt` end, [b, 2, 1, 1]."""
    words = prior.encode_prompts([prompt])

    def predict(x, now):
        return prior.predict_noise(x, now, words.repeat(len(x)), None)

    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    return (noised - sigma * predict_ends(prior, [predict] * n_steps, noised, t)) / alpha


def test_one_step_is_the_prediction_itself():
    prior, noised, t = GaussianMixturePrior(ONE), points(5), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    words = prior.encode_prompts(["dot"]).repeat(5)
    expected = prior.predict_noise(noised, t, words, None)
    actual = predict_ends(prior, [lambda x, now: prior.predict_noise(x, now, words, None)], noised, t)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_many_steps_reach_the_end_of_the_path_and_fewer_come_less_near(t):
    """Along the path of N(m, s^2) a point keeps its place in units of the spread: it ends at m + s (x_t - a m) / r."""
    prior, noised, times = GaussianMixturePrior(ONE), points(6), torch.full((6,), t, dtype=torch.float64)
    alpha, sigma = levels(t)
    mean, std = torch.tensor(ONE[0].mean, dtype=torch.float64).view(1, 2, 1, 1), ONE[0].std
    expected = mean + std * (noised - alpha * mean) / math.hypot(alpha * std, sigma)
    errors = [float((ends(prior, "dot", noised, times, n) - expected).abs().max()) for n in (1, 4, 16, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.7 * errors[0] and errors[-1] < 0.01


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_a_path_starts_where_its_end_is_reached_from(t):
    prior, clean, times = GaussianMixturePrior(ONE), points(6), torch.full((6,), t, dtype=torch.float64)
    words = prior.encode_prompts(["dot"]).repeat(6)

    def predict(x, now):
        return prior.predict_noise(x, now, words, None)

    alpha, sigma = levels(t)
    mean, std = torch.tensor(ONE[0].mean, dtype=torch.float64).view(1, 2, 1, 1), ONE[0].std
    expected = alpha * mean + math.hypot(alpha * std, sigma) * (clean - mean) / std
    errors = [float((path_start(prior, predict, clean, times, n) - expected).abs().max()) for n in (1, 4, 16, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * errors[0]
    back = path_end(prior, [predict] * 400, path_start(prior, predict, clean, times, 400), times)
    assert torch.allclose(back, clean, atol=0.02, rtol=0.01)


def test_the_bounds_of_x_hold_on_the_way_to_noise_too():
    prior, t = GaussianMixturePrior(TWO), torch.full((4,), 0.9, dtype=torch.float64)
    clean, words = points(4).clamp(-1, 1), prior.encode_prompts(["right"]).repeat(4)
    free, told = (
        path_start(prior, lambda x, now: prior.predict_noise(x, now, words, None), clean, t, 3)
        for prior.x_limit in (None, 1.0)
    )
    alpha, sigma = levels(0.6)
    before = path_start(prior, lambda x, now: prior.predict_noise(x, now, words, None), clean, t * 2 / 3, 2)
    noise = prior.predict_noise(before, t * 2 / 3, words, None)
    end = ((before - sigma * noise) / alpha).clamp(-1, 1)
    alpha, sigma = levels(0.9)
    assert torch.allclose(told, alpha * end + sigma * noise) and not torch.allclose(told, free)


def test_the_dual_bridge_does_not_depend_on_the_noise_that_is_drawn():
    prior = GaussianMixturePrior(MANY)
    settings = SETTINGS.model_copy(update={"solver_steps": 3})
    words, t = encode_words(prior, "dot", settings), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    first, second = (guidance_gradient(prior, points(5), t, points(5, n), words, None, settings, 2) for n in (1, 2))
    assert torch.equal(first, second)


def test_the_dual_bridge_moves_nothing_where_both_prompts_say_the_same():
    prior = GaussianMixturePrior(MANY)
    same = SETTINGS.model_copy(update={"scale": 1.0, "solver_steps": 100, "source_words": "clean"})
    x, t = points(5), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    rest = guidance_gradient(prior, x, t, points(5), encode_words(prior, "dot", same), None, same, 2)
    other = same.model_copy(update={"source_words": "foggy"})
    moved = guidance_gradient(prior, x, t, points(5), encode_words(prior, "dot", other), None, other, 2)
    assert rest.abs().max() < 0.1 * moved.abs().max()


def test_the_end_is_one_of_two_where_one_step_ends_between():
    prior, t = GaussianMixturePrior(TWO), torch.full((1,), 0.8, dtype=torch.float64)
    noised = torch.tensor([0.05, 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    between, one = (float(ends(prior, "", noised, t, n)[0, 0, 0, 0]) for n in (1, 20))
    assert 0 < between < 0.8 and abs(one - 2.0) < 0.3


def test_the_bounds_of_x_hold_on_the_way():
    prior, t = GaussianMixturePrior(TWO), torch.full((4,), 0.9, dtype=torch.float64)
    prior.x_limit = 1.0
    assert ends(prior, "right", points(4), t, 3).abs().max() <= 1 + 1e-9


def by_hand(prior, method, stage, point, t, noise, n, n_guided):
    """The gradient of one sample, its paths walked one by one; [2]. Guided at first: of sds and the bridge alone."""
    alpha, sigma = levels(t)
    encoded = {role: prior.encode_prompts([prompt]) for role, prompt in PROMPTS.items()}

    def eps(role, x, now):
        words: PromptEmbeddings = encoded[role]
        time = torch.tensor([now], dtype=torch.float64)
        return prior.predict_noise(x.view(1, 2, 1, 1), time, words, None).flatten()

    def guided(role, x, now):
        return eps("null", x, now) + 3.0 * (eps(role, x, now) - eps("null", x, now))

    def walk(direction, rest=None):
        x = alpha * point + sigma * noise
        begin, clean = x, x
        for i in range(n):
            now, then = t * (1 - i / n), t * (1 - (i + 1) / n)
            a, s = levels(now)
            straight = (rest if rest and i >= n_guided else direction)(x, now)
            clean = (x - s * straight) / a
            a, s = levels(then)
            x = a * clean + s * straight
        return (begin - alpha * clean) / sigma

    if method == "bridge" and stage == 2:
        x = point
        for i in range(n):
            now, then = t * i / n, t * (i + 1) / n
            a, s = levels(now)
            straight = eps("source", x, max(now, 0.02))
            clean = (x - s * straight) / a
            a, s = levels(then)
            x = a * clean + s * straight
        noise = (x - alpha * point) / sigma
        value = 2.0 * (walk(lambda x, now: guided("target", x, now), lambda x, now: eps("target", x, now)) - noise)
    elif method == "csd":
        value = 3.0 * (walk(lambda x, now: eps("text", x, now)) - walk(lambda x, now: eps("null", x, now)))
    elif method == "nfsd":
        text, null, negative = (
            walk(lambda x, now, role=role: eps(role, x, now)) for role in ("text", "null", "negative")
        )
        value = 3.0 * (text - null) + (null if t < 0.2 else null - negative)
    else:
        value = walk(lambda x, now: guided("text", x, now), lambda x, now: eps("text", x, now)) - noise
    return sigma**2 * value


@pytest.mark.parametrize("n_guided", [None, 1, 3, 9])
@pytest.mark.parametrize(("method", "stage"), [("sds", 1), ("csd", 1), ("nfsd", 1), ("bridge", 1), ("bridge", 2)])
def test_every_method_with_solver_steps_is_its_paths_by_hand(method, stage, n_guided):
    prior = GaussianMixturePrior(MANY)
    settings = SETTINGS.model_copy(update={"method": method, "solver_steps": 4, "guided_steps": n_guided})
    x, noise, t = points(5), points(5, seed=1), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    actual = guidance_gradient(prior, x, t, noise, encode_words(prior, "dot", settings), None, settings, stage)
    rows = [
        by_hand(prior, method, stage, x[i].flatten(), float(t[i]), noise[i].flatten(), 4, n_guided or 4)
        for i in range(len(x))
    ]
    assert torch.allclose(actual.flatten(1), torch.stack(rows), rtol=1e-7, atol=1e-9)
    asked = [call[0] for call in prior.calls[: 8 if stage == 2 else 4]]
    if (method, stage) in (("csd", 1), ("nfsd", 1)):
        assert len(set(asked)) == 1
    else:
        g = min(n_guided or 4, 4)
        assert asked == [5] * (len(asked) - 4) + [10] * g + [5] * (4 - g)


def test_the_pull_is_how_the_gradient_of_sds_grows_when_its_end_is_kept():
    prior = GaussianMixturePrior(MANY)
    settings = SETTINGS.model_copy(update={"method": "sds", "solver_steps": 3})
    x, noise, t = points(5), points(5, seed=1), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    grad = guidance_gradient(prior, x, t, noise, encode_words(prior, "dot", settings), None, settings, 1)
    strength = pull(prior, t, settings, 1)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    assert torch.allclose(strength, alpha * sigma)
    end = x - grad / strength
    guided = (alpha * x + sigma * noise - alpha * end) / sigma
    assert torch.allclose(sigma**2 * (guided - noise), grad)
