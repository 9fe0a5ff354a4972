"""`nerf-bridge evaluate`: every wrong request as its lines, and the whole way from command to table in small."""

from __future__ import annotations

import json

import pytest
import torch
from evaluate.small_world import GREEN, TINY, box_glb, finish, library
from oracle import OraclePrior

from nerf_bridge import cli, pipeline
from nerf_bridge.errors import RunError
from nerf_bridge.evaluate import commands
from nerf_bridge.evaluate.batches import nouns_of
from nerf_bridge.evaluate.model import Evaluator, save_evaluator
from nerf_bridge.evaluate.results import Row
from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.run.directory import RunDirectory, read_record, write_record


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Options that name a packed library and an evaluator; there are two prompts, and all assets are green boxes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "load_imagenet_judge", lambda device: None)
    pack_library(list(library()), tmp_path / "library.npz")
    torch.manual_seed(0)
    save_evaluator(Evaluator(TINY).eval(), nouns_of(library()), tmp_path / "judge", {})
    (tmp_path / "prompts.txt").write_text("a green chair\na red sofa\n")
    monkeypatch.setattr(
        pipeline, "generate", lambda config, out: finish(RunDirectory(out), config.prompt, box_glb(GREEN))
    )
    monkeypatch.setattr("nerf_bridge.evaluate.methods.VIEWS", 4)
    return ["--library", "library.npz", "--evaluator", "judge", "--out", "out", "--device", "cpu"]


