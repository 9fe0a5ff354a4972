"""The commands: what reaches the pipeline, and every bad input as its line and status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trimesh

import nerf_bridge
from nerf_bridge import cli, pipeline
from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.image_config import ImageConfig
from nerf_bridge.mesh.data import MeshStatistics
from nerf_bridge.options import add_settings
from nerf_bridge.run.directory import RunDirectory, default_run_path
from nerf_bridge.settings import walk


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NERF_BRIDGE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[GenerateConfig, Path | None]]:
    """Records what `generate` hands to the pipeline, which does nothing."""
    seen: list[tuple[GenerateConfig, Path | None]] = []

    def record(config: GenerateConfig, out: Path | None = None, began: float | None = None) -> RunDirectory:
        seen.append((config, out))
        return RunDirectory(out or default_run_path(config.prompt, config.seed))

    monkeypatch.setattr(pipeline, "generate", record)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> list[str]:
    """Run, expect `status`, and give the lines on standard error without the program's name."""
    assert cli.main(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if not line.startswith("backend: ")]  # the log may name the backend
    assert lines
    assert all(line.startswith("nerf-bridge: error: ") for line in lines), err
    return [line.removeprefix("nerf-bridge: error: ") for line in lines]


def process(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`python -m nerf_bridge` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(nerf_bridge.__file__).parents[1])} | settings
    command = [sys.executable, "-m", "nerf_bridge", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, stdin=subprocess.DEVNULL, check=False
    )


def test_generate_prints_where_the_results_are(
    calls: list[tuple[GenerateConfig, Path | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "a green armchair"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"asset   {Path('runs/a-green-armchair-s0/asset.glb')}",
        f"report  {Path('runs/a-green-armchair-s0/report.html')}",
    ]
    assert calls[0][1] is None


def test_options_reach_the_pipeline(calls: list[tuple[GenerateConfig, Path | None]], tmp_path: Path) -> None:
    words = ["--seed", "3", "--device", "cpu", "--steps=20", "--faces", "900", "--texture", "128", "--backend", "torch"]
    more = ["--guidance.scale", "12", "--camera.elevation_min_deg", "-20", "--out", str(tmp_path / "r")]
    assert cli.main(["generate", "a chair", *words, *more]) == 0
    config, out = calls[0]
    assert (config.seed, config.device, config.steps, config.backend) == (3, "cpu", 20, "torch")
    assert (config.mesh.faces, config.mesh.texture) == (900, 128)
    assert (config.guidance.scale, config.camera.elevation_min_deg) == (12.0, -20.0)
    assert out == tmp_path / "r"


def test_long_names_of_the_short_options_work_too(calls: list[tuple[GenerateConfig, Path | None]]) -> None:
    assert cli.main(["generate", "a chair", "--mesh.faces", "900"]) == 0
    assert calls[0][0].mesh.faces == 900


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(
    calls: list[tuple[GenerateConfig, Path | None]], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(
        "prompt: a sofa\nsteps: 40\nmesh:\n  faces: 700\n  texture: 256\n", encoding="utf-8"
    )
    assert cli.main(["generate", "--config", "s.yaml", "--faces", "800"]) == 0
    config, _ = calls[0]
    assert (config.prompt, config.steps, config.mesh.faces, config.mesh.texture) == ("a sofa", 40, 800, 256)
    assert cli.main(["generate", "a chair", "--config", "s.yaml"]) == 0
    assert calls[1][0].prompt == "a chair"


def test_presets_are_found_by_name(calls: list[tuple[GenerateConfig, Path | None]]) -> None:
    assert cli.main(["generate", "a chair", "--config", "sds"]) == 0
    assert calls[0][0].guidance.method == "sds"


@pytest.mark.parametrize("words", [[], [""], ["   "], ["--seed", "1"]])
def test_an_empty_prompt(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", *words) == [
        'the prompt is empty: say what to make, for example "a green armchair"'
    ]


def test_an_absurdly_long_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "x" * 100_000) == ["the prompt has 100000 characters; at most 500 are read"]


def test_a_prompt_without_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "a", "green", "armchair") == [
        "unexpected words 'green' 'armchair': put a prompt or a name with spaces in quotes"
    ]


def test_an_unknown_prior(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = refused(capsys, "generate", "a chair", "--prior", "embeded", "--backend", "torch", "--device", "cpu")
    assert len(lines) == 1
    assert "embeded" in lines[0]
    assert "embedded" in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--guidance.scal", "8"], ["--guidance.scal=8"], ["--guidance-scale", "8"]])
def test_a_misspelt_setting(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "a chair", *words) == [
        f"unknown option {words[0].partition('=')[0]}: did you mean --guidance.scale?"
    ]


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "a chair", "--step", "3") == ["unknown option --step: did you mean --steps?"]


def test_values_out_of_range_and_of_wrong_types(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed", "-5", "--steps", "many", "--device", "cuuda", "--faces", "1"]
    assert refused(capsys, "generate", "a chair", *words) == [
        "seed: got '-5', allowed: a whole number from 0 to 2147483647",
        "device: got 'cuuda', allowed: one of auto, cpu, cuda; did you mean cuda?",
        "steps: got 'many', allowed: a whole number from 1 to 1000000",
        "mesh.faces: got '1', allowed: a whole number from 100 to 2000000",
    ]


def test_everything_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("stepz: 3\n", encoding="utf-8")
    lines = refused(capsys, "generate", "", "--guidance.scal", "8", "--seed", "x", "--config", "s.yaml")
    assert [line.split(":")[0] for line in lines] == [
        "unknown option --guidance.scal",
        "the prompt is empty",
        "seed",
        "unknown setting stepz",
    ]


def test_a_missing_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "generate", "a chair", "--config", "nope.yaml")
    assert line.startswith("no settings at 'nope.yaml': expected a YAML file or a preset (")


def test_an_unreadable_settings_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("steps: [1", encoding="utf-8")
    (line,) = refused(capsys, "generate", "a chair", "--config", "s.yaml")
    assert line.startswith("cannot read settings from s.yaml: ")


def test_an_option_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "a chair", "--seed") == [
        "argument --seed: expected one argument (see nerf-bridge generate --help)"
    ]


