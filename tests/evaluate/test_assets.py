"""Assets beside their truth: what is found of boxes of known colour and shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluate.small_world import GREEN, RED, Knower, box_glb, finish, library

from nerf_bridge.errors import UserError
from nerf_bridge.evaluate import assets
from nerf_bridge.evaluate.assets import asset_lines, asset_rows, asset_sheet, fault_of, find_runs, measure_assets
from nerf_bridge.evaluate.truth import Views, around
from nerf_bridge.prior.data.holdout import stable_order
from nerf_bridge.run.directory import RunDirectory, write_record


class Classifier:
    """Stands for the ImageNet classifier: knows chairs, all of them or only greenish ones."""

    def __init__(self, only_green: bool):
        self.only_green = only_green

    def knows(self, noun):
        return noun == "chair"

    def hits(self, images, noun):
        green = images[:, 1].mean((1, 2)) > images[:, 0].mean((1, 2)) + 0.01
        right = [float(bool(one) or not self.only_green) for one in green]
        return [0.0] * len(right), right


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finish(RunDirectory(folder / "one"), "a green chair", box_glb(GREEN))
    finish(RunDirectory(folder / "two"), "a green sofa", box_glb(RED), iou=0.5)
    (folder / "unfinished").mkdir()
    write_record(RunDirectory(folder / "unfinished"), {"prompt": "a chair", "state": "running"})
    return folder


@pytest.fixture(scope="module")
def found(runs):
    return measure_assets(find_runs(runs), library(), Knower("chair", GREEN), Classifier(only_green=False))


def test_only_finished_runs_are_taken(runs, tmp_path):
    assert [prompt for prompt, _ in find_runs(runs)] == ["a green chair", "a green sofa"]
    assert [prompt for prompt, _ in find_runs(runs / "one")] == ["a green chair"]
    with pytest.raises(UserError, match="no finished run"):
        find_runs(tmp_path)


@pytest.mark.compiler
def test_each_asset_is_judged(found):
    chair, sofa = found
    assert chair.hits == [1.0] * 8 and chair.obeyed == 1.0 and chair.true_obeyed == 1.0 and chair.fault == ""
    assert sofa.hits == [0.0] * 8 and sofa.obeyed == 0.0 and sofa.true_obeyed == 1.0 and sofa.fault == "fog"
    assert chair.imagenet == ([0.0] * 8, [1.0] * 8) and sofa.imagenet is None
    assert chair.pictures.shape == (4, 3, 64, 64) and 0.1 < chair.change < 0.6


@pytest.mark.compiler
def test_a_noun_that_the_classifier_does_not_know_in_truth_is_not_judged(runs):
    red = [replace(m, base_colour_word=None) for m in library()]
    finish(RunDirectory(runs.parent / "red"), "a red chair", box_glb(RED))
    (only,) = measure_assets(find_runs(runs.parent / "red"), red, Knower("chair", RED), Classifier(only_green=True))
    assert only.imagenet is None and only.true_imagenet is None


@pytest.mark.compiler
def test_rows_have_the_truth_beside_them(found):
    rows = {row.metric: row for row in asset_rows(found)}
    assert rows["retrieval_top1"].value == 0.5 and rows["colour_obeyed"].value == 0.5
    assert rows["colour_obeyed"].peer_value == 1.0 and rows["retrieval_top1"].peer == "truth"
    assert (rows["fog"].value, rows["empty"].value, rows["imagenet_judged"].value) == (1, 0, 1)
    assert rows["imagenet_top5"].value == rows["imagenet_top5"].peer_value == 1.0
    assert {row.case for row in asset_lines(found)} == {"a green chair", "a green sofa"}


@pytest.mark.compiler
def test_the_change_with_azimuth_counts_only_for_asymmetric_things(found):
    turning = [replace(found[0], change=c, true_change=t) for c, t in ((0.3, 0.3), (0.1, 0.3), (0.5, 0.05))]
    rows = {row.metric: row.value for row in asset_rows(turning)}
    assert rows["asymmetric"] == 2 and rows["silhouette_change_within_30"] == 0.5
    assert rows["silhouette_change"] == pytest.approx((1 + 1 / 3) / 2)
    assert rows["silhouette_change_off_truth"] == pytest.approx((0 + 0.2 + 0.45) / 3)


@pytest.mark.compiler
def test_it_is_compared_with_the_model_most_like_it_of_all_that_fit(runs, monkeypatch):
    """Also with one beyond those over which the truth is averaged."""
    monkeypatch.setattr(assets, "MOST_MODELS", 1)
    cube, other = [m for m in library() if m.noun in ("chair", "horse") and not m.holdout][:2]
    models = [replace(m, name=name, noun="chair") for name, m in (("a", cube), ("b", other))]
    first = min(models, key=lambda m: stable_order(m.name))
    assert first.name == "b"  # so that the cube is the one beyond
    by_itself = []
    for one in (first, *(m for m in models if m is not first)):
        alone = measure_assets(find_runs(runs / "one"), [one], Knower("chair", GREEN), None)
        by_itself.append(alone[0].true_change)
    (found,) = measure_assets(find_runs(runs / "one"), models, Knower("chair", GREEN), None)
    assert found.true_change == by_itself[1] != by_itself[0]  # the box is most like the cube
    assert len(found.true_hits) == 8


@pytest.mark.compiler
def test_a_run_that_was_told_a_design_is_compared_with_its_model(tmp_path):
    """Though another model is more like it."""
    cube, other = [m for m in library() if m.noun in ("chair", "horse") and not m.holdout][:2]
    models = [replace(m, name=name, noun="chair") for name, m in (("a", other), ("b", cube))]
    for design in (1, 2):
        finish(RunDirectory(tmp_path / str(design)), "a green chair", box_glb(GREEN), design=design)
    of_other, of_cube = measure_assets(find_runs(tmp_path), models, Knower("chair", GREEN), None)
    assert of_other.true_change != of_cube.true_change and of_other.agreement < of_cube.agreement < 1
    rows = {row.metric: row.value for row in asset_rows([of_other, of_cube])}
    assert rows["silhouette_agreement"] == pytest.approx((of_other.agreement + of_cube.agreement) / 2)


@pytest.mark.cuda
def test_a_gpu_renders_assets_as_the_cpu_does(runs):
    path, cameras = RunDirectory(runs / "one").asset, around()
    on_cpu, on_gpu = (assets.asset_views(path, cameras, 1.0, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert on_gpu.images.device.type == on_gpu.coverage.device.type == "cpu"
    assert (on_gpu.images - on_cpu.images).abs().mean() < 1e-4 and (
        on_gpu.coverage - on_cpu.coverage
    ).abs().mean() < 1e-4


def test_nothing_is_empty():
    nothing = Views(torch.ones(8, 3, 16, 16), torch.zeros(8, 16, 16))
    assert fault_of(nothing, {"mesh": {"iou": 0.99}}) == "empty"
    assert fault_of(Views(nothing.images, nothing.coverage + 1), {}) == ""


def test_prompts_without_truth_are_told_all_at_once(runs, tmp_path):
    for i, prompt in enumerate(("a red unicorn", "a green chair", "a blue dragon")):
        finish(RunDirectory(tmp_path / str(i)), prompt, box_glb(RED))
    with pytest.raises(UserError, match="unicorn(.|\n)*dragon"):
        measure_assets(find_runs(tmp_path), library(), Knower("chair", GREEN), None)


@pytest.mark.compiler
def test_the_sheet_is_written(found, tmp_path):
    asset_sheet(found, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
