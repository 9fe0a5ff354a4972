"""Where the paths of a prior end and begin: a few solver steps along the probability-flow ODE in place of one.

A noise prediction points straight at the mean of all images that the noised one may have been: a blurred one, without
thin parts. A few steps of DDIM (Song et al. 2021) bend the way towards one of them, which is sharp. In the words of
McAllister et al. (NeurIPS 2024), the error of the one-step linear estimate of a curved path falls with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nerf_bridge.prior.protocol import Prior

Predict = Callable[[Tensor, Tensor], Tensor]  # noise [m, c, h, w] in points [m, c, h, w] at times [m]
LEAST_TIME = 0.02  # of a prediction for x that is clean: below it there is hardly any noise to predict


def predict_ends(prior: Prior, predicts: Sequence[Predict], noised: Tensor, t: Tensor) -> Tensor:
    """The noise that leads straight from `noised` to where its path ends, in equal steps of time from `t` to 0.

    Args:
        prior: its noise levels, and the bounds of its x.
        predicts: what predicts the noise at each step; a single one gives the prediction itself.
        noised: where the paths begin, [m, c, h, w].
        t: when, [m] in (0, 1).

    Returns:
        (noised - alpha_t * end) / sigma_t, [m, c, h, w].
    """
    if len(predicts) == 1:
        return predicts[0](noised, t)
    alpha, sigma = _levels(prior, t)
    return (noised - alpha * path_end(prior, predicts, noised, t)) / sigma


def path_end(prior: Prior, predicts: Sequence[Predict], noised: Tensor, t: Tensor) -> Tensor:
    """The clean x [m, c, h, w] where the path of `noised` ends; the arguments are those of `predict_ends`."""
    point, end, n_steps = noised, noised, len(predicts)
    for i, predict in enumerate(predicts):
        now = t * (1 - i / n_steps)
        alpha, sigma = _levels(prior, now)
        end = _bounded(prior, (point - sigma * predict(point, now)) / alpha)
        if i + 1 < n_steps:
            noise = (point - alpha * end) / sigma
            alpha, sigma = _levels(prior, t * (1 - (i + 1) / n_steps))
            point = alpha * end + sigma * noise
    return end


def path_start(prior: Prior, predict: Predict, clean: Tensor, t: Tensor, n_steps: int) -> Tensor:
    """The noised x [m, c, h, w] at times `t` whose path ends in `clean`, by DDIM inversion (Song et al. 2021).

    At the first step x is clean, and the prediction is that at LEAST_TIME.

    Args:
        predict: noise predictions [m, c, h, w] of points [m, c, h, w] at times [m].
        clean: where the paths end, [m, c, h, w].
        t: when they are wanted, [m] in (0, 1).
        n_steps: equal steps of time from 0 to `t`; the more, the nearer `path_end` comes back to `clean`.
    """
    point = end = clean
    for i in range(n_steps):
        now = t * i / n_steps if i else torch.full_like(t, LEAST_TIME)
        noise = predict(point, now)
        if i:
            alpha, sigma = _levels(prior, now)
            end = _bounded(prior, (point - sigma * noise) / alpha)
        alpha, sigma = _levels(prior, t * (i + 1) / n_steps)
        point = alpha * end + sigma * noise
    return point


def _bounded(prior: Prior, x: Tensor) -> Tensor:
    """`x` within the prior's bounds, where it has some."""
    return x if prior.x_limit is None else x.clamp(-prior.x_limit, prior.x_limit)


def _levels(prior: Prior, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = prior.alpha_sigma(t)
    return alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