def test_no_command_and_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys)[0].startswith("say what to do")
    (line,) = refused(capsys, "genrate", "a chair")
    assert line.startswith("unknown command 'genrate' (known: generate, ")
    assert line.endswith("did you mean generate?")


def test_cuda_asked_for_and_absent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (line,) = refused(capsys, "generate", "a chair", "--device", "cuda")
    assert "cuda" in line
    assert "--device cpu" in line
    (line,) = refused(capsys, "generate", "a chair", "--device", "cpu", "--backend", "cuda")
    assert "cuda" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_run_directory_should_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r").write_text("mine", encoding="utf-8")
    (line,) = refused(capsys, "generate", "a chair", "--backend", "torch", "--device", "cpu", "--out", "r")
    assert "r is a file" in line
    assert (tmp_path / "r").read_text(encoding="utf-8") == "mine"


def test_an_unwritable_output_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (line,) = refused(capsys, "generate", "a chair", "--backend", "torch", "--device", "cpu", "--out", "file/run")
    assert "file/run" in line
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_run_of_another_prompt_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("prompt: a red sofa\n", encoding="utf-8")
    (line,) = refused(capsys, "generate", "a chair", "--backend", "torch", "--device", "cpu", "--out", "r")
    assert "another prompt" in line
    assert "a red sofa" in line
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["config.yaml"]


BOUNDS_M = ((-0.25, 0.0, -0.125), (0.25, 1.0, 0.125))
WRITTEN = MeshStatistics(420, 792, 2, True, 8.0, 0.9432, (), BOUNDS_M, BOUNDS_M, 64, "xatlas", {})


def test_export_hands_over_what_changes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[object, ...]] = []

    def record(
        run: Path, changes: dict[str, object], out: Path | None, device: str, backend: str
    ) -> tuple[Path, MeshStatistics]:
        seen.append((run, changes, out, device, backend))
        return Path("there.glb"), WRITTEN

    monkeypatch.setattr(pipeline, "export", record)
    assert cli.main(["export", "runs/x", "--faces", "800", "--backend", "torch"]) == 0
    assert seen == [(Path("runs/x"), {"faces": "800"}, None, "auto", "torch")]
    assert capsys.readouterr().out == (
        "asset   there.glb\nmesh    792 faces, 0.5 x 1 x 0.25 m, 2 bodies, watertight, silhouette IoU 0.943\n"
    )


