"""Score-distillation gradients as pure functions of noise predictions (McAllister et al., NeurIPS 2024).

All predictions are [b, c, h, w] tensors of one noised batch; the results, of the same shape, are gradients with respect
to x to be multiplied by w(t) (see `schedule.noise_weight`). Every sample is independent of the others. The guidance
scale s follows one convention throughout: uncond + s * (text - uncond).
"""

from __future__ import annotations

import torch
from torch import Tensor

NFSD_SMALL_T = 0.2


def classifier_free(text: Tensor, null: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): eps(null) + s * (eps(text) - eps(null)), [b, c, h, w]."""
    return null + scale * (text - null)


def sds(text: Tensor, null: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Score distillation sampling: eps(null) + s * (eps(text) - eps(null)) - noise.

    Poole et al. 2022 (DreamFusion), equation 3, with classifier-free guidance.

    Args:
        text, null: predictions for the prompt and for the empty prompt, [b, c, h, w].
        noise: the noise that was added, [b, c, h, w].
        scale: guidance scale s.
    """
    return classifier_free(text, null, scale) - noise


def csd(
    text: Tensor, null: Tensor, scale: float, negative: Tensor | None = None, negative_scale: float = 0.0
) -> Tensor:
    """Classifier score distillation: s * (eps(text) - eps(null)) - s2 * (eps(negative) - eps(null)).

    Yu et al. 2023, equations 6 and 9; the second term only with a `negative` prediction.
    """
    grad = scale * (text - null)
    if negative is None:
        return grad
    return grad - negative_scale * (negative - null)


def nfsd(text: Tensor, null: Tensor, negative: Tensor, t: Tensor, scale: float) -> Tensor:
    """Noise-free score distillation: s * (eps(text) - eps(null)) + delta_D.

    Katzir et al. 2023, equation 8: delta_D, the move into the image distribution, is eps(null) for the samples with
    t < 0.2 and eps(null) - eps(negative) for the others.

    Args:
        text, null, negative: predictions, [b, c, h, w].
        t: noise time of each sample, [b] in (0, 1).
        scale: guidance scale s.
    """
    small = (t < NFSD_SMALL_T).view(-1, 1, 1, 1)
    delta_d = torch.where(small, null, null - negative)
    return scale * (text - null) + delta_d


def perp_neg(text: Tensor, null: Tensor, negatives: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """The prompt's prediction, moved off the wrong ones: eps(text) - sum_i w_i * perp(eps(neg_i) - eps(null)).

    Armandpour et al. 2023 (Perp-Neg), equation 8: perp keeps the part of each negative direction that is at right
    angles to eps(text) - eps(null), so that the prompt itself is never pushed away from.

    Args:
        text, null: predictions, [b, c, h, w].
        negatives: k predictions for what the image should not be.
        weights: how much each counts, [b, k].

    Returns:
        What takes the place of eps(text) in any of the other formulas, [b, c, h, w].
    """
    direction = (text - null).flatten(1)
    squared = (direction * direction).sum(1, keepdim=True).clamp(min=torch.finfo(direction.dtype).tiny)
    moved = text.flatten(1)
    for negative, weight in zip(negatives, weights.unbind(1), strict=True):
        away = (negative - null).flatten(1)
        along = (away * direction).sum(1, keepdim=True) / squared
        moved = moved - weight[:, None].to(moved) * (away - along * direction)
    return moved.view_as(text)


def bridge(target: Tensor, source: Tensor, scale: float) -> Tensor:
    """Stage two of SDS-Bridge: k * (eps(target) - eps(source)).

    McAllister et al. 2024: the first-order estimate of the dual bridge from the distribution of the current renders,
    described by the source prompt, to that of the target prompt.
    """
    return scale * (target - source)
