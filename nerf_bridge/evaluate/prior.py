"""`evaluate prior`: what the prior draws at a given camera, and what it knows of cameras, beside the true shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from nerf_bridge.evaluate.azimuth import LOG_SNRS, azimuth_rows, measure_azimuth
from nerf_bridge.evaluate.colours import asked_colours, judge_beside_truth
from nerf_bridge.evaluate.judge import Judge
from nerf_bridge.evaluate.measures import frechet_distance, mean_spread
from nerf_bridge.evaluate.requests import Case, draw_cases
from nerf_bridge.evaluate.results import Row, spread_row
from nerf_bridge.evaluate.sheet import Strip, draw_sheet, save_sheet
from nerf_bridge.evaluate.truth import DISTANCE, FOVY_DEG, SMALL, Request, background_for, true_views
from nerf_bridge.prior.data.holdout import stable_order
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.embedded import EmbeddedPrior
from nerf_bridge.prior.probe import AzimuthProbe
from nerf_bridge.prior.protocol import Prior, ViewCondition
from nerf_bridge.prior.sample import ddim_sample
from nerf_bridge.scene.cameras import Cameras, orbit_cameras

OBJECT_DIFFERENCE = 0.12  # from the background, in the channel that differs most, from which a pixel is the object's


@dataclass(frozen=True)
class SamplePlan:
    """How samples are drawn: seeds of each case, DDIM steps, guidance scale, samples at once."""

    seeds: int = 3
    steps: int = 30
    scale: float = 3.0
    batch: int = 32


@dataclass(frozen=True)
class CaseResult:
    """A case with its pictures [seeds, 3, s, s], drawn and true, and what was found: 1 or 0 for each seed.

    Of the colours nothing, where they are not judged.
    """

    case: Case
    drawn: Tensor
    true: Tensor
    hits: list[float]
    true_hits: list[float]
    obeyed: list[float]
    true_obeyed: list[float]


def azimuth_table(
    prior: EmbeddedPrior, models: Sequence[LibraryModel], n_images: int, log_snrs: Sequence[float] = LOG_SNRS
) -> list[Row]:
    """The azimuth gate on new views of trained models, and on models held out, beside the ideal denoiser."""
    rows = []
    trained = [model for model in models if not model.holdout]
    for who, shown in (("new views", trained), ("new models", [model for model in models if model.holdout])):
        if not shown:
            continue
        probe = AzimuthProbe.build(shown, prior.text_encoder, prior.device, n_images, seed=29)
        known = trained if who == "new views" else [*trained, *shown]
        rows += azimuth_rows(measure_azimuth(prior.network, probe, known, log_snrs), who)
    return rows


def sample_table(
    prior: Prior, models: Sequence[LibraryModel], judge: Judge, n_nouns: int, plan: SamplePlan, device: torch.device
) -> tuple[list[Row], list[CaseResult]]:
    """Samples of every case judged beside true renders of the same cameras."""
    cases = draw_cases([model for model in models if not model.holdout], n_nouns)
    drawn = draw_samples(prior, cases, plan, device)
    found = [judge_case(case, drawn[i], judge, plan.seeds) for i, case in enumerate(tqdm(cases, "judging"))]
    return sample_rows(found, judge), found


def cameras_of(asked: Sequence[tuple[str, int]]) -> Cameras:
    """The camera of each (noun, seed): azimuth, and elevation from 5 to 35 degrees, as if by lot."""
    lots = [[stable_order(f"{name} {noun} {seed}") / 2.0**64 for name in ("around", "up")] for noun, seed in asked]
    around, up = torch.tensor(lots, dtype=torch.float64).unbind(-1)
    same = torch.ones_like(around)
    elevation = torch.deg2rad(5 + 30 * up)
    return orbit_cameras(2 * math.pi * around, elevation, DISTANCE * same, math.radians(FOVY_DEG) * same)


def draw_samples(prior: Prior, cases: Sequence[Case], plan: SamplePlan, device: torch.device) -> Tensor:
    """Samples [cases, seeds, 3, s, s] in 0..1 on the CPU, with a progress bar.

    Camera and noise depend on noun and seed alone, so that held-out pairs and the same nouns in trained colours differ
    in nothing else.
    """
    asked = [(case.request, seed) for case in cases for seed in range(plan.seeds)]
    null = prior.encode_prompts([""])
    drawn = []
    for start in tqdm(range(0, len(asked), plan.batch), "sampling"):
        part = asked[start : start + plan.batch]
        cameras = cameras_of([(request.noun, seed) for request, seed in part]).to(device)
        grey = torch.tensor([background_for(request.prompt) for request, _ in part], device=device)
        condition = ViewCondition(cameras, grey[:, None].expand(-1, 3))
        words = prior.encode_prompts([request.prompt for request, _ in part])
        noise = torch.stack([noise_of(request.noun, seed, prior.image_size) for request, seed in part]).to(device)
        drawn.append(ddim_sample(prior, words, null, condition, noise, plan.steps, plan.scale).float().cpu())
    return torch.cat(drawn).unflatten(0, (len(cases), plan.seeds))


def noise_of(noun: str, seed: int, size: int) -> Tensor:
    """The noise [3, size, size] that a sample starts from."""
    generator = torch.Generator().manual_seed(stable_order(f"noise {noun} {seed}") % 2**62)
    return torch.randn(3, size, size, generator=generator)


def judge_case(case: Case, drawn: Tensor, judge: Judge, seeds: int) -> CaseResult:
    """Judge the samples [seeds, 3, s, s] of a case, and true renders from the same cameras."""
    request = case.request
    true = true_pictures(request, seeds)
    sized = functional.interpolate(drawn, (SMALL, SMALL), mode="area") if drawn.shape[-1] != SMALL else drawn
    behind = background_for(request.prompt)
    pixels, true_pixels = ([object_pixels(image, behind) for image in images] for images in (sized, true))
    obeyed, true_obeyed = judge_beside_truth(pixels, true_pixels, asked_colours(request.prompt)) or ([], [])
    return CaseResult(
        case=case,
        drawn=sized,
        true=true,
        hits=judge.hits(sized, request.noun),
        true_hits=judge.hits(true, request.noun),
        obeyed=obeyed,
        true_obeyed=true_obeyed,
    )


def true_pictures(request: Request, seeds: int, first_lot: int = 0) -> Tensor:
    """True renders [seeds, 3, s, s] from the samples' cameras; each takes the next model and its own shade."""
    cameras = cameras_of([(request.noun, seed) for seed in range(seeds)])
    return torch.cat([true_views(request, cameras[[i]], first_lot + i).small() for i in range(seeds)])


