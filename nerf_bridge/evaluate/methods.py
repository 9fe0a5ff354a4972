"""`evaluate methods`: the same prompts and seeds through several methods of guidance, beside the true shapes.

Every run is an ordinary run directory: the comparison may be stopped at any time and goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.batch.jobs import Job, read_jobs
from nerf_bridge.batch.pool import Engine
from nerf_bridge.batch.queue import run_batch
from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.assets import asset_views, requests_of
from nerf_bridge.evaluate.colours import asked_colours, judge_beside_truth
from nerf_bridge.evaluate.judge import Judge
from nerf_bridge.evaluate.measures import Spread, frechet_distance, saturation, seed_spread, sharpness
from nerf_bridge.evaluate.results import Row, spread_row
from nerf_bridge.evaluate.sheet import Strip, draw_sheet, save_sheet
from nerf_bridge.evaluate.truth import MOST_MODELS, SMALL, Request, Views, around, background_for, of_design, true_views
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.run.directory import RunDirectory, is_finished, read_record
from nerf_bridge.settings import merged

TRUTHS = ("truth", "truth again")  # two draws of true shapes: the one to compare with, and the floor
VIEWS = 24  # of each object, so that there are more pictures than features
UNITS = {
    "frechet": "of features",
    "saturation": "0..1",
    "sharpness": "0..1",
    "retrieval_top1": "of the views",
    "colour_obeyed": "of the assets",
    "seconds": "s",
}


@dataclass(frozen=True)
class ObjectFigures:
    """What is taken of one object seen from VIEWS sides; `obeyed` is None where the prompt has no colour word."""

    features: Tensor
    saturation: float
    sharpness: float
    hits: list[float]
    obeyed: float | None
    seconds: float
    front: Tensor


def method_jobs(
    prompts: Path, out: Path, settings: Mapping[str, Any], methods: Sequence[str], seeds: int, most: int
) -> dict[tuple[str, int], list[Job]]:
    """The jobs of every method and seed: `out`/<method>/<prompt>-s<seed>.

    Args:
        prompts: a file of prompts, of which evenly spaced ones are taken when there are more than `most`.
        settings: what differs from the defaults, the same for all; `seed` is the first of the seeds.

    Raises:
        UserError: the file or a setting is wrong.
    """
    jobs = {}
    start = int(settings.get("seed", 0))
    for method in methods:
        for seed in range(start, start + seeds):
            base = merged(dict(settings), {"seed": seed, "guidance": {"method": method}})
            every = read_jobs(prompts, out / method, base)
            chosen = np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int))
            jobs[method, seed] = [every[i] for i in chosen]
    return jobs


def run_methods(jobs: Mapping[tuple[str, int], Sequence[Job]], out: Path, engine: Engine) -> int:
    """Do what is not done yet, prompt by prompt through all methods; returns how many runs failed.

    Raises:
        Interrupted: the user stopped it; the same command goes on.
    """
    lists = list(jobs.values())
    in_turn = [job for of_prompt in zip(*lists, strict=True) for job in of_prompt]
    states = run_batch(in_turn, out, engine)
    return sum(state.state == "failed" for state in states)


def measure_object(
    views: Views, request: Request, judge: Judge, seconds: float, truths: Sequence[np.ndarray]
) -> ObjectFigures:
    """The figures of one object, generated or true; its colour is judged beside those of `truths`, [n, 3] each."""
    small, pixels = views.small(), views.inside()
    judged = judge_beside_truth([pixels], truths, asked_colours(request.prompt))
    return ObjectFigures(
        features=judge.features(small),
        saturation=saturation(pixels),
        sharpness=sharpness(views.images, views.coverage),
        hits=judge.hits(small, request.noun),
        obeyed=None if judged is None else judged[0][0],
        seconds=seconds,
        front=small[:1],
    )


def measure_methods(
    jobs: Mapping[tuple[str, int], Sequence[Job]], models: Sequence[LibraryModel], judge: Judge
) -> dict[tuple[str, int], list[ObjectFigures]]:
    """Figures of every asset by method and seed; under "truth" and "truth again" those of true shapes, other lots each.

    True shapes are those of the designs that the runs of their seed drew, so that lots differ in their shades of the
    colours only; where a prior knows no designs they are any models of the nouns.

    A prompt that failed in some run is left out everywhere, so that all are compared on the same ones.

    Raises:
        UserError: a prompt has no true shape in the library, or none ended well.
    """
    finished = finished_prompts(jobs)
    first = next(iter(jobs.values()))
    if not finished:
        raise UserError("no prompt ended well with all methods and seeds: see the messages of the runs")
    requests = requests_of([first[i].prompt for i in finished], models)
    seeds = sorted({seed for _, seed in jobs})
    of_seed = {seed: part for (_, seed), part in jobs.items()}  # any method's: all draw the same designs
    keys = [*jobs, *((name, seed) for name in TRUTHS for seed in seeds)]
    found: dict[tuple[str, int], list[ObjectFigures]] = {}
    cameras = around(VIEWS)
    truths = [
        [true_views(request, around(), lot).inside() for lot in range(min(MOST_MODELS, len(request.models)))]
        for request in tqdm(requests, "true colours")
    ]
    with tqdm(total=len(keys) * len(finished), desc="measuring") as bar:
        for name, seed in keys:
            for i, request, of_truth in zip(finished, requests, truths, strict=True):
                if name in TRUTHS:
                    lot = seeds.index(seed) + len(seeds) * TRUTHS.index(name)
                    design = read_record(RunDirectory(of_seed[seed][i].out)).get("design", 0)
                    views, seconds = true_views(of_design(request, models, design), cameras, lot), 0.0
                else:
                    run = RunDirectory(jobs[name, seed][i].out)
                    views = asset_views(run.asset, cameras, background_for(request.prompt))
                    seconds = float(sum(read_record(run).get("seconds", {}).values()))
                found.setdefault((name, seed), []).append(measure_object(views, request, judge, seconds, of_truth))
                bar.update()
    return found


def figures_of(objects: Sequence[ObjectFigures], truth: Sequence[ObjectFigures]) -> dict[str, float]:
    """The figures of one method and seed over all prompts."""
    obeyed = [o.obeyed for o in objects if o.obeyed is not None]
    figures = {
        "frechet": frechet_distance(torch.cat([o.features for o in objects]), torch.cat([o.features for o in truth])),
        "saturation": float(np.mean([o.saturation for o in objects])),
        "sharpness": float(np.mean([o.sharpness for o in objects])),
        "retrieval_top1": float(np.mean([np.mean(o.hits) for o in objects])),
        "seconds": float(np.mean([o.seconds for o in objects])),
    }
    return figures | ({"colour_obeyed": float(np.mean(obeyed))} if obeyed else {})


def method_rows(found: Mapping[tuple[str, int], Sequence[ObjectFigures]], methods: Sequence[str]) -> list[Row]:
    """Rows of every method with spreads over seeds; the floor of the distance is truth against truth."""
    seeds = sorted({seed for _, seed in found})
    by_seed = {
        name: [figures_of(found[name, seed], found["truth", seed]) for seed in seeds] for name in (*methods, *TRUTHS)
    }
    floor = spread_of(by_seed["truth again"], "frechet").value
    rows = [Row("all", "prompts", len(found["truth", seeds[0]]), "count"), Row("all", "seeds", len(seeds), "count")]
    for method in methods:
        for name in UNITS:
            if name not in by_seed[method][0]:
                continue
            truth = None if name in ("frechet", "seconds") else spread_of(by_seed["truth"], name).value
            figure = spread_of(by_seed[method], name)
            rows.append(spread_row(method, name, figure, UNITS[name], truth, floor if name == "frechet" else None))
        for name in ("saturation", "sharpness"):
            away = [abs(own[name] - true[name]) for own, true in zip(by_seed[method], by_seed["truth"], strict=True)]
            rows.append(spread_row(method, f"{name}_off_truth", seed_spread(away), UNITS[name]))
    return rows


def spread_of(figures: Sequence[Mapping[str, float]], name: str) -> Spread:
    """The spread over seeds of the figure `name`."""
    return seed_spread([figure[name] for figure in figures])


def method_sheet(
    found: Mapping[tuple[str, int], Sequence[ObjectFigures]], prompts: Sequence[str], methods: Sequence[str], path: Path
) -> None:
    """A strip for each prompt: one method after the other and then truth, from the front, first seed."""
    columns = (*methods, "truth")
    seed = min(seed for _, seed in found)
    strips = []
    for i, prompt in enumerate(prompts):
        strips.append(Strip(torch.cat([found[name, seed][i].front for name in columns]), prompt))
    save_sheet(path, draw_sheet(strips, 2, 2 * SMALL, "from left to right: " + ", ".join(columns)))


def finished_prompts(jobs: Mapping[tuple[str, int], Sequence[Job]]) -> list[int]:
    """The places of the prompts that ended well with all methods and seeds."""
    lists = list(jobs.values())
    return [i for i in range(len(lists[0])) if all(is_finished(RunDirectory(part[i].out)) for part in lists)]
