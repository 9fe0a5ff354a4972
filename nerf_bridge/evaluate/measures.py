"""Numbers taken of pictures: Frechet distance, saturation, sharpness, silhouettes, and spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from nerf_bridge.evaluate.colours import hue_saturation_value

RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """A figure with the 10th and 90th percentile of where it may lie."""

    value: float
    p10: float
    p90: float


def mean_spread(groups: Sequence[Sequence[float]]) -> Spread:
    """Mean over groups of their means, and its bootstrap over groups (RESAMPLES draws, fixed seed).

    Args:
        groups: the figures of each prompt, for example of its views and seeds; at least one group with one figure.
    """
    means = np.array([np.mean(group) for group in groups if len(group)])
    draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.percentile(means[draws].mean(axis=1), (10, 90))
    return Spread(float(means.mean()), float(low), float(high))


def seed_spread(figures: Sequence[float]) -> Spread:
    """Mean over seeds, with the percentiles of the figures themselves (linear between them)."""
    low, high = np.percentile(figures, (10, 90))
    return Spread(float(np.mean(figures)), float(low), float(high))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians of features a [n, d] and b [m, d] (Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)). It falls with n and m, so compare like with like.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected [n, d] and [m, d] with n and m of at least 2, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    first, second = a.double().numpy(), b.double().numpy()
    cov_a, cov_b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = _symmetric_root(np.atleast_2d(cov_a))
    inner = linalg.eigvalsh(root @ np.atleast_2d(cov_b) @ root)  # eigenvalues of C_a C_b
    cross = np.sqrt(np.clip(inner, 0, None)).sum()
    apart = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(max(0.0, apart + np.trace(np.atleast_2d(cov_a)) + np.trace(np.atleast_2d(cov_b)) - 2 * cross))


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def saturation(pixels: np.ndarray) -> float:
    """Mean saturation (HSV) of colours [n, 3] in 0..1; 0 for none."""
    return float(hue_saturation_value(pixels)[:, 1].mean()) if len(pixels) else 0.0


def sharpness(images: Tensor, coverage: Tensor) -> float:
    """Mean size of the Laplacian of the luminance, inside the silhouettes only: detail of the surface, not its outline.

    Args:
        images: [n, 3, h, w] in 0..1; coverage: [n, h, w] in 0..1.
    """
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=images.dtype)
    grey = torch.einsum("nchw,c->nhw", images, weights)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    full = coverage > 1 - 1e-3
    inside = full[:, 1:-1, 1:-1] & full[:, :-2, 1:-1] & full[:, 2:, 1:-1] & full[:, 1:-1, :-2] & full[:, 1:-1, 2:]
    return float((around - 4 * middle).abs()[inside].mean()) if bool(inside.any()) else 0.0


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of masks of the same shape, bool; 1 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def silhouette_change(solid: Tensor) -> float:
    """How much the outline changes with azimuth: 1 - mean IoU of views 90 and 180 degrees apart.

    Args:
        solid: [n, h, w] bool, n views evenly around, n a multiple of 4.
    """
    quarter = len(solid) // 4
    pairs = [
        overlap(solid[i], solid[(i + turn) % len(solid)]) for turn in (quarter, 2 * quarter) for i in range(len(solid))
    ]
    return 1.0 - float(np.mean(pairs))


def silhouette_agreement(a: Tensor, b: Tensor) -> float:
    """Mean IoU of silhouettes [n, h, w], view by view."""
    return float(np.mean([overlap(first, second) for first, second in zip(a, b, strict=True)]))
