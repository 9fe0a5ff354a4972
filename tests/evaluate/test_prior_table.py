"""`evaluate prior`: samples beside true renders, judged by what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate.small_world import GREEN, Knower, library, random_judge
from oracle import OraclePrior

from nerf_bridge.evaluate.prior import (
    CaseResult,
    SamplePlan,
    cameras_of,
    draw_samples,
    frechet_row,
    judge_case,
    object_pixels,
    sample_rows,
    sample_sheet,
    true_pictures,
)
from nerf_bridge.evaluate.requests import Case, draw_cases
from nerf_bridge.evaluate.truth import read_prompt

PLAN = SamplePlan(seeds=2, steps=3, scale=1.0, batch=3)


@pytest.fixture(scope="module")
def cases():
    return [case for case in draw_cases(library(), 2) if case.group == "nouns"]


def case_of(prompt):
    return Case("nouns", read_prompt(prompt, library()))


def test_cameras_are_by_lot_and_the_same_again():
    cameras = cameras_of([(f"a {i}", seed) for i in range(100) for seed in range(2)])
    again = cameras_of([("a 0", 0)])
    elevation = np.rad2deg(cameras.elevation_rad.numpy())
    assert 5 <= elevation.min() < 8 < 32 < elevation.max() <= 35 and torch.equal(cameras.c2w[:1], again.c2w)
    counts, _ = np.histogram(cameras.azimuth_rad.numpy(), bins=4, range=(0, 2 * np.pi))
    assert counts.min() > 30


def test_samples_do_not_depend_on_the_batch(cases):
    prior = OraclePrior(image_size=16, supersample=1)
    one = draw_samples(prior, cases, PLAN, torch.device("cpu"))
    other = draw_samples(prior, cases, SamplePlan(2, 3, 1.0, batch=1), torch.device("cpu"))
    assert one.shape == (2, 2, 3, 16, 16) and torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one[:, 0], one[:, 1], atol=1e-2)


def test_the_pixels_of_the_object():
    image = torch.ones(3, 32, 32)
    image[:, 8:24, 8:24] = torch.tensor(GREEN)[:, None, None]
    image[:, 8, 8:24] = 0.5  # its rim
    pixels = object_pixels(image, 1.0)
    assert len(pixels) == 14 * 14 and np.allclose(pixels, GREEN, atol=1e-6)
    assert object_pixels(torch.ones(3, 32, 32), 1.0).shape == (0, 3)  # nothing is there
    thin = torch.ones(3, 32, 32)
    thin[:, 5, 3:29] = 0.0
    assert len(object_pixels(thin, 1.0)) == 26


@pytest.mark.compiler
def test_the_truth_judged_as_a_sample_is_as_good_as_the_truth():
    case = case_of("a green chair")
    truth = true_pictures(case.request, 3)
    result = judge_case(case, truth, Knower("chair", GREEN), 3)
    assert result.hits == result.true_hits and result.obeyed == result.true_obeyed == [1.0] * 3
    wrong = judge_case(case, 1 - truth, Knower("chair", GREEN), 3)
    assert wrong.obeyed == [0.0] * 3 and wrong.true_obeyed == [1.0] * 3


def result(prompt, group, hits, true_hits, obeyed, true_obeyed=(1.0, 1.0)):
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(len(prompt)))
    return CaseResult(
        Case(group, case_of(prompt).request), pictures, pictures, hits, true_hits, obeyed, list(true_obeyed)
    )


@pytest.mark.compiler
def test_rows_of_each_group():
    found = [
        result("a red chair", "nouns", [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]),
        result("a red sofa", "nouns", [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]),
        result("a red desk", "held-out pairs", [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]),
    ]
    rows = {(row.case, row.metric): row for row in sample_rows(found, random_judge())}
    assert rows["nouns", "retrieval_top1"].value == 0.25 and rows["nouns", "retrieval_top1"].peer_value == 0.75
    assert rows["nouns", "retrieval_of_truth"].value == pytest.approx(1 / 3)
    assert rows["nouns", "colour_obeyed"].value == 0.75 and rows["held-out pairs", "colour_obeyed"].value == 0.0
    assert rows["all", "frechet"].value == pytest.approx(0, abs=1e-6)  # the drawn are the true ones here
    assert rows["all", "frechet"].floor > 0  # but other true shapes would not be


@pytest.mark.compiler
def test_colours_that_are_not_judged_are_left_out():
    found = [
        result("a red chair", "nouns", [1.0, 1.0], [1.0, 1.0], [1.0, 0.0], (1.0, 1.0)),
        result("a red sofa", "nouns", [1.0, 1.0], [1.0, 1.0], [], ()),
    ]
    rows = {row.metric: row for row in sample_rows(found, random_judge())}
    assert rows["colour_judged"].value == 1
    assert (rows["colour_obeyed"].value, rows["colour_obeyed"].peer_value) == (0.5, 1.0)


@pytest.mark.compiler
def test_the_distance_grows_with_what_is_wrong(cases):
    judge = random_judge()
    truth = [true_pictures(case.request, 2) for case in cases]
    grey = [CaseResult(c, 0.5 * t, t, [0.0], [0.0], [0.0], [0.0]) for c, t in zip(cases, truth, strict=True)]
    near = [CaseResult(c, 0.95 * t, t, [0.0], [0.0], [0.0], [0.0]) for c, t in zip(cases, truth, strict=True)]
    assert frechet_row(grey, judge).value > frechet_row(near, judge).value
    again = [true_pictures(case.request, 2, first_lot=2) for case in cases]  # as if the samples were other true shapes
    drawn = [CaseResult(c, a, t, [0.0], [0.0], [0.0], [0.0]) for c, a, t in zip(cases, again, truth, strict=True)]
    assert frechet_row(drawn, judge).value == pytest.approx(frechet_row(drawn, judge).floor)


def test_held_out_pairs_and_the_same_nouns_have_the_same_cameras_and_noise():
    purple, black = (case_of(f"a {colour} armchair").request for colour in ("purple", "black"))
    prior = OraclePrior(image_size=16, supersample=1)
    seen = []
    real = prior.predict_noise

    def watched(noised, t, embeddings, condition):
        seen.append((noised, condition.cameras.c2w))
        return real(noised, t, embeddings, condition)

    prior.predict_noise = watched
    for request in (purple, black):
        draw_samples(
            prior, [Case("nouns", request)], SamplePlan(seeds=2, steps=1, scale=1.0, batch=2), torch.device("cpu")
        )
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_the_sheet_is_written(tmp_path):
    sample_sheet([result("a red chair", "nouns", [1.0, 0.0], [1.0, 1.0], [1.0, 0.0])], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
