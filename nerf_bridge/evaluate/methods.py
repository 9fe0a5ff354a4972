"""`evaluate methods`: the same prompts and seeds through several methods of guidance, beside the true shapes.

Every run is an ordinary run directory: the comparison may be stopped at any time and goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nerf_bridge.batch.jobs import Job, read_jobs
from nerf_bridge.batch.pool import Engine
from nerf_bridge.batch.queue import run_batch
from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.assets import CPU, asset_views, requests_of
from nerf_bridge.evaluate.colours import asked_colours, judge_beside_truth
from nerf_bridge.evaluate.judge import Judge
from nerf_bridge.evaluate.measures import Spread, frechet_distance, saturation, seed_spread, sharpness
from nerf_bridge.evaluate.results import Row, spread_row
from nerf_bridge.evaluate.sheet import Strip, draw_sheet, save_sheet
from nerf_bridge.evaluate.truth import MOST_MODELS, SMALL, Request, Views, around, background_for, of_design, true_views
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.run.directory import RunDirectory, is_finished, read_record
from nerf_bridge.settings import merged

Item = TypeVar("Item")
TRUTHS = ("truth", "truth again")  # two draws of true shapes: the one to compare with, and the floor
VIEWS = 24  # of each object, so that there are more pictures than features
UNITS = {
    "frechet": "of features",
    "saturation": "0..1",
    "sharpness": "0..1",
    "retrieval_top1": "of the views",
    "colour_obeyed": "of the assets",
    "seconds": "s",
    "saturation_off_truth": "0..1",
    "sharpness_off_truth": "0..1",
}
WITH_TRUTH = ("saturation", "sharpness", "retrieval_top1", "colour_obeyed")  # figures that true shapes have too
OFF_TRUTH = ("saturation", "sharpness")
COMPARED = ("frechet", "saturation_off_truth", "sharpness_off_truth")  # seed by seed with the first method's


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
            jobs[method, seed] = evenly(every, most)
    return jobs


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of `items`, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in chosen]


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
    jobs: Mapping[tuple[str, int], Sequence[Job]],
    models: Sequence[LibraryModel],
    judge: Judge,
    device: torch.device = CPU,
) -> dict[tuple[str, int], list[ObjectFigures]]:
    """Figures of every asset by method and seed; under "truth" and "truth again" those of true shapes, other lots each.

    True shapes are those of the designs that the runs of their seed drew, so that lots differ in their shades of the
    colours only; where a prior knows no designs they are any models of the nouns.

    A prompt that failed in some run is left out everywhere, so that all are compared on the same ones. Assets are
    rendered on `device`.

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
                    views = asset_views(run.asset, cameras, background_for(request.prompt), device)
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


def figures_by_seed(
    found: Mapping[tuple[str, int], Sequence[ObjectFigures]],
) -> dict[str, dict[int, dict[str, float]]]:
    """The figures of every method and of the true shapes at each seed; those of OFF_TRUTH also as their distance from
    truth's at that seed."""
    by_seed: dict[str, dict[int, dict[str, float]]] = {}
    for (name, seed), objects in found.items():
        by_seed.setdefault(name, {})[seed] = figures_of(objects, found["truth", seed])
    for of_method in by_seed.values():
        for seed, own in of_method.items():
            own |= {f"{name}_off_truth": abs(own[name] - by_seed["truth"][seed][name]) for name in OFF_TRUTH}
    return by_seed


def method_rows(
    by_seed: Mapping[str, Mapping[int, Mapping[str, float]]], methods: Sequence[str], n_prompts: int
) -> list[Row]:
    """Rows of every method with spreads over seeds; the floor of the Frechet distance is truth against truth.

    What a method's figures are less those of the first method, seed by seed, has rows of its own: seeds draw other
    designs, which are harder or easier for all methods alike.

    Args:
        by_seed: what `figures_by_seed` gives.
        methods: in the order of the rows; n_prompts: how many were compared.
    """
    rows = [Row("all", "prompts", n_prompts, "count"), Row("all", "seeds", len(by_seed["truth"]), "count")]
    for method in methods:
        for name, unit in UNITS.items():
            if all(name in own for own in by_seed[method].values()):
                truth = spread_of(by_seed["truth"], name).value if name in WITH_TRUTH else None
                floor = spread_of(by_seed["truth again"], name).value if name == "frechet" else None
                rows.append(spread_row(method, name, spread_of(by_seed[method], name), unit, truth, floor))
        if method != methods[0]:
            rows += [difference_row(by_seed, method, methods[0], name) for name in COMPARED]
    return rows


def difference_row(by_seed: Mapping[str, Mapping[int, Mapping[str, float]]], method: str, first: str, name: str) -> Row:
    """What a figure of `method` is less the same of `first`, with its spread over seeds."""
    less = [own[name] - by_seed[first][seed][name] for seed, own in by_seed[method].items()]
    return spread_row(method, f"{name}_less_{first}", seed_spread(less), UNITS[name])


def spread_of(figures: Mapping[int, Mapping[str, float]], name: str) -> Spread:
    """The spread over seeds of the figure `name`."""
    return seed_spread([figure[name] for figure in figures.values()])


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
