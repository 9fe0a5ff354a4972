"""The comparison of methods: same prompts and seeds, what is finished is kept, figures beside the truth."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from evaluate.small_world import GREEN, RED, box_glb, finish, library, random_judge

from nerf_bridge.batch.pool import Engine
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.evaluate.methods import (
    ObjectFigures,
    figures_by_seed,
    finished_prompts,
    measure_methods,
    method_jobs,
    method_rows,
    method_sheet,
    run_methods,
)
from nerf_bridge.evaluate.truth import true_views
from nerf_bridge.run.directory import RunDirectory

METHODS = ("sds", "bridge")


@pytest.fixture
def jobs(tmp_path):
    (tmp_path / "prompts.txt").write_text("a green chair\na green sofa\na green desk\n")
    return method_jobs(tmp_path / "prompts.txt", tmp_path / "runs", {"steps": 7}, METHODS, 2, 3)


def made(job):
    colour = GREEN if job.config().guidance.method == "bridge" else RED
    finish(RunDirectory(job.out), job.prompt, box_glb(colour), seconds=10.0 + job.config().seed)


def test_every_method_gets_the_same_prompts_seeds_and_settings(jobs, tmp_path):
    assert list(jobs) == [("sds", 0), ("sds", 1), ("bridge", 0), ("bridge", 1)]
    for (method, seed), part in jobs.items():
        assert [job.prompt for job in part] == ["a green chair", "a green sofa", "a green desk"]
        assert all(
            (job.config().guidance.method, job.config().seed, job.config().steps) == (method, seed, 7) for job in part
        )
        assert part[0].out == tmp_path / "runs" / method / f"a-green-chair-s{seed}"


def test_seeds_begin_where_the_settings_say(jobs, tmp_path):
    later = method_jobs(tmp_path / "prompts.txt", tmp_path / "runs", {"seed": "5"}, ("sds",), 2, 3)
    assert list(later) == [("sds", 5), ("sds", 6)] and later["sds", 6][0].config().seed == 6


def test_prompts_are_taken_evenly(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a thing {i}" for i in range(60)))
    (part,) = method_jobs(tmp_path / "prompts.txt", tmp_path, {}, ("sds",), 1, 20).values()
    places = [int(job.prompt.split()[-1]) for job in part]
    assert len(places) == 20 and places[0] == 0 and places[-1] == 59
    assert {b - a for a, b in pairwise(places)} <= {3, 4}


def test_a_stopped_comparison_goes_on_with_what_is_missing(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nerf_bridge.batch.queue.run_status",
        lambda path, config: "finished" if (path / "asset.glb").exists() else "fresh",
    )
    done = []

    def run_job(job):
        if len(done) == 5:
            raise Interrupted("stopped")
        done.append(job.out)
        made(job)

    with pytest.raises(Interrupted):
        run_methods(jobs, tmp_path / "runs", Engine(run_job))
    assert {path.parent.name for path in done[:4]} == set(METHODS)  # prompt by prompt through all methods
    assert finished_prompts(jobs) == [0]
    later = []
    assert run_methods(jobs, tmp_path / "runs", Engine(lambda job: (later.append(job.out), made(job)))) == 0
    assert len(later) == 7 and not set(later) & set(done) and finished_prompts(jobs) == [0, 1, 2]


@pytest.mark.compiler
def test_a_prompt_that_failed_somewhere_is_left_out_everywhere(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr("nerf_bridge.evaluate.methods.VIEWS", 4)

    def run_job(job):
        if job.prompt == "a green sofa" and job.config().seed == 1:
            raise RunError("the scene is empty")
        made(job)

    assert run_methods(jobs, tmp_path / "runs", Engine(run_job)) == 2
    found = measure_methods(jobs, library(), random_judge())
    assert {len(objects) for objects in found.values()} == {2}
    assert {name for name, _ in found} == {*METHODS, "truth", "truth again"}
    rows = {(row.case, row.metric): row for row in method_rows(figures_by_seed(found), METHODS, 2)}
    assert rows["bridge", "colour_obeyed"].value == 1.0 and rows["sds", "colour_obeyed"].value == 0.0
    assert (
        rows["sds", "seconds"].value == 10.5 and rows["all", "prompts"].value == 2 and rows["all", "seeds"].value == 2
    )
    assert rows["sds", "frechet"].floor == rows["bridge", "frechet"].floor > 0
    assert rows["bridge", "saturation"].peer == "truth" and rows["bridge", "saturation_off_truth"].value >= 0
    method_sheet(found, ["a green chair", "a green desk"], METHODS, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.compiler
def test_truth_is_the_model_of_the_design_that_the_seed_drew(jobs, monkeypatch):
    """Its lots differ in the shade alone; without a design they are other models."""
    monkeypatch.setattr("nerf_bridge.evaluate.methods.VIEWS", 4)
    shown = []

    def seen(request, cameras, lot):
        shown.append((request.models, lot))
        return true_views(request, cameras, lot)

    monkeypatch.setattr("nerf_bridge.evaluate.methods.true_views", seen)
    for (_, seed), part in jobs.items():
        for job in part:
            finish(RunDirectory(job.out), job.prompt, box_glb(GREEN), design=seed)  # the first seed's prior knows none
    found = measure_methods(jobs, library(), random_judge())
    assert {len(objects) for objects in found.values()} == {3}
    sofas = [m for m in library() if m.noun == "sofa"]
    of_sofa = {lot: models for models, lot in shown if models[0].noun == "sofa"}
    assert {m.name for m in of_sofa[0]} == {m.name for m in of_sofa[2]} == {m.name for m in sofas}
    assert of_sofa[1] == of_sofa[3] == (sofas[0],)


def test_nothing_finished_is_told(jobs):
    with pytest.raises(UserError, match="no prompt ended well"):
        measure_methods(jobs, library(), random_judge())


def objects(mean, saturation, n=6):
    generator = torch.Generator().manual_seed(int(100 * mean))
    front = torch.zeros(1, 3, 64, 64)
    draw = [mean + torch.randn(24, 4, generator=generator) for _ in range(n)]
    return [ObjectFigures(features.double(), saturation, 0.1, [1.0], None, 5.0, front) for features in draw]


def test_the_nearer_method_has_the_smaller_distance_and_spreads_are_over_seeds():
    found = {}
    for seed, shift in ((0, 0.0), (1, 0.4)):
        found |= {("sds", seed): objects(3.0 + shift, 0.9), ("bridge", seed): objects(1.0 + shift, 0.6 + 0.1 * seed)}
        found |= {("truth", seed): objects(0.0, 0.5), ("truth again", seed): objects(0.01, 0.5)}
    rows = {(row.case, row.metric): row for row in method_rows(figures_by_seed(found), METHODS, 6)}
    assert rows["bridge", "frechet"].p90 < rows["sds", "frechet"].p10
    assert rows["bridge", "frechet"].p10 < rows["bridge", "frechet"].value < rows["bridge", "frechet"].p90
    assert rows["sds", "saturation_off_truth"].value == pytest.approx(0.4)
    assert rows["bridge", "saturation_off_truth"].value == pytest.approx(0.15)
    assert ("sds", "colour_obeyed") not in rows and rows["sds", "frechet"].floor < 1
    assert ("sds", "frechet_less_sds") not in rows


def test_methods_are_compared_seed_by_seed():
    """So that seeds which are harder for all of them do not hide which is better."""
    found = {}
    for seed, shift in ((0, 0.0), (1, 2.0), (2, 4.0)):
        found |= {("sds", seed): objects(3.0 + shift, 0.9), ("bridge", seed): objects(2.8 + shift, 0.8)}
        found |= {("truth", seed): objects(0.0, 0.5), ("truth again", seed): objects(0.01, 0.5)}
    rows = {(row.case, row.metric): row for row in method_rows(figures_by_seed(found), METHODS, 6)}
    assert rows["bridge", "frechet"].p90 > rows["sds", "frechet"].p10  # the spreads overlap
    assert rows["bridge", "frechet_less_sds"].p90 < 0
    assert rows["bridge", "frechet_less_sds"].value == pytest.approx(
        rows["bridge", "frechet"].value - rows["sds", "frechet"].value
    )
    assert rows["bridge", "saturation_off_truth_less_sds"].value == pytest.approx(-0.1)
