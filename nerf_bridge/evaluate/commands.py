"""The three `evaluate` commands from their options to table, JSON and picture sheet."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerf_bridge import pipeline
from nerf_bridge.batch.jobs import read_jobs
from nerf_bridge.batch.pool import open_engine
from nerf_bridge.batch.queue import raise_for_failures, run_batch
from nerf_bridge.device import resolve_device
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.evaluate.assets import asset_lines, asset_rows, asset_sheet, find_runs, measure_assets, requests_of
from nerf_bridge.evaluate.batches import has_noun
from nerf_bridge.evaluate.imagenet import load_imagenet_judge
from nerf_bridge.evaluate.judge import Judge, load_judge
from nerf_bridge.evaluate.methods import (
    figures_by_seed,
    finished_prompts,
    measure_methods,
    method_jobs,
    method_rows,
    method_sheet,
    run_methods,
)
from nerf_bridge.evaluate.prior import SamplePlan, azimuth_table, sample_sheet, sample_table
from nerf_bridge.evaluate.results import Row, write_results
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.pack import load_library
from nerf_bridge.prior.embedded import load_embedded
from nerf_bridge.run.directory import RunDirectory, read_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tools:
    """What every evaluation needs: the true shapes, the judge, and where to work and write."""

    models: list[LibraryModel]
    judge: Judge
    device: torch.device
    out: Path


@dataclass(frozen=True)
class Report:
    """The table of an evaluation, and the files that were written."""

    rows: list[Row]
    results: Path
    sheet: Path


def load_tools(library: Path | None, evaluator: Path | None, device: str, out: Path) -> Tools:
    """Load what every evaluation needs.

    Raises:
        UserError: the library or the evaluator is missing; says how to get it.
    """
    if library is None:
        raise UserError("--library: the packed true shapes are needed; docs/prior.md says how to make the file")
    where = resolve_device(device)
    models, judge = load_library(library), load_judge(evaluator, where)
    unknown = sorted({model.noun for model in models if has_noun(model)} - {noun.word for noun in judge.nouns})
    if unknown:
        named = ", ".join(unknown[:5])
        logger.warning("the evaluator never saw %d nouns of %s and cannot find them: %s", len(unknown), library, named)
    return Tools(models, judge, where, out)


def evaluate_prior(tools: Tools, weights: Path | None, n_nouns: int, n_images: int, plan: SamplePlan) -> Report:
    """The prior's cameras and samples beside the true shapes; `weights` None: those of the package."""
    prior = load_embedded(tools.device, weights)
    rows = azimuth_table(prior, tools.models, n_images)
    more, found = sample_table(prior, tools.models, tools.judge, n_nouns, plan, tools.device)
    sheet = tools.out / "prior.png"
    sample_sheet(found, sheet)
    about = {"plan": vars(plan), "prior": prior.sha256, "evaluator": tools.judge.sha256}
    return _report(tools, "evaluate-prior", [*rows, *more], sheet, about)


def evaluate_assets(tools: Tools, place: Path, settings: Mapping[str, Any], workers: int) -> Report:
    """The finished runs in the folder `place`, or those of the prompts in the file `place`, which are made first,
    `workers` at a time.

    Raises:
        UserError: there is nothing to measure, or a prompt has no true shape.
        RunError: some runs failed; the others are measured and written before.
    """
    states = []
    if place.is_file():
        jobs = read_jobs(place, tools.out / "runs", settings)
        requests_of([job.prompt for job in jobs], tools.models)  # a prompt without truth is told before hours of work
        with open_engine(workers, tools.out / "runs", tools.device.type) as engine:
            states = run_batch(jobs, tools.out / "runs", engine)
        done = [job for job, state in zip(jobs, states, strict=True) if state.state == "done"]
        runs = [(job.prompt, RunDirectory(job.out)) for job in done]
        if not runs:
            raise_for_failures(states)
    else:
        runs = find_runs(place)
    imagenet = load_imagenet_judge(tools.device)
    if imagenet is None:
        logger.warning("without the ImageNet classifier: pip install 'nerf-bridge[evaluate]' adds it")
    found = measure_assets(runs, tools.models, tools.judge, imagenet, tools.device)
    sheet = tools.out / "assets.png"
    asset_sheet(found, sheet)
    failed = [Row("all", "failed", sum(s.state == "failed" for s in states), "count")] if states else []
    lines = [row.plain() for row in asset_lines(found)]
    made_by = str(read_record(runs[0][1]).get("device", "unknown"))
    priors = priors_of([run for _, run in runs])
    about = {"assets": lines, "evaluator": tools.judge.sha256, "made_by": made_by, "priors": priors}
    report = _report(tools, "evaluate-assets", [*asset_rows(found), *failed], sheet, about)
    raise_for_failures(states)
    return report


def evaluate_methods(
    tools: Tools,
    prompts: Path,
    settings: Mapping[str, Any],
    methods: Sequence[str],
    seeds: int,
    most: int,
    workers: int,
) -> Report:
    """The same prompts and seeds through `methods`, `workers` runs at a time; what is finished is not made again.

    Raises:
        UserError: a setting or a prompt is wrong, or no prompt ended well.
        RunError: some runs failed; the prompts that ended well are compared and written before.
    """
    jobs = method_jobs(prompts, tools.out / "runs", settings, methods, seeds, most)
    first = next(iter(jobs.values()))
    requests_of([job.prompt for job in first], tools.models)
    with open_engine(workers, tools.out / "runs", tools.device.type) as engine:
        n_failed = run_methods(jobs, tools.out / "runs", engine)
    found = measure_methods(jobs, tools.models, tools.judge, tools.device)
    compared = [first[i].prompt for i in finished_prompts(jobs)]
    sheet = tools.out / "methods.png"
    method_sheet(found, compared, methods, sheet)
    runs = [RunDirectory(part[i].out) for part in jobs.values() for i in finished_prompts(jobs)]
    made_by = read_record(runs[0]).get("device", "unknown")
    figures = figures_by_seed(found)
    about = {
        "prompts": compared,
        "evaluator": tools.judge.sha256,
        "made_by": made_by,
        "priors": priors_of(runs),
        "by_seed": figures,
    }
    rows = [*method_rows(figures, methods, len(compared)), Row("all", "failed", n_failed, "count")]
    report = _report(tools, "evaluate-methods", rows, sheet, about)
    if n_failed:
        raise RunError(f"{n_failed} runs failed; {report.results} compares the others; the same command tries again")
    return report


def priors_of(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """Name and hashes of every prior that made one of `runs`; a warning where there are several."""
    priors: list[dict[str, Any]] = []
    for run in runs:
        told = read_record(run).get("prior", {})
        prior = {name: told.get(name) for name in ("name", "sha256")}
        if prior not in priors:
            priors.append(prior)
    if len(priors) > 1:
        logger.warning("the runs were made by %d different priors: the figures mix them", len(priors))
    return priors


def _report(tools: Tools, name: str, rows: list[Row], sheet: Path, about: Mapping[str, object]) -> Report:
    device = pipeline.device_name(tools.device)
    path = write_results(tools.out, name, device, pipeline.versions(), rows, about)
    return Report(rows, path, sheet)
