"""Building the kernels: compilers there and missing, cache, lock, failures, ahead of time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nerf_bridge.ops import build

BUILD_SCRIPT = Path(build.__file__)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NERF_BRIDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> Path:
    """A compiler in CXX that logs each build, does `work` ($out: its output file), and returns the log's path."""
    log, script = folder / "builds.log", folder / "c++-fake"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo fake 1.0; exit 0; fi\necho "$@" >> {log}\n'
        f'while [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done\n{work}\n'
    )
    script.chmod(0o755)
    log.touch()
    monkeypatch.setenv("CXX", str(script))
    return log


def fake_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvcc in CUDA_HOME that knows 75, 80, 90 and 100, logs what it is to build, and returns the log's path."""
    log, script = folder / "cuda.log", folder / "cuda" / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo fake 1.0; exit 0;;\n'
        f"--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\n'; exit 0;;\nesac\n"
        f'echo "$@" >> {log}\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done\necho library > "$out"\n'
    )
    script.chmod(0o755)
    log.touch()
    monkeypatch.setenv("CUDA_HOME", str(folder / "cuda"))
    return log


def fake_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    """An nvidia-smi on the PATH that lists these GPUs; it fails, as without a driver, when there are none."""
    script = folder / "tools" / "nvidia-smi"
    script.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"echo {capability}\n" for capability in capabilities)
    script.write_text(f"#!/bin/sh\n{lines or 'echo no driver; exit 9'}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def no_compilers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = folder / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("kind", "remedy"), [("cpu", "apt install g\\+\\+"), ("cuda", "install the CUDA toolkit")])
def test_no_compiler_says_what_was_looked_for_and_the_remedy(kind, remedy, tmp_path, monkeypatch):
    no_compilers(tmp_path, monkeypatch)
    monkeypatch.setattr(build, "_nvcc_candidates", lambda: ["nvcc"])
    with pytest.raises(build.BuildError, match=f"no compiler for the {kind} kernels .*{remedy}") as caught:
        build.cached_library(kind, "any")
    assert "\n" not in str(caught.value)


def test_the_second_call_finds_the_first_one_s_library(cache, tmp_path, monkeypatch):
    log = fake_compiler(tmp_path, monkeypatch, 'echo library > "$out"')
    first = build.cached_library("cpu", "here")
    assert build.cached_library("cpu", "here") == first and first.read_text() == "library\n"
    assert len(log.read_text().splitlines()) == 1 and first.is_relative_to(cache)
    assert build.cached_library("cpu", "elsewhere") != first
    assert json.loads(first.with_suffix(".json").read_text()) == {
        "sources": build.source_hash("cpu"),
        "targets": ["here"],
    }


def test_processes_that_ask_together_build_once(cache, tmp_path, monkeypatch):
    log = fake_compiler(tmp_path, monkeypatch, 'sleep 0.3; echo library > "$out"')
    threads = [threading.Thread(target=build.cached_library, args=("cpu", "here")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log.read_text().splitlines()) == 1


def test_a_failed_build_names_the_first_error_and_leaves_nothing(tmp_path, monkeypatch):
    fake_compiler(
        tmp_path, monkeypatch, 'echo half > "$out"; echo "note: x" >&2; echo "a.cpp:1: error: boom" >&2; exit 1'
    )
    with pytest.raises(
        build.BuildError,
        match=r"building the cpu kernels failed: a.cpp:1: error: boom \(.*\); name another C\+\+ compiler in CXX$",
    ):
        build.build_library("cpu", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, 'echo library > "$out"')
    (tmp_path / "file").touch()
    monkeypatch.setenv("NERF_BRIDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match="set NERF_BRIDGE_CACHE to a writable folder"):
        build.cached_library("cpu", "here")


def test_the_cache_is_found_through_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("NERF_BRIDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_dir() == tmp_path / "nerf_bridge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_dir() == Path.home() / ".cache" / "nerf_bridge"


def test_a_library_is_current_only_for_its_sources_and_target(tmp_path, monkeypatch):
    sources = tmp_path / "cuda_ext"
    shutil.copytree(build.source_dir(), sources)
    monkeypatch.setattr(build, "source_dir", lambda: sources)
    fake_compiler(tmp_path, monkeypatch, 'echo library > "$out"')
    library = build.build_library("cpu", tmp_path / "out", ("here",))
    assert build.is_current(library, "cpu", "here") and not build.is_current(library, "cpu", "there")
    header = sources / "include" / "march.h"
    header.write_text(header.read_text() + "\n")
    assert not build.is_current(library, "cpu", "here")
    for damaged in ("{ torn", '{"sources": "", "targets": 3}', '{"sources": "", "targets": ["sm_x"]}'):
        library.with_suffix(".json").write_text(damaged)
        assert build.why_not(library, "cpu", "sm_80") == "what they were built from is not recorded"
    assert not build.is_current(tmp_path / "none.so", "cpu", "here")


@pytest.mark.parametrize("words", ["80;90", "8.0;9.0", "90, 80,", "sm_80 9.0 80"])
def test_a_list_of_architectures_is_built_with_ptx_of_the_newest(words, tmp_path, monkeypatch):
    log = fake_nvcc(tmp_path, monkeypatch)
    targets = build.named_targets(words, "--arch")
    assert targets == ("sm_80", "sm_90", "compute_90")
    library = build.build_library("cuda", tmp_path / "out", targets)
    assert json.loads(library.with_suffix(".json").read_text())["targets"] == [*targets]
    for code in targets:
        assert f"-gencode=arch=compute_{code[-2:]},code={code}" in log.read_text()
    assert log.read_text().count("-gencode") == 3


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("sm_9x", "NAME: expected compute capabilities such as '80;90' or '8.0;9.0', got 'sm_9x'"),
        ("80;8", "NAME: expected compute capabilities .*, got '8'"),
        ("9.00", "NAME: expected compute capabilities .*, got '9.00'"),
        (";", "NAME: expected compute capabilities .*, got ''"),
        ("80;86", "NAME: .*nvcc does not compile for sm_86, only for 75, 80, 90, 100; set CUDA_HOME to a CUDA toolkit"),
    ],
)
def test_a_wrong_architecture_is_one_line_before_anything_is_built(words, cause, tmp_path, monkeypatch):
    log = fake_nvcc(tmp_path, monkeypatch)
    with pytest.raises(build.BuildError, match=f"^{cause}") as caught:
        build.named_targets(words, "NAME")
    assert "\n" not in str(caught.value) and "g++" not in str(caught.value) and log.read_text() == ""


def test_architectures_without_nvcc_say_so(tmp_path, monkeypatch):
    no_compilers(tmp_path, monkeypatch)
    monkeypatch.setattr(build, "_nvcc_candidates", lambda: ["nvcc"])
    with pytest.raises(build.BuildError, match="NAME: no compiler for the cuda kernels .*install the CUDA toolkit"):
        build.named_targets("80", "NAME")


def test_a_gpu_that_nvcc_does_not_know_is_not_blamed_on_the_host_compiler(cache, tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch)
    with pytest.raises(build.BuildError, match="does not compile for sm_120, only for 75, 80, 90, 100; set CUDA_HOME"):
        build.cached_library("cuda", "sm_120")


@pytest.mark.parametrize(
    ("gpus", "targets"),
    [
        (["9.0", "8.0", "9.0"], ("sm_80", "sm_90", "compute_90")),
        (["10.0"], ("sm_100", "compute_100")),
        (["3.5"], ("sm_80", "sm_90", "compute_90")),  # nvcc is too new for it
        ([], ("sm_80", "sm_90", "compute_90")),
    ],
)
def test_ahead_of_time_the_gpus_here_are_built_for_or_else_many(gpus, targets, tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch)
    fake_gpus(tmp_path, monkeypatch, *gpus)
    assert build.default_targets("cuda") == targets


@pytest.mark.parametrize(
    ("targets", "gpu", "runs"),
    [
        (["sm_80"], "sm_80", True),
        (["sm_80"], "sm_86", True),  # machine code of the generation, no newer
        (["sm_86"], "sm_80", False),
        (["sm_80"], "sm_90", False),
        (["sm_80"], "sm_87", False),  # Tegra
        (["sm_80", "compute_80"], "sm_120", True),
        (["sm_90", "compute_90"], "sm_89", False),
        (["x86_64-a"], "x86_64-a", True),
        (["x86_64-a"], "x86_64-b", False),
    ],
)
def test_what_runs_where(targets, gpu, runs):
    assert build.has_code(targets, gpu) is runs


def test_gpus_without_tensor_cores_are_named(tmp_path, monkeypatch, caplog):
    fake_nvcc(tmp_path, monkeypatch)
    build.named_targets("75;80", "--arch")
    assert caplog.messages == [f"sm_75: {build.NO_TENSOR_CORES}"]


def test_missing_sources_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "__file__", str(tmp_path / "a" / "b" / "build.py"))
    with pytest.raises(build.BuildError, match="the kernels' sources are missing"):
        build.source_dir()


def test_the_script_runs_without_torch(tmp_path, monkeypatch):
    fake_compiler(tmp_path, monkeypatch, 'echo library > "$out"')
    run = f"runpy.run_path({str(BUILD_SCRIPT)!r}, run_name='__main__')"
    command = [
        sys.executable,
        "-c",
        f"import sys, runpy; sys.modules['torch'] = None; {run}",
        "--cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert build.is_current(build.library_path("cpu", tmp_path / "out"), "cpu", build.host_target())


def test_the_command_line_refuses_nothing_and_reports_failure(tmp_path, monkeypatch, caplog):
    with pytest.raises(SystemExit) as caught:
        build.main(["--out", str(tmp_path)])
    assert caught.value.code == 2
    fake_compiler(tmp_path, monkeypatch, "exit 3")
    assert build.main(["--cpu", "--out", str(tmp_path / "out")]) == 2
    assert "building the cpu kernels failed: status 3" in caplog.text
    with pytest.raises(SystemExit):
        build.main(["--cpu", "--arch", "80", "--out", str(tmp_path)])


def test_the_command_line_takes_architectures_and_refuses_wrong_ones_first(tmp_path, monkeypatch, caplog):
    log = fake_compiler(tmp_path, monkeypatch, 'echo library > "$out"')
    fake_nvcc(tmp_path, monkeypatch)
    out = tmp_path / "out"
    assert build.main(["--cpu", "--cuda", "--arch", "80", "9x", "--out", str(out)]) == 2
    assert caplog.messages[-1].startswith("--arch: expected compute capabilities") and not out.exists()
    assert log.read_text() == ""
    assert build.main(["--cpu", "--cuda", "--arch", "80", "9.0", "--out", str(out)]) == 0
    assert build.is_current(build.library_path("cuda", out), "cuda", "sm_90") and log.read_text()


@pytest.mark.compiler
def test_the_real_compiler_builds_all_cpu_kernels(tmp_path):
    library = build.build_library("cpu", tmp_path)
    assert library.stat().st_size > 10_000 and build.is_current(library, "cpu", build.host_target())


@pytest.mark.slow
@pytest.mark.nvcc
def test_plain_nvcc_builds_the_cuda_kernels_without_a_gpu(tmp_path):
    library = build.build_library("cuda", tmp_path, build.named_targets("7.5;8.0;9.0", "--arch"))
    assert all(build.is_current(library, "cuda", gpu) for gpu in ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"))
    assert not build.is_current(library, "cuda", "sm_70")


@pytest.mark.slow
@pytest.mark.compiler
def test_kernels_work_without_the_compilers_optimisation(tmp_path):
    """Vectors that optimised code keeps in registers then lie in memory, and must be aligned there."""
    compiler = tmp_path / "plain"
    compiler.write_text(f'#!/bin/sh\nexec {build.find_compiler("cpu")} "$@" -O0\n')
    compiler.chmod(0o755)
    program = (
        "import torch\n"
        "from nerf_bridge.ops.decoder import decode\n"
        "shapes = ((101, 24), (32, 24), (32,), (4, 32), (4,))\n"
        "values = [torch.ones(shape, requires_grad=True) for shape in shapes]\n"
        "out = decode(*values, 'cpu')\n"
        "torch.autograd.grad(out.sum(), values)\n"
        "print(float(out[0, 0]))\n"
    )
    here = str(BUILD_SCRIPT.parents[2])
    places = {"CXX": str(compiler), "NERF_BRIDGE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": here}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **places}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.strip() == "801.0", done.stderr
