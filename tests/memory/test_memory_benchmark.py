"""The command that measures memory runs on a small network, and what it writes holds together."""

import json

import pytest

from benchmarks import memory, report
from nerf_bridge.memory.ladder import PRESETS, RUNGS
from nerf_bridge.prior.models import prompt_cache


@pytest.mark.slow
def test_a_dry_run_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prompt_cache, "prompt_folder", lambda: tmp_path / "prompts")
    out = tmp_path / "memory.json"
    words = ["--device", "cpu", "--shrink", "32", "--steps", "2", "--cases", "8gb_256", "rung_stream_512"]
    assert memory.main([*words, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert set(results["not_measured"]) == set(memory.CASES) - {"8gb_256", "rung_stream_512"}
    assert results["left_out"] == [] and {"device", "commit", "date", "versions", "rows"} <= results.keys()
    found = {(row["case"], row["metric"]): row["value"] for row in results["rows"]}
    assert found["8gb_256", "rung at the start"] == found["8gb_256", "rung at the end"] == 2
    assert found["rung_stream_512", "rung at the end"] == 4
    assert 0 < found["8gb_256", "estimate"] < 2
    assert "rung at the end" in report.text_table(results) and "written" in capsys.readouterr().out


def test_every_preset_and_rung_is_a_case():
    assert {preset for preset, *_ in memory.CASES.values()} == {"auto", *(preset.name for preset in PRESETS)}
    assert sorted(rung for *_, rung in memory.CASES.values() if rung is not None) == list(range(len(RUNGS)))


def test_a_preset_is_measured_with_its_largest_views(tmp_path):
    options = memory.parse(["--device", "cpu"])
    for preset in PRESETS:
        sizes = [size for name, _, size, _ in memory.CASES.values() if name == preset.name]
        assert max(sizes) == (preset.largest_view or 512)
    config = memory.case_config("8gb_256", tmp_path, options)
    assert (config.memory, config.render.size, config.render.early_size, config.field.n_levels) == (
        "8gb",
        256,
        None,
        16,
    )
    growing = memory.case_config("8gb_64_to_256", tmp_path, options).render
    assert (growing.early_size, growing.size, growing.early_until) == (64, 256, 0.5)


@pytest.mark.parametrize("words", [["--steps", "1"], ["--shrink", "0"], ["--cases", "9gb"]])
def test_wrong_words_end_with_2(words):
    with pytest.raises(SystemExit) as ended:
        memory.parse(words)
    assert ended.value.code == 2


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory.main(["--device", "cuda"]) == 2
    assert "use --device cpu --shrink 16 for a trial" in capsys.readouterr().err