def test_the_height_has_a_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def record(run: Path, changes: dict[str, object], *rest: object) -> tuple[Path, MeshStatistics]:
        seen.append(changes)
        return Path("there.glb"), WRITTEN

    monkeypatch.setattr(pipeline, "export", record)
    assert cli.main(["export", "runs/x", "--height", "0.45", "--mesh.texture_format", "webp"]) == 0
    assert seen == [{"height_m": "0.45", "texture_format": "webp"}]


def test_inspect_tells_what_is_in_a_sound_file_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trimesh.creation.box().export(tmp_path / "box.glb")
    assert cli.main(["inspect", str(tmp_path / "box.glb")]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table["faces"] == "12" and table["watertight"] == "yes" and table["verdict"] == "sound"
    assert cli.main(["inspect", str(tmp_path / "box.glb"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sound"] and record["size_m"] == [1, 1, 1] and record["topology"]["points"] == 8


def test_inspect_ends_with_1_when_a_file_is_not_sound_and_with_2_when_it_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = trimesh.creation.box()
    box.update_faces([0, 1, 2])
    box.export(tmp_path / "open.stl")
    assert cli.main(["inspect", str(tmp_path / "open.stl")]) == 1
    assert "the surface is open" in capsys.readouterr().out
    (line,) = refused(capsys, "inspect", str(tmp_path / "absent.stl"))
    assert line.endswith("absent.stl: there is no such file")
    assert refused(capsys, "inspect", "a.stl", "--jsn") == ["unknown option --jsn: did you mean --json?"]


def test_export_checks_its_settings_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "export", "runs/x", "--mesh.fces", "3", "--texture", "1", "--backend", "x")
    assert [line.split(":")[0] for line in lines] == ["unknown option --mesh.fces", "backend", "mesh.texture"]


def test_export_of_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "export", "nothing-here")
    assert "nothing-here" in line


def test_batch_runs_each_prompt_and_writes_a_gallery(
    calls: list[tuple[GenerateConfig, Path | None]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = ["# two jobs", "a red sofa", '{"prompt": "a blue chair", "mesh.faces": 900}']
    (tmp_path / "jobs.txt").write_text("\n".join(lines), encoding="utf-8")
    assert cli.main(["batch", "jobs.txt", "--steps", "7"]) == 0
    assert [(config.prompt, config.steps) for config, _ in calls] == [("a red sofa", 7), ("a blue chair", 7)]
    assert calls[1][0].mesh.faces == 900
    (printed,) = capsys.readouterr().out.splitlines()
    assert Path(printed.removeprefix("gallery ")).is_file()
    assert all(out is not None and out.parent == Path("runs/jobs") for _, out in calls)
    assert cli.main(["batch", "status", "jobs.txt"]) == 0
    assert "2 jobs: 2 done" in capsys.readouterr().out
    assert cli.main(["batch", "status", "--out", "runs/jobs"]) == 0


def test_a_failed_job_does_not_stop_the_batch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done: list[str] = []

    def fail_for_the_sofa(config: GenerateConfig, out: Path) -> None:
        if "sofa" in config.prompt:
            raise RunError("it broke")
        done.append(config.prompt)

    monkeypatch.setattr(pipeline, "generate", fail_for_the_sofa)
    (tmp_path / "jobs.txt").write_text("a red sofa\na blue chair\n", encoding="utf-8")
    assert cli.main(["batch", "jobs.txt"]) == 1
    assert done == ["a blue chair"]
    assert "1 of 2 jobs failed" in capsys.readouterr().err.splitlines()[-1]


def test_bad_batches(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a", "stepz": 1}\nnot json\n{"prompt": " "}\n', encoding="utf-8")
    lines = refused(capsys, "batch", "jobs.jsonl")
    assert [line.split(": ")[1] for line in lines] == ["line 1", "line 2", "line 3"]
    assert "did you mean steps?" in lines[0]
    assert "nope.txt" in refused(capsys, "batch", "nope.txt")[0]
    assert "nope" in refused(capsys, "batch", "status", "nope")[0]
    assert refused(capsys, "batch", "status")[0].startswith("say which batch")
    assert refused(capsys, "batch", "--stepz", "3", "jobs.jsonl")[0].startswith("unknown option --stepz")
    assert not (tmp_path / "runs").exists()


def test_image_hands_over_its_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[object] = []

    def record(config: ImageConfig, out: Path | None) -> Path:
        seen.append((config.view, config.guidance.scale, out))
        return Path("there.png")

    monkeypatch.setattr("nerf_bridge.image.make_image", record)
    assert cli.main(["image", "a chair", "--view", "side", "--guidance.scale", "3", "--out", "x.png"]) == 0
    assert seen == [("side", 3.0, Path("x.png"))]
    assert capsys.readouterr().out == "image   there.png\n"


def test_image_refuses_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = refused(capsys, "image", "", "--view", "left", "--faces", "3")
    assert lines[0] == "unknown option --faces; --help lists them all"
    assert [line.split(":")[0] for line in lines[1:]] == ["the prompt is empty", "view"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("one\ntwo"), 2, ["nerf-bridge: error: one", "nerf-bridge: error: two"]),
        (RunError("disk full"), 1, ["nerf-bridge: error: disk full"]),
        (Interrupted("saved"), 130, ["nerf-bridge: saved"]),
        (KeyboardInterrupt(), 130, ["nerf-bridge: interrupted"]),
        (KeyError("x"), 1, ["nerf-bridge: error: unexpected KeyError: 'x' (--verbose shows where)"]),
    ],
)
def test_each_way_to_end_has_its_line_and_status(
    error: BaseException,
    status: int,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pipeline, "generate", _raiser(error))
    assert cli.main(["generate", "a chair"]) == status
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize("how", ["option", "environment"])
def test_tracebacks_on_request(how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pipeline, "generate", _raiser(RunError("disk full")))
    monkeypatch.setenv("NERF_BRIDGE_DEBUG", "1" if how == "environment" else "0")
    assert cli.main(["generate", "a chair", *(["--verbose"] if how == "option" else [])]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("nerf-bridge: error: disk full\n")


def test_doctor_tells_by_its_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from nerf_bridge.doctor import Check

    for needed, status in ((True, 1), (False, 0)):
        monkeypatch.setattr("nerf_bridge.doctor.examine", lambda n=needed: [Check("thing", False, "no", "get one", n)])
        assert cli.main(["doctor"]) == status
        assert "get one" in capsys.readouterr().out
    (line,) = refused(capsys, "doctor", "--al")
    assert line.startswith("unknown option --al")


def test_help_lists_every_setting_with_its_default() -> None:
    parser = cli.Parser(prog="x")
    add_settings(parser, GenerateConfig)
    text = parser.format_help()
    for path, _ in walk(GenerateConfig):
        assert path == "prompt" or f"--{path}" in text
    assert "(default: 3.0; a number from 0 to 1000)" in " ".join(text.split())


def test_help_is_quick_and_does_not_import_torch() -> None:
    code = "import sys; from nerf_bridge.cli import main\ntry:\n    main(['generate', '--help'])\n"
    code += "except SystemExit as end:\n    assert end.code == 0\nassert 'torch' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=_checkout())
    assert time.perf_counter() - start < 5  # 0.3 s on an idle machine


def test_commands_in_help_are_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("generate", "image", "export", "inspect", "batch", "doctor"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"nerf-bridge {nerf_bridge.__version__}\n"


def test_a_process_ends_with_one_line_and_status_2() -> None:
    done = process("generate", "a chair", "--guidance.scal", "8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nerf-bridge: error: unknown option --guidance.scal: did you mean --guidance.scale?\n"


def test_a_reader_that_has_gone_does_no_harm() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from nerf_bridge import cli; cli._say('x' * 100_000); cli._say('y'); print('z')"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=_checkout())
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_names_are_there_and_others_are_not() -> None:
    assert nerf_bridge.GenerateConfig is GenerateConfig
    assert callable(nerf_bridge.load_prior)
    assert callable(nerf_bridge.export_mesh)
    assert nerf_bridge.generate is pipeline.generate
    assert set(nerf_bridge.__all__) <= set(dir(nerf_bridge))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = nerf_bridge.nothing_such


def _raiser(error: BaseException) -> Callable[..., SimpleNamespace]:
    def fail(*_: object, **__: object) -> SimpleNamespace:
        raise error

    return fail


def _checkout() -> Path:
    return Path(nerf_bridge.__file__).parents[1]
