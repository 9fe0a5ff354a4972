"""`evaluate assets`: finished runs seen from around, beside the true shapes of their prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.colours import asked_colours, judge_beside_truth
from nerf_bridge.evaluate.imagenet import CALIBRATED, ImageNetJudge
from nerf_bridge.evaluate.judge import Judge
from nerf_bridge.evaluate.measures import mean_spread, silhouette_agreement, silhouette_change
from nerf_bridge.evaluate.results import Row, spread_row
from nerf_bridge.evaluate.sheet import Strip, draw_sheet, save_sheet
from nerf_bridge.evaluate.truth import (
    LARGE,
    MOST_MODELS,
    Request,
    Views,
    around,
    background_for,
    of_design,
    read_prompt,
    true_views,
)
from nerf_bridge.mesh.gltf import load_textured_mesh
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.run.directory import RunDirectory, is_finished, read_record
from nerf_bridge.scene.cameras import Cameras
from nerf_bridge.scene.mesh_render import shade_mesh

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
ASYMMETRIC = 0.2  # change of the true silhouettes with azimuth from which an object's own change is compared
CHANGE_TOLERANCE = 0.3
EMPTY_COVERAGE = 0.02  # of the pictures, below which an asset is empty
FOG_AGREEMENT = 0.85  # of the mesh's silhouettes with the field's, below which the field was no solid thing


@dataclass(frozen=True)
class AssetResult:
    """What was found of one asset, and the same of its truth; figures of views are lists, 1 or 0 each.

    Attributes:
        imagenet: first and among-five hits, None where the noun is not judged.
        obeyed: colour words, None where the prompt has none.
        change: of the silhouettes with azimuth; true_change: of its true model, the one that the run's design means,
            or, where its prior knows no designs, of all that fit the one most like it.
        agreement: IoU of the silhouettes with those of its true model.
        mesh_agreement: of the mesh's silhouettes with the field's, by which fog is told; None where the run says none.
        fault: "empty", "fog" or "".
        pictures, true_pictures: [4, 3, s, s] front, right, back, left.
    """

    prompt: str
    noun: str
    hits: list[float]
    true_hits: list[float]
    imagenet: tuple[list[float], list[float]] | None
    true_imagenet: tuple[list[float], list[float]] | None
    obeyed: float | None
    true_obeyed: float | None
    change: float
    true_change: float
    agreement: float
    mesh_agreement: float | None
    fault: str
    pictures: Tensor
    true_pictures: Tensor


def find_runs(folder: Path) -> list[tuple[str, RunDirectory]]:
    """Prompt and directory of every finished run in `folder`, or of `folder` itself, by name.

    Raises:
        UserError: there is none.
    """
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())] if folder.is_dir() else []
    runs = [RunDirectory(path) for path in places]
    found = [(str(read_record(run)["prompt"]), run) for run in runs if is_finished(run)]
    if not found:
        raise UserError(f"{folder} holds no finished run: give a folder of runs, one run, or a file of prompts")
    return found


def asset_views(path: Path, cameras: Cameras, background: float, device: torch.device = CPU) -> Views:
    """Renders of a GLB without light (its texture holds the light of the prior's pictures), at LARGE pixels, made on
    `device` and brought to the CPU."""
    backend = resolve_backend("auto", device)
    mesh = load_textured_mesh(path).to(device)
    images, coverage = shade_mesh(mesh, cameras, LARGE, backend, (background,) * 3, supersample=2)
    return Views(images.permute(0, 3, 1, 2).clamp(0, 1).cpu(), coverage.cpu())


def measure_assets(
    runs: Sequence[tuple[str, RunDirectory]],
    models: Sequence[LibraryModel],
    judge: Judge,
    imagenet: ImageNetJudge | None,
    device: torch.device = CPU,
) -> list[AssetResult]:
    """Measure every run beside its truth, with a progress bar; the assets are rendered on `device`.

    Raises:
        UserError: a prompt has no true shape in the library; all of them are named.
    """
    requests = requests_of([prompt for prompt, _ in runs], models)
    bar = tqdm(list(zip(runs, requests, strict=True)), "assets")
    return [measure_asset(run, request, models, judge, imagenet, device) for (_, run), request in bar]


def requests_of(prompts: Sequence[str], models: Sequence[LibraryModel]) -> list[Request]:
    """What each prompt asks for. Raises UserError with a line for each prompt that has no true shape."""
    known = [model for model in models if not model.holdout]
    requests, problems = [], []
    for prompt in prompts:
        try:
            requests.append(read_prompt(prompt, known))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return requests


def measure_asset(
    run: RunDirectory,
    request: Request,
    models: Sequence[LibraryModel],
    judge: Judge,
    imagenet: ImageNetJudge | None,
    device: torch.device,
) -> AssetResult:
    """Measure one finished run. Raises UserError when its file holds no textured mesh."""
    cameras, record = around(), read_record(run)
    views = asset_views(run.asset, cameras, background_for(request.prompt), device)
    designed = of_design(request, models, record.get("design", 0))
    own_models = [true_views(designed, cameras, lot) for lot in range(len(designed.models))]
    n_truths = min(MOST_MODELS, len(request.models))
    of_any = designed is request  # told no design: its own models are all that fit
    truths = own_models[:n_truths] if of_any else [true_views(request, cameras, lot) for lot in range(n_truths)]
    agreements = [silhouette_agreement(true.solid(), views.solid()) for true in own_models]
    alike = own_models[int(np.argmax(agreements))]
    own, of_truth = imagenet_hits(views, truths, request.noun, imagenet)
    asked = asked_colours(request.prompt)
    obeyed = judge_beside_truth([views.inside()], [true.inside() for true in truths], asked)
    return AssetResult(
        prompt=request.prompt,
        noun=request.noun,
        hits=judge.hits(views.small(), request.noun),
        true_hits=[hit for true in truths for hit in judge.hits(true.small(), request.noun)],
        imagenet=own,
        true_imagenet=of_truth,
        obeyed=None if obeyed is None else obeyed[0][0],
        true_obeyed=None if obeyed is None else float(np.mean(obeyed[1])),
        change=silhouette_change(views.solid()),
        true_change=silhouette_change(alike.solid()),
        agreement=max(agreements),
        mesh_agreement=record.get("mesh", {}).get("iou"),
        fault=fault_of(views, record),
        pictures=views.small()[::2],
        true_pictures=alike.small()[::2],
    )


def imagenet_hits(
    views: Views, truths: Sequence[Views], noun: str, imagenet: ImageNetJudge | None
) -> tuple[tuple[list[float], list[float]] | None, tuple[list[float], list[float]] | None]:
    """Hits of the asset and of its truth, or (None, None) where the classifier does not know the noun well enough."""
    if imagenet is None or not imagenet.knows(noun):
        return None, None
    found = [imagenet.hits(true.images, noun) for true in truths]
    first, five = ([hit for pair in found for hit in pair[k]] for k in (0, 1))
    if np.mean(five) < CALIBRATED:
        return None, None
    return imagenet.hits(views.images, noun), (first, five)


def fault_of(views: Views, record: Mapping) -> str:
    """ "empty" where next to nothing is seen, "fog" where the mesh is not what the field showed, else ""."""
    if float(views.coverage.mean()) < EMPTY_COVERAGE:
        return "empty"
    agreement = record.get("mesh", {}).get("iou")
    return "fog" if agreement is not None and agreement < FOG_AGREEMENT else ""


def asset_rows(found: Sequence[AssetResult]) -> list[Row]:
    """The rows of all assets together, with the truth beside them."""
    rows = [Row("all", "assets", len(found), "count")]
    hits, true_hits = mean_spread([r.hits for r in found]), mean_spread([r.true_hits for r in found]).value
    rows.append(spread_row("all", "retrieval_top1", hits, "of the views", true_hits))
    rows += imagenet_rows(found)
    rows += colour_rows(found)
    rows += silhouette_rows(found)
    for fault in ("empty", "fog"):
        rows.append(Row("all", fault, sum(r.fault == fault for r in found), "count"))
    return rows


def colour_rows(found: Sequence[AssetResult]) -> list[Row]:
    """Colour words obeyed, over all prompts that are judged."""
    judged = [(r.obeyed, r.true_obeyed) for r in found if r.obeyed is not None and r.true_obeyed is not None]
    rows = [Row("all", "colour_judged", len(judged), "count")]
    if judged:
        figure = mean_spread([[own] for own, _ in judged])
        rows.append(spread_row("all", "colour_obeyed", figure, "of the assets", float(np.mean([t for _, t in judged]))))
    return rows


def imagenet_rows(found: Sequence[AssetResult]) -> list[Row]:
    """Hits of the ImageNet classifier, over the assets whose nouns it knows."""
    pairs = [(r.imagenet, r.true_imagenet) for r in found if r.imagenet is not None and r.true_imagenet is not None]
    rows = [Row("all", "imagenet_judged", len(pairs), "count")]
    for k, name in enumerate(("imagenet_top1", "imagenet_top5")):
        if pairs:
            truth = mean_spread([true[k] for _, true in pairs]).value
            rows.append(spread_row("all", name, mean_spread([own[k] for own, _ in pairs]), "of the views", truth))
    return rows


def silhouette_rows(found: Sequence[AssetResult]) -> list[Row]:
    """How the silhouettes' change with azimuth compares with the truth's: as a ratio over the asymmetric objects, and
    as a difference over all, so that one that should look the same from everywhere and does not is seen too."""
    ratios = [r.change / r.true_change for r in found if r.true_change >= ASYMMETRIC]
    off = mean_spread([[abs(r.change - r.true_change)] for r in found])
    rows = [spread_row("all", "silhouette_change_off_truth", off, "1 - IoU")]
    rows.append(spread_row("all", "silhouette_agreement", mean_spread([[r.agreement] for r in found]), "IoU", 1.0))
    rows.append(Row("all", "asymmetric", len(ratios), "count"))
    if ratios:
        within = [[float(abs(ratio - 1) <= CHANGE_TOLERANCE)] for ratio in ratios]
        change = mean_spread([[ratio] for ratio in ratios])
        rows.append(spread_row("all", "silhouette_change", change, "of truth's", 1.0))
        rows.append(spread_row("all", "silhouette_change_within_30", mean_spread(within), "of the assets", 1.0))
    return rows


def asset_lines(found: Sequence[AssetResult]) -> list[Row]:
    """A few rows for each asset, so that failures can be named."""
    rows = []
    for r in found:
        rows.append(
            Row(
                r.prompt,
                "retrieval_top1",
                float(np.mean(r.hits)),
                "of the views",
                peer="truth",
                peer_value=float(np.mean(r.true_hits)),
            )
        )
        if r.obeyed is not None:
            rows.append(Row(r.prompt, "colour_obeyed", r.obeyed, "yes = 1", peer="truth", peer_value=r.true_obeyed))
        rows.append(Row(r.prompt, "silhouette_change", r.change, "1 - IoU", peer="truth", peer_value=r.true_change))
        rows.append(Row(r.prompt, "silhouette_agreement", r.agreement, "IoU", peer="truth", peer_value=1.0))
        if r.mesh_agreement is not None:
            rows.append(Row(r.prompt, "mesh_agreement", r.mesh_agreement, "IoU"))
        if r.imagenet is not None and r.true_imagenet is not None:
            truth = float(np.mean(r.true_imagenet[1]))
            rows.append(
                Row(
                    r.prompt,
                    "imagenet_top5",
                    float(np.mean(r.imagenet[1])),
                    "of the views",
                    peer="truth",
                    peer_value=truth,
                )
            )
    return rows


def asset_sheet(found: Sequence[AssetResult], path: Path) -> None:
    """Each asset from four sides, and its true model below; words of failures in red."""
    strips = []
    for r in found:
        missed = [word for word, wrong in (("not recognised", not any(r.hits)), ("colour", r.obeyed == 0)) if wrong]
        missed += [r.fault] if r.fault else []
        both = torch.cat([r.pictures, r.true_pictures], dim=2)
        strips.append(Strip(both, f"{r.prompt}  {sum(r.hits):.0f}/{len(r.hits)} {', '.join(missed)}", bool(missed)))
    save_sheet(
        path, draw_sheet(strips, 3, r.pictures.shape[-1], "assets above, truth below; in how many views recognised")
    )
