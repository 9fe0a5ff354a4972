"""One step of score distillation: noise the render, ask the prior, form the gradient, hand it on as a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.guidance.gradients import bridge, classifier_free, csd, nfsd, perp_neg, sds
from nerf_bridge.guidance.schedule import Stage, Weighting, noise_weight
from nerf_bridge.guidance.solver import path_start, predict_ends
from nerf_bridge.guidance.words import EncodedWords, Role, ViewWords
from nerf_bridge.prior.protocol import Prior, ViewCondition
from nerf_bridge.prompts import negative_view_weights, view_weights

Ask = Callable[[Tensor, Tensor, tuple[Role, ...]], dict[Role, Tensor]]  # of points and times, k * b for k roles


def prompts_needed(method: str, stage: Stage, perp_neg: bool = False) -> tuple[Role, ...]:
    """Whose noise predictions `method` needs at `stage` for one straight step, in the order in which they are batched.

    Perp-Neg adds the wrong views, except in stage two of the bridge: there target and source share the view's words.
    """
    if method == "bridge" and stage == 2:
        return ("target", "source")
    roles: tuple[Role, ...] = ("text", "null", "negative") if method == "nfsd" else ("text", "null")
    return (*roles, "front", "side") if perp_neg else roles


@torch.no_grad()
def guidance_gradient(
    prior: Prior,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    words: EncodedWords | ViewWords,
    condition: ViewCondition | None,
    settings: GuidanceConfig,
    stage: Stage,
    null_hides_camera: bool = False,
) -> Tensor:
    """Score-distillation gradient with respect to x, by `settings.solver_steps` calls of the prior for all prompts, or
    twice as many in stage two of the bridge.

    With several solver steps a prediction stands for the end of its path (solver.predict_ends): each prompt goes its
    own, but the guided prediction of sds one path, guided at first (`_guided_path`). Stage two of the bridge is
    then the dual bridge itself (`dual_bridge`), and `noise` is not used.

    Args:
        x: encoded renders, [b, c, h, w].
        t: noise time of each, [b] in (0, 1).
        noise: standard normal, [b, c, h, w].
        words: the encoded prompts of the run, or what these b images make of them.
        condition: cameras and backgrounds of the b renders; None when unknown.
        settings: method, scales and weighting.
        stage: 1 or 2 (schedule.stage_at); only the bridge tells them apart.
        null_hides_camera: whether the null prompt drops the camera too, which amplifies the view; by default it
            drops the text alone.

    Returns:
        grad_x [b, c, h, w] = w(t) * the method's gradient; not differentiable.
    """
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    weight = noise_weight(alpha, sigma, _weighting(settings, stage))
    cameras = None if condition is None else condition.cameras
    said = words if isinstance(words, ViewWords) else ViewWords(words, cameras, len(x))

    def ask(points: Tensor, times: Tensor, roles: tuple[Role, ...]) -> dict[Role, Tensor]:
        return _predict(prior, points, times, said, condition, roles, null_hides_camera)

    if settings.solver_steps > 1 and settings.method == "bridge" and stage == 2:
        return weight * dual_bridge(prior, ask, x, t, condition, settings)
    noised = alpha * x + sigma * noise
    if settings.solver_steps > 1 and settings.method in ("sds", "bridge"):
        return weight * (_guided_path(prior, ask, noised, t, "text", condition, settings) - noise)
    roles = prompts_needed(settings.method, stage, settings.perp_neg)

    def predict(points: Tensor, times: Tensor) -> Tensor:
        predictions = ask(points, times, roles)
        if "front" in roles:
            predictions["text"] = _off_wrong_views(predictions, "text", condition)
        return torch.cat([predictions[role] for role in roles])

    k = len(roles)
    ends = predict_ends(prior, [predict] * settings.solver_steps, noised.repeat(k, 1, 1, 1), t.repeat(k))
    grad = _method_gradient(dict(zip(roles, ends.chunk(k), strict=True)), noise, t, settings, stage)
    return weight * grad


def dual_bridge(
    prior: Prior, ask: Ask, x: Tensor, t: Tensor, condition: ViewCondition | None, settings: GuidanceConfig
) -> Tensor:
    """k * (eps(target) - eps(source)) of whole paths: from x to noise as the source prompt has it, and from that noise
    to a clean image as the target prompt has it, with classifier-free guidance.

    The dual bridge of which the bridge is the first-order estimate (Su et al. 2023; McAllister et al. 2024). The
    source's path ends in x, so that, as far as the steps are fine, x rests where both prompts lead to the same and
    the guidance scale is 1; a larger one moves it along target - null too.

    Args, Returns: as guidance_gradient, without w(t).
    """
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))

    def along_source(points: Tensor, times: Tensor) -> Tensor:
        return ask(points, times, ("source",))["source"]

    noised = path_start(prior, along_source, x, t, settings.solver_steps)
    target = _guided_path(prior, ask, noised, t, "target", condition, settings)
    return bridge(target, (noised - alpha * x) / sigma, settings.bridge_scale)


@dataclass(frozen=True)
class Answer:
    """What the prior answered to some views of a step; b views.

    Attributes:
        x: the encoded views that it saw, [b, c, h, w].
        grad_x: the guidance gradient there, [b, c, h, w].
        pull: how it grows with x, [b, 1, 1, 1]; see `pull`.
    """

    x: Tensor
    grad_x: Tensor
    pull: Tensor

    def gradient_at(self, x: Tensor) -> Tensor:
        """The gradient at `x` [b, c, h, w], the answer being kept: it draws x to the image that the prior points at."""
        return self.grad_x + self.pull * (x - self.x)


def pull(prior: Prior, t: Tensor, settings: GuidanceConfig, stage: Stage) -> Tensor:
    """How the gradient grows with x where the prior's answer is kept: w(t) * alpha / sigma, [b, 1, 1, 1].

    The gradient w(t) * (eps_hat - noise) of sds is w(t) * alpha / sigma * (x - end), with `end` the clean image that
    the answer points at; kept, it draws x there. For the other methods `end` is x less their gradient over the pull.
    """
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    return noise_weight(alpha, sigma, _weighting(settings, stage)) * alpha / sigma


def distillation_loss(x: Tensor, grad_x: Tensor) -> Tensor:
    """A scalar whose gradient carries `grad_x` into x: sum(x * grad_x) / b, so that d loss / d x = grad_x / b.

    The value itself means nothing; b, the number of views, keeps the scale independent of the batch.
    """
    return (x * grad_x.detach()).sum() / x.shape[0]


def _predict(
    prior: Prior,
    points: Tensor,
    t: Tensor,
    words: ViewWords,
    condition: ViewCondition | None,
    roles: tuple[Role, ...],
    null_hides_camera: bool,
) -> dict[Role, Tensor]:
    """The prior's predictions for `roles`, of points [k * b, c, h, w] at times [k * b], role by role."""
    k = len(roles)
    n = len(points) // k
    views = condition.repeat(k) if condition is not None and prior.knows_cameras else None
    if views is not None and null_hides_camera:
        hidden = torch.tensor([role == "null" for role in roles], device=points.device)
        views = views.hiding(hidden.repeat_interleave(n))
    predicted = prior.predict_noise(points, t, words.by_roles(roles), views)
    return dict(zip(roles, predicted.chunk(k), strict=True))


