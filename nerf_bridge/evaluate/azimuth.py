"""The azimuth gate: how much worse a prior denoises when the camera is wrong, beside the exact score.

Nobody can be expected to lose more by a wrong camera than the ideal denoiser does, the one that knows every model that
is shown, those held out too where they are. For an image noised to x_t = alpha x + sigma eps it answers the mean of the
renders x_i of the models of that caption from the told camera, weighted by exp(-|x_t - alpha x_i|^2 / (2 sigma^2)). Its
error of v is that of the clean image over sigma^2.

The gate holds at a log-SNR, ln(alpha^2 / sigma^2), when with an azimuth wrong by 90 and by 180 degrees the prior's
error grows by at least a tenth, and by at least half of what the ideal denoiser's grows (as a difference, since the
ideal error itself is near zero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.evaluate.measures import Spread, mean_spread
from nerf_bridge.evaluate.results import Row, spread_row
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.probe import IMAGE_SIZE, AzimuthProbe, on_grey, own_caption, probe_cameras
from nerf_bridge.prior.unet import UNet, schedule
from nerf_bridge.prior.views import render_model

LOG_SNRS = (-3.0, -4.0, -5.0, -6.0)
WRONG_DEG = (90, 180)
LEAST_RISE, LEAST_SHARE = 0.1, 0.5


@dataclass(frozen=True)
class AzimuthErrors:
    """Errors of v [n] of each image, by degrees that the azimuth is wrong: of the prior and of the ideal denoiser."""

    log_snr: float
    prior: dict[int, Tensor]
    ideal: dict[int, Tensor]

    def rise(self, degrees: int) -> Spread:
        """Relative rise of the prior's mean error, with its bootstrap over images."""
        mean = self.prior[0].mean().item()
        return mean_spread(
            [[(b - a) / mean] for a, b in zip(self.prior[0].tolist(), self.prior[degrees].tolist(), strict=True)]
        )

    def penalty(self, degrees: int, errors: dict[int, Tensor]) -> Spread:
        """Rise of the mean error as a difference, with its bootstrap over images."""
        return mean_spread([[value] for value in (errors[degrees] - errors[0]).tolist()])

    def passed(self) -> bool:
        """Whether the gate holds for all of WRONG_DEG."""
        return all(
            self.rise(d).value >= LEAST_RISE
            and self.penalty(d, self.prior).value >= LEAST_SHARE * self.penalty(d, self.ideal).value
            for d in WRONG_DEG
        )


def time_of(log_snr: float) -> float:
    """The time of the cosine schedule with this log-SNR: tan(pi t / 2) = exp(-log_snr / 2)."""
    return 2 / math.pi * math.atan(math.exp(-0.5 * log_snr))


def measure_azimuth(
    network: UNet, probe: AzimuthProbe, library: Sequence[LibraryModel], log_snrs: Sequence[float] = LOG_SNRS
) -> list[AzimuthErrors]:
    """Errors of the prior and of the ideal denoiser over `library`, with right and wrong azimuths; shows progress."""
    turns = (0, *WRONG_DEG)
    found = []
    stored = {d: stored_renders(probe, library, d) for d in tqdm(turns, "true renders")}
    for log_snr in tqdm(log_snrs, "azimuth"):
        time = time_of(log_snr)
        told = {d: replace(probe.truth, azimuth_rad=probe.truth.azimuth_rad + math.radians(d)) for d in turns}
        prior = {d: probe.errors(network, told[d], time).cpu() for d in turns}
        ideal = {d: ideal_errors(probe, stored[d], time) for d in turns}
        found.append(AzimuthErrors(log_snr, prior, ideal))
    return found


def stored_renders(probe: AzimuthProbe, library: Sequence[LibraryModel], wrong_deg: float) -> list[Tensor]:
    """For each image of the probe, renders [m, 3, s, s] in -1..1 of the m models of its caption, its camera turned."""
    by_caption: dict[str, list[LibraryModel]] = {}
    for model in library:
        by_caption.setdefault(own_caption(model), []).append(model)
    truth = probe.truth
    cameras = probe_cameras(truth.azimuth_rad.cpu() + math.radians(wrong_deg), truth.elevation_rad.cpu())
    renders = []
    for i, caption in enumerate(probe.captions):
        layers = [render_model(model, cameras[[i]], IMAGE_SIZE) for model in by_caption[caption]]
        renders.append(on_grey(torch.cat(layers)))
    return renders


def ideal_errors(probe: AzimuthProbe, stored: Sequence[Tensor], time: float) -> Tensor:
    """Errors of v [n] of the ideal denoiser that believes image i to be one of `stored[i]`, [m, 3, s, s]."""
    alpha, sigma = (level.item() for level in schedule(torch.tensor(time)))
    errors = []
    for image, noise, renders in zip(probe.images.cpu(), probe.noise.cpu(), stored, strict=True):
        noised = alpha * image + sigma * noise
        squared = (noised - alpha * renders).square().flatten(1).sum(1)
        weights = torch.softmax(-squared / (2 * sigma**2), 0)
        clean = torch.einsum("m,mchw->chw", weights, renders)
        errors.append((clean - image).square().mean() / sigma**2)
    return torch.stack(errors)


def azimuth_rows(measured: Sequence[AzimuthErrors], who: str) -> list[Row]:
    """Rows of the table; the peer is the ideal denoiser."""
    rows = []
    for errors in measured:
        case = f"{who}, log-SNR {errors.log_snr:g}"
        right = mean_spread([[value] for value in errors.prior[0].tolist()])
        rows.append(
            replace(spread_row(case, "error", right, "of v"), peer="ideal", peer_value=errors.ideal[0].mean().item())
        )
        for degrees in WRONG_DEG:
            ideal = errors.penalty(degrees, errors.ideal).value
            penalty = spread_row(case, f"penalty_{degrees}", errors.penalty(degrees, errors.prior), "of v")
            rows.append(spread_row(case, f"rise_{degrees}", errors.rise(degrees), "of the error"))
            rows.append(replace(penalty, peer="ideal", peer_value=ideal))
        rows.append(Row(case, "gate", float(errors.passed()), "holds = 1"))
    return rows
