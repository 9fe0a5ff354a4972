"""The whole guidance step on the Gaussian mixture, whose score is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from gaussian_mixture import Component, GaussianMixturePrior

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.errors import UserError
from nerf_bridge.guidance import (
    csd,
    distillation_loss,
    draw_noise,
    draw_times,
    encode_words,
    guidance_gradient,
    nfsd,
    perp_neg,
    sds,
)
from nerf_bridge.guidance.words import embeddings_for_views
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.prompts import negative_view_weights, view_weights
from nerf_bridge.scene.cameras import orbit_cameras

COMPONENTS = [
    Component("clean", (2.0, 0.5), 0.3),
    Component("foggy", (-2.0, 0.5), 0.4, weight=2.0),
    Component("ugly", (0.0, -3.0), 0.7),
    Component("dot", (1.0, 1.5), 0.5, weight=0.5),
]
SETTINGS = GuidanceConfig(
    solver_steps=1, scale=6.0, bridge_scale=3.0, target_words="clean", source_words="foggy", negative_prompt="ugly"
)
CASES = [("sds", 1), ("csd", 1), ("nfsd", 1), ("bridge", 1), ("bridge", 2)]
PROMPTS = {"text": "dot", "null": "", "negative": "ugly", "target": "dot, clean", "source": "dot, foggy"}


def settings_for(method, **changes):
    return SETTINGS.model_copy(update={"method": method, **changes})


def batch(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, 2, 1, 1), generator=generator, dtype=torch.float64) * 2
    noise = torch.randn((n, 2, 1, 1), generator=generator, dtype=torch.float64)
    return x, torch.linspace(0.1, 0.9, n, dtype=torch.float64), noise


def cameras(azimuth_deg, elevation_deg=None):
    azimuth = torch.deg2rad(torch.tensor(azimuth_deg, dtype=torch.float64))
    elevation = torch.zeros_like(azimuth) if elevation_deg is None else torch.deg2rad(torch.tensor(elevation_deg))
    return orbit_cameras(azimuth, elevation, torch.full_like(azimuth, 3.0), torch.full_like(azimuth, 0.7))


def condition_of(n):
    return ViewCondition(cameras([360.0 * i / n for i in range(n)]), torch.zeros(n, 3))


def eps_by_autograd(point, t, prompt):
    """-sigma * grad log p_t(point), the density written out and differentiated by autograd."""
    alpha, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
    held = [c for c in COMPONENTS if c.name in prompt] or COMPONENTS
    y = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    density = torch.zeros((), dtype=torch.float64)
    for c in held:
        variance = (alpha * c.std) ** 2 + sigma**2
        squared = (y[0] - alpha * c.mean[0]) ** 2 + (y[1] - alpha * c.mean[1]) ** 2
        density = density + c.weight * torch.exp(-squared / (2 * variance)) / (2 * math.pi * variance)
    (score,) = torch.autograd.grad(density.log(), y)
    return [-sigma * float(s) for s in score]


def straight_line(method, stage, point, t, noise):
    """The gradient of one sample, written out from the published formulas; two numbers."""
    alpha, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
    noised = [alpha * p + sigma * e for p, e in zip(point, noise, strict=True)]
    eps = {role: eps_by_autograd(noised, t, prompt) for role, prompt in PROMPTS.items()}
    result = []
    for i in range(2):
        text, null, negative = eps["text"][i], eps["null"][i], eps["negative"][i]
        if method == "bridge" and stage == 2:
            value = 3.0 * (eps["target"][i] - eps["source"][i])
        elif method == "csd":
            value = 6.0 * (text - null)
        elif method == "nfsd":
            value = 6.0 * (text - null) + (null if t < 0.2 else null - negative)
        else:
            value = null + 6.0 * (text - null) - noise[i]
        result.append(sigma**2 / (alpha**2 + sigma**2) * value)
    return result


@pytest.mark.parametrize(("method", "stage"), CASES)
@pytest.mark.parametrize("n", [1, 5])
def test_every_method_equals_the_formula(method, stage, n):
    prior = GaussianMixturePrior(COMPONENTS)
    settings = settings_for(method)
    x, t, noise = batch(n)
    actual = guidance_gradient(prior, x, t, noise, encode_words(prior, "dot", settings), None, settings, stage)
    points, noises = x.flatten(1).tolist(), noise.flatten(1).tolist()
    rows = [straight_line(method, stage, *sample) for sample in zip(points, t.tolist(), noises, strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64).reshape(x.shape)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("method", "stage"), CASES)
def test_a_batch_equals_its_samples(method, stage):
    prior = GaussianMixturePrior(COMPONENTS, knows_cameras=False)
    settings = settings_for(method)
    words = encode_words(prior, "dot", settings)
    x, t, noise = batch(7)
    views = condition_of(7)
    whole = guidance_gradient(prior, x, t, noise, words, views, settings, stage)
    for i in range(7):
        one = slice(i, i + 1)
        view = ViewCondition(views.cameras[one], views.background[one])
        alone = guidance_gradient(prior, x[one], t[one], noise[one], words, view, settings, stage)
        assert torch.allclose(whole[one], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_in_the_dual_bridge_too_a_batch_equals_its_samples(perp_neg):
    prior = GaussianMixturePrior(COMPONENTS, knows_cameras=False)
    settings = settings_for("bridge", solver_steps=3, perp_neg=perp_neg)
    words = encode_words(prior, "dot", settings)
    x, t, noise = batch(7)
    views = condition_of(7)
    whole = guidance_gradient(prior, x, t, noise, words, views, settings, 2)
    for i in range(7):
        one = slice(i, i + 1)
        view = ViewCondition(views.cameras[one], views.background[one])
        alone = guidance_gradient(prior, x[one], t[one], noise[one], words, view, settings, 2)
        assert torch.allclose(whole[one], alone, rtol=1e-9, atol=1e-12)
    plain = settings.model_copy(update={"perp_neg": False})
    same = guidance_gradient(prior, x, t, noise, words, views, plain, 2)
    assert torch.allclose(whole, same) != perp_neg


def test_the_dual_bridge_asks_for_the_source_and_then_for_the_target_beside_the_null_prompt():
    prior = GaussianMixturePrior(COMPONENTS)
    settings = settings_for("bridge", solver_steps=2)
    x, t, noise = batch(4)
    views = replace(condition_of(4), together=4)
    words = encode_words(prior, "dot", settings)
    guidance_gradient(prior, x, t, noise, words, views, settings, 2, null_hides_camera=True)
    assert [n for n, _ in prior.calls] == [4, 4, 8, 8]
    for n, told in prior.calls:
        assert told.together == 4
        assert torch.equal(told.cameras.azimuth_rad, views.cameras.azimuth_rad.repeat(n // 4))
        known = [True] * 4 + [False] * (n - 4)
        assert (told.camera_known is None and n == 4) or told.camera_known.tolist() == known


@pytest.mark.parametrize(("method", "stage", "per_view"), [(m, s, 3 if m == "nfsd" else 2) for m, s in CASES])
def test_one_call_of_the_prior_holds_all_prompts(method, stage, per_view):
    prior = GaussianMixturePrior(COMPONENTS)
    settings = settings_for(method)
    x, t, noise = batch(4)
    views = condition_of(4)
    guidance_gradient(prior, x, t, noise, encode_words(prior, "dot", settings), views, settings, stage)
    ((n, told),) = prior.calls
    assert n == 4 * per_view
    assert torch.equal(told.cameras.azimuth_rad, views.cameras.azimuth_rad.repeat(per_view))
    assert told.camera_known is None


def test_the_null_prompt_can_drop_the_camera_too():
    prior = GaussianMixturePrior(COMPONENTS)
    x, t, noise = batch(3)
    settings = settings_for("nfsd")
    words = encode_words(prior, "dot", settings)
    guidance_gradient(prior, x, t, noise, words, condition_of(3), settings, 1, null_hides_camera=True)
    ((_, told),) = prior.calls
    assert told.camera_known.tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_weight_one_leaves_the_gradient_as_it_is():
    prior = GaussianMixturePrior(COMPONENTS)
    x, t, noise = batch(3)
    words = encode_words(prior, "dot", SETTINGS)
    sigma = torch.sin(t * math.pi / 2).view(-1, 1, 1, 1)
    weighted = guidance_gradient(prior, x, t, noise, words, None, settings_for("csd"), 1)
    plain = guidance_gradient(prior, x, t, noise, words, None, settings_for("csd", weighting="one"), 1)
    assert torch.allclose(weighted, sigma**2 * plain)


def test_loss_hands_the_gradient_to_x():
    x = torch.randn((4, 3, 2, 2), dtype=torch.float64, requires_grad=True)
    grad_x = torch.randn((4, 3, 2, 2), dtype=torch.float64, requires_grad=True)
    distillation_loss(x, grad_x).backward()
    assert torch.allclose(x.grad, grad_x.detach() / 4)
    assert grad_x.grad is None


def test_view_wordings_are_mixed_by_azimuth_and_elevation():
    views = [
        Component(name, mean, 0.5)
        for name, mean in [
            ("front view", (0, 3)),
            ("side view", (3, 0)),
            ("back view", (0, -3)),
            ("overhead view", (-3, 0)),
        ]
    ]
    prior = GaussianMixturePrior(views, knows_cameras=False)
    settings = settings_for("csd")
    words = encode_words(prior, "dot", settings)
    condition = ViewCondition(cameras([0.0, 90.0, 180.0, 10.0], [0.0, 0.0, 0.0, 85.0]), torch.zeros(4, 3))
    x = torch.zeros((4, 2, 1, 1), dtype=torch.float64)
    t = torch.full((4,), 0.5, dtype=torch.float64)
    grad = guidance_gradient(prior, x, t, torch.zeros_like(x), words, condition, settings, 1)
    downhill = torch.nn.functional.normalize(-grad.flatten(1), dim=1)
    expected = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]], dtype=torch.float64)
    assert torch.allclose(downhill, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("choice", "knows_cameras", "views_known", "rows"),
    [
        ("auto", True, True, 1),
        ("auto", False, True, 4),
        ("on", True, True, 4),
        ("off", False, True, 1),
        ("on", False, False, 1),
    ],
)
def test_when_the_view_is_said_in_words(choice, knows_cameras, views_known, rows):
    prior = GaussianMixturePrior(COMPONENTS, knows_cameras)
    words = encode_words(prior, "dot", settings_for("bridge", view_words=choice), views_known)
    assert [len(e) for e in (words.text, words.target, words.source)] == [rows] * 3
    assert len(words.null) == len(words.negative) == 1


VIEW_MODES = [
    Component("front view", (0.0, 3.0), 0.5),
    Component("side view", (3.0, 0.0), 0.6),
    Component("back view", (0.0, -3.0), 0.5),
    Component("overhead view", (-3.0, 0.0), 0.4),
]


@pytest.mark.parametrize("method", ["sds", "csd", "nfsd"])
def test_perp_neg_puts_the_moved_prediction_in_the_place_of_the_prompts(method):
    prior = GaussianMixturePrior(VIEW_MODES, knows_cameras=False)
    settings = settings_for(method, perp_neg=True)
    words = encode_words(prior, "dot", settings)
    condition = ViewCondition(cameras([10.0, 60.0, 135.0, 250.0], [0.0, 0.0, 20.0, 50.0]), torch.zeros(4, 3))
    x, t, noise = batch(4)
    actual = guidance_gradient(prior, x, t, noise, words, condition, settings, 1)
    assert prior.calls[0][0] == 4 * (5 if method == "nfsd" else 4)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    shares = view_weights(condition.cameras.azimuth_rad, condition.cameras.elevation_rad)
    eps = {}
    for role in ("text", "null", "negative"):
        eps[role] = prior.predict_noise(
            alpha * x + sigma * noise, t, embeddings_for_views(words.by_role(role), condition.cameras, 4), condition
        )
    for i, view in enumerate(("front", "side")):
        eps[view] = prior.predict_noise(alpha * x + sigma * noise, t, words.text.select([i] * 4), condition)
    moved = perp_neg(eps["text"], eps["null"], (eps["front"], eps["side"]), negative_view_weights(shares))
    expected = {
        "sds": sds(moved, eps["null"], noise, 6.0),
        "csd": csd(moved, eps["null"], 6.0),
        "nfsd": nfsd(moved, eps["null"], eps["negative"], t, 6.0),
    }[method]
    assert torch.allclose(actual, sigma**2 * expected)


def test_perp_neg_leaves_stage_two_of_the_bridge_alone():
    prior = GaussianMixturePrior(VIEW_MODES, knows_cameras=False)
    x, t, noise = batch(2)
    grads = []
    for on in (False, True):
        settings = settings_for("bridge", perp_neg=on)
        words = encode_words(prior, "dot", settings)
        grads.append(guidance_gradient(prior, x, t, noise, words, condition_of(2), settings, 2))
    assert torch.equal(*grads)


def test_perp_neg_without_views_in_words_is_refused():
    with pytest.raises(UserError, match="guidance.perp_neg works on the views' words"):
        encode_words(GaussianMixturePrior(COMPONENTS), "dot", settings_for("sds", perp_neg=True))


@pytest.mark.parametrize(("choice", "stage", "power"), [("same", 2, 1), ("sigma2", 2, 1), ("one", 2, 0), ("one", 1, 1)])
def test_stage_two_may_have_a_weight_of_its_own(choice, stage, power):
    prior = GaussianMixturePrior(COMPONENTS)
    x, t, noise = batch(3)
    words = encode_words(prior, "dot", SETTINGS)
    sigma = torch.sin(t * math.pi / 2).view(-1, 1, 1, 1)
    plain = guidance_gradient(prior, x, t, noise, words, None, settings_for("bridge", weighting="one"), stage)
    settings = settings_for("bridge", bridge_weighting=choice)
    assert torch.allclose(
        guidance_gradient(prior, x, t, noise, words, None, settings, stage), (sigma**2) ** power * plain
    )


def test_blank_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        encode_words(GaussianMixturePrior(COMPONENTS), "  ", SETTINGS)


def test_expected_sds_gradient_points_away_from_the_mode():
    """For one Gaussian and s = 1 its mean is w * alpha * sigma * (x - mean) / (alpha^2 std^2 + sigma^2)."""
    mode = Component("dot", (1.0, -2.0), 0.4)
    prior = GaussianMixturePrior([mode])
    settings = settings_for("sds", scale=1.0)
    words = encode_words(prior, "dot", settings)
    n, t = 20_000, 0.6
    x = torch.tensor([3.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(n, 2, 1, 1)
    noise = draw_noise(0, 0, (n, 2, 1, 1)).double()
    times = torch.full((n,), t, dtype=torch.float64)
    grad = guidance_gradient(prior, x, times, noise, words, None, settings, 1).flatten(1)
    alpha, sigma = math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
    expected = sigma**2 * alpha * sigma / (alpha**2 * 0.4**2 + sigma**2) * torch.tensor([2.0, 1.0], dtype=torch.float64)
    standard_error = grad.std(0) / math.sqrt(n)
    assert ((grad.mean(0) - expected).abs() < 4 * standard_error).all()


def descend(prior, settings, prompt, x, stage, steps, rate):
    """Plain gradient descent on `x` [b, 2, 1, 1]; returns where it ends, [b, 2]."""
    words = encode_words(prior, prompt, settings)
    for step in range(steps):
        t = draw_times(0, step, len(x), 0.05, 0.8).double()
        noise = draw_noise(0, step, tuple(x.shape)).double()
        x = x - rate * guidance_gradient(prior, x, t, noise, words, None, settings, stage)
    return x.flatten(1)


def test_sds_seeks_the_mode_of_the_prompt():
    prior = GaussianMixturePrior(COMPONENTS)
    start = torch.randn((64, 2, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = descend(prior, settings_for("sds", scale=1.0), "dot", start, stage=1, steps=300, rate=0.1)
    assert (end.mean(0) - torch.tensor([1.0, 1.5], dtype=torch.float64)).norm() < 0.3
    assert end.std(0).max() < 0.5 * start.flatten(1).std(0).min()


# The source prompt describes what the samples are now, "foggy", and the target what they should be. As with real words,
# the source leaves a little room for the good mode too, so that the pull ends there.
BRIDGE_MODES = [
    Component("clean", (2.0, 0.5), 0.3),
    Component("foggy", (-2.0, 0.5), 0.3),
    Component("foggy", (2.0, 0.5), 0.3, weight=0.1),
]


def cross_bridge(start_mean, target_words, source_words):
    """200 samples drawn around `start_mean` and moved by stage two: (start, end), each [200, 2]."""
    noise = torch.randn((200, 2, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = torch.tensor(start_mean, dtype=torch.float64).view(1, 2, 1, 1) + 0.3 * noise
    settings = settings_for("bridge", target_words=target_words, source_words=source_words, bridge_scale=1.0)
    end = descend(GaussianMixturePrior(BRIDGE_MODES), settings, "dot", start, stage=2, steps=200, rate=0.05)
    return start.flatten(1), end


def share_near(points, mean):
    return ((points - torch.tensor(mean, dtype=torch.float64)).norm(dim=1) < 1.5).double().mean().item()


def test_bridge_moves_samples_from_the_described_source_to_the_target():
    start, end = cross_bridge((-2.0, 0.5), "clean", "foggy")
    assert share_near(start, (-2.0, 0.5)) > 0.99
    assert share_near(end, (2.0, 0.5)) > 0.95


def test_bridge_keeps_what_the_two_prompts_share():
    start, end = cross_bridge((-2.0, 0.5), "clean", "foggy")
    assert torch.allclose(start[:, 1], end[:, 1], atol=1e-9)


def test_bridge_with_equal_words_moves_nothing():
    start, end = cross_bridge((-2.0, 0.5), "foggy", "foggy")
    assert torch.equal(start, end)


def test_bridge_pulls_less_on_samples_that_are_at_the_target():
    there, moved_there = cross_bridge((2.0, 0.5), "clean", "foggy")
    far, moved_far = cross_bridge((-2.0, 0.5), "clean", "foggy")
    assert (moved_there - there).norm(dim=1).mean() < 0.5 * (moved_far - far).norm(dim=1).mean()