def object_pixels(image: Tensor, background: float) -> np.ndarray:
    """Colours [n, 3] of the pixels of image [3, h, w] that are the object's, without its rim if enough remain."""
    mask = (image - background).abs().amax(0) > OBJECT_DIFFERENCE
    inner = 1 - functional.max_pool2d((~mask).float()[None, None], 3, stride=1, padding=1)[0, 0] > 0.5
    chosen = inner if int(inner.sum()) >= 20 else mask
    return image.permute(1, 2, 0)[chosen].numpy()


def sample_rows(found: Sequence[CaseResult], judge: Judge) -> list[Row]:
    """Rows of retrieval and colour for each group of cases, and of the Frechet distance over all."""
    rows = []
    for group in dict.fromkeys(result.case.group for result in found):
        part = [result for result in found if result.case.group == group]
        of_truth = mean_spread([result.true_hits for result in part]).value
        hits = mean_spread([result.hits for result in part])
        rows.append(spread_row(group, "retrieval_top1", hits, "of the samples", of_truth))
        judged = [result for result in part if result.obeyed]
        rows.append(Row(group, "colour_judged", len(judged), "count"))
        if judged:
            obeyed, of_true = mean_spread([r.obeyed for r in judged]), mean_spread([r.true_obeyed for r in judged])
            rows.append(spread_row(group, "colour_obeyed", obeyed, "of the samples", of_true.value))
        if of_truth > 0:
            rows.append(Row(group, "retrieval_of_truth", hits.value / of_truth, "of truth's"))
    rows.append(frechet_row(found, judge))
    return rows


def frechet_row(found: Sequence[CaseResult], judge: Judge) -> Row:
    """Frechet distance of all samples to true renders; the floor is that of the next models and shades."""
    drawn, true = (judge.features(torch.cat([getattr(r, name) for r in found])) for name in ("drawn", "true"))
    seeds = len(found[0].true)
    others = []
    for result in tqdm(found, "true renders again"):
        others.append(true_pictures(result.case.request, seeds, first_lot=seeds))
    floor = frechet_distance(judge.features(torch.cat(others)), true)
    return Row("all", "frechet", frechet_distance(drawn, true), "of features", floor=floor)


def sample_sheet(found: Sequence[CaseResult], path: Path) -> None:
    """Each case: its samples, and after a gap a true render from the first camera; words that were missed in red."""
    strips = []
    for result in found:
        gap = torch.full((1, 3, SMALL, SMALL), 0.94)
        words = f"{result.case.request.prompt}  {sum(result.hits):.0f}/{len(result.hits)}"
        bad = sum(result.obeyed) < len(result.obeyed)
        strips.append(Strip(torch.cat([result.drawn, gap, result.true[:1]]), words, bad))
    heading = "samples, then truth; how many were recognised; red: a colour was missed"
    save_sheet(path, draw_sheet(strips, 4, SMALL, heading))