def lines_of(capsys, *words):
    assert cli.main(["evaluate", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return [line.removeprefix("nerf-bridge: error: ") for line in err.splitlines()]


def test_wrong_requests_are_told_all_at_once(world, capsys):
    problems = lines_of(capsys, "methods", "nowhere.txt", "--methods", "sds,magic", "--steps", "0", *world)
    assert any("'magic' is none of sds, csd, nfsd, bridge" in line for line in problems)
    assert any("nowhere.txt: no such file" in line for line in problems) and any("steps" in line for line in problems)
    assert lines_of(capsys, "piror", *world) == [
        "evaluate 'piror': expected one of prior, assets, methods; did you mean prior?"
    ]
    assert "at least 1" in lines_of(capsys, "prior", "--seeds", "0", *world)[0]
    assert "side by side" in lines_of(capsys, "prior", "--workers", "2", *world)[0]
    assert "takes no setting 'guidance'" in lines_of(capsys, "prior", "--guidance.scale", "3", *world)[0]
    assert "goes through --methods" in lines_of(capsys, "methods", "--guidance.method", "sds", *world)[0]
    assert "not on the folder" in lines_of(capsys, "methods", "judge", *world)[0]
    assert lines_of(capsys, "prior", "--suds", "3", *world)[0].startswith(
        "unknown option --suds: did you mean --seeds?"
    )


def test_what_is_missing_is_told_with_the_remedy(world, capsys, tmp_path):
    assert "docs/prior.md says how" in lines_of(capsys, "assets", "prompts.txt", "--out", "out")[0]
    assert "build it with" in lines_of(capsys, "assets", "prompts.txt", "--library", "none.npz")[0]
    there = ["--library", "library.npz", "--evaluator", "none"]
    assert "--evaluator, or train them" in lines_of(capsys, "assets", "prompts.txt", *there)[0]
    (tmp_path / "prompts.txt").write_text("a red unicorn\na red chair\na blue dragon\n")
    assert len(lines_of(capsys, "assets", "prompts.txt", *world)) == 2
    assert not (tmp_path / "out").exists()


def test_an_evaluator_of_another_library_is_told(world, tmp_path, caplog):
    save_evaluator(Evaluator(TINY).eval(), nouns_of(library())[1:], tmp_path / "other", {})
    known = commands.load_tools(tmp_path / "library.npz", tmp_path / "judge", "cpu", tmp_path)
    assert not caplog.records and len(known.judge.nouns) == len(nouns_of(library()))
    commands.load_tools(tmp_path / "library.npz", tmp_path / "other", "cpu", tmp_path)
    assert f"never saw 1 nouns of {tmp_path / 'library.npz'}" in caplog.text and "armchair" in caplog.text


@pytest.mark.compiler
def test_assets_from_prompts_to_table(world, capsys, tmp_path):
    assert cli.main(["evaluate", "assets", "prompts.txt", "--seed", "4", *world]) == 0
    out = capsys.readouterr().out
    (results,) = (tmp_path / "out").glob("evaluate-assets-*.json")
    document = json.loads(results.read_text())
    rows = {row["metric"]: row for row in document["rows"]}
    assert rows["assets"]["value"] == 2 and rows["colour_obeyed"]["value"] == 0.5 and rows["failed"]["value"] == 0
    assert "colour_obeyed" in out and f"results {results.relative_to(tmp_path)}" in out
    assert (tmp_path / "out" / "assets.png").is_file() and document["made_by"] == "a CPU"
    assert sorted(path.name for path in (tmp_path / "out" / "runs").glob("*-s4")) == [
        "a-green-chair-s4",
        "a-red-sofa-s4",
    ]


@pytest.mark.compiler
def test_only_the_runs_of_the_prompts_are_measured_and_their_priors_named(world, tmp_path, caplog, monkeypatch):
    def generate(config, out):
        run = finish(RunDirectory(out), config.prompt, box_glb(GREEN))
        prior = {"name": "embedded", "sha256": {"a": config.prompt[2]}, "licence": "none"}
        write_record(run, read_record(run) | {"prior": prior})
        return run

    monkeypatch.setattr(pipeline, "generate", generate)
    (tmp_path / "one.txt").write_text("a green chair, design 2\n")
    for prompts, priors in (("one.txt", ["g"]), ("prompts.txt", ["g", "r"])):
        assert cli.main(["evaluate", "assets", prompts, *world]) == 0
        (results,) = (tmp_path / "out").glob("evaluate-assets-*.json")
        document = json.loads(results.read_text())
        assert {row["metric"]: row["value"] for row in document["rows"]}["assets"] == len(priors)
        assert document["priors"] == [{"name": "embedded", "sha256": {"a": letter}} for letter in priors]
    assert caplog.text.count("2 different priors") == 1


@pytest.mark.compiler
def test_a_failed_run_is_told_after_the_others_were_measured(world, capsys, tmp_path, monkeypatch):
    real = pipeline.generate

    def generate(config, out):
        if config.prompt == "a red sofa":
            raise RunError("the scene is empty")
        return real(config, out)

    monkeypatch.setattr(pipeline, "generate", generate)
    assert cli.main(["evaluate", "assets", "prompts.txt", *world]) == 1
    assert "1 of 2 jobs failed (a red sofa)" in capsys.readouterr().err
    (results,) = (tmp_path / "out").glob("evaluate-assets-*.json")
    assert {"case": "all", "metric": "failed", "value": 1, "unit": "count"} in json.loads(results.read_text())["rows"]


@pytest.mark.compiler
def test_methods_from_prompts_to_table(world, capsys, tmp_path):
    words = ["evaluate", "methods", "prompts.txt", "--methods", "sds,bridge", "--seeds", "1", *world]
    assert cli.main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert (
        any(line.split()[:2] == ["bridge", "frechet"] for line in table)
        and (tmp_path / "out" / "methods.png").is_file()
    )
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()} == {"sds", "bridge"}


@pytest.mark.compiler
def test_the_prior_from_samples_to_table(world, capsys, tmp_path, monkeypatch):
    oracle = OraclePrior(image_size=16, supersample=1)
    oracle.sha256 = {}
    monkeypatch.setattr(commands, "load_embedded", lambda device, weights: oracle)
    gate = Row("new views, log-SNR -4", "gate", 1.0, "holds = 1")
    monkeypatch.setattr(commands, "azimuth_table", lambda prior, models, n: [gate])
    words = ["evaluate", "prior", "--nouns", "2", "--seeds", "1", "--sampling-steps", "2", *world]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "held-out pairs" in out and "gate" in out and (tmp_path / "out" / "prior.png").is_file()


def test_help_names_the_parts_and_imports_no_torch(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("prior|assets|methods", "--library FILE", "--evaluator DIR", "--sampling-steps N", "(default: 60)"):
        assert word in text