def _guided_path(
    prior: Prior,
    ask: Ask,
    noised: Tensor,
    t: Tensor,
    role: Role,
    condition: ViewCondition | None,
    settings: GuidanceConfig,
) -> Tensor:
    """The prediction [b, c, h, w] for where `noised` ends under `role`.

    The first `settings.n_guided` calls have classifier-free guidance; the rest ask for `role` alone.
    """
    roles: tuple[Role, ...] = (role, "null", "front", "side") if settings.perp_neg else (role, "null")
    k = len(roles)

    def guided(points: Tensor, times: Tensor) -> Tensor:
        found = ask(points.repeat(k, 1, 1, 1), times.repeat(k), roles)
        if settings.perp_neg:
            found[role] = _off_wrong_views(found, role, condition)
        return classifier_free(found[role], found["null"], settings.scale)

    def plain(points: Tensor, times: Tensor) -> Tensor:
        return ask(points, times, (role,))[role]

    steps = [guided] * settings.n_guided + [plain] * (settings.solver_steps - settings.n_guided)
    return predict_ends(prior, steps, noised, t)


def _weighting(settings: GuidanceConfig, stage: Stage) -> Weighting:
    if settings.method != "bridge" or stage == 1 or settings.bridge_weighting == "same":
        return settings.weighting
    return settings.bridge_weighting


def _off_wrong_views(predictions: dict[Role, Tensor], role: Role, condition: ViewCondition | None) -> Tensor:
    """The prediction for `role` with Perp-Neg's push away from the views that the camera does not see."""
    assert condition is not None, "Perp-Neg needs the cameras"
    views = view_weights(condition.cameras.azimuth_rad, condition.cameras.elevation_rad)
    wrong = (predictions["front"], predictions["side"])
    return perp_neg(predictions[role], predictions["null"], wrong, negative_view_weights(views))


def _method_gradient(
    predictions: dict[Role, Tensor], noise: Tensor, t: Tensor, settings: GuidanceConfig, stage: Stage
) -> Tensor:
    if settings.method == "bridge" and stage == 2:
        return bridge(predictions["target"], predictions["source"], settings.bridge_scale)
    if settings.method == "csd":
        return csd(predictions["text"], predictions["null"], settings.scale)
    if settings.method == "nfsd":
        return nfsd(predictions["text"], predictions["null"], predictions["negative"], t, settings.scale)
    return sds(predictions["text"], predictions["null"], noise, settings.scale)
