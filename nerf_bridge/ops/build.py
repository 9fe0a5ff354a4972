"""Turns the C++ and CUDA sources of ``cuda_ext/`` into shared libraries, with the standard library alone.

One compiler call makes one library: ``g++`` for all ``*_cpu.cpp``, ``nvcc`` for all ``*_cuda.cu``. The kernels have a
plain C interface, so neither torch nor its headers take part and an isolated build (``setup.py``) can call this too:
``python nerf_bridge/ops/build.py --cpu --cuda --out DIR``.

Multiplications and additions are never contracted by the compiler (``-ffp-contract=off``, ``--fmad=false``), so that a
sample lies at the same place to the last bit on every backend; where a fused operation pays, the sources ask for it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

KINDS = ("cpu", "cuda")
DEFAULT_CUDA_TARGET = "sm_90"
BUILD_SECONDS = 900
_SUFFIX = {"cpu": "_cpu.cpp", "cuda": "_cuda.cu"}
_REMEDY = {
    "cpu": "install a C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name one in CXX",
    "cuda": "install the CUDA toolkit and put nvcc on the PATH, or set CUDA_HOME to where the toolkit is",
}
_REPAIR = {
    "cpu": "name another C++ compiler in CXX",
    "cuda": "nvcc needs a C++ compiler (g++) on the PATH; or set CUDA_HOME to another CUDA toolkit",
}


class BuildError(Exception):
    """A library could not be built or found. The message holds the cause and the remedy, in one line."""


def source_dir() -> Path:
    """The folder of the kernels' sources: package data when installed, else the checkout's ``cuda_ext/``."""
    here = Path(__file__).resolve()
    candidates = (here.parents[1] / "cuda_ext", here.parents[2] / "cuda_ext")
    for candidate in candidates:
        if (candidate / "include").is_dir():
            return candidate
    looked_in = " and ".join(map(str, candidates))
    raise BuildError(f"the kernels' sources are missing: looked in {looked_in}; reinstall the package")


def source_files(kind: str) -> list[Path]:
    """The files that one compiler call turns into the library of `kind`, sorted by name."""
    return sorted(source_dir().glob(f"*{_SUFFIX[kind]}"))


def source_hash(kind: str) -> str:
    """SHA-256 of everything that decides what the library of `kind` does: sources, headers and compiler flags."""
    digest = hashlib.sha256(" ".join(_flags(kind, ("any",))).encode())
    for path in [*source_files(kind), *sorted((source_dir() / "include").glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def host_target() -> str:
    """A short name of this processor's instruction set; a library built for one must not be loaded on another."""
    machine = platform.machine().lower()
    features = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        features = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return f"{machine}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def default_targets(kind: str) -> tuple[str, ...]:
    """What a library is built for when nothing else is asked: this processor, or Hopper GPUs."""
    return (host_target(),) if kind == "cpu" else (DEFAULT_CUDA_TARGET,)


def find_compiler(kind: str) -> str:
    """Path of the compiler for `kind`.

    Raises:
        BuildError: there is none; says what was looked for and how to get one.
    """
    if sys.platform == "win32":
        raise BuildError("kernels are built on Linux and macOS only; use the backend torch here, or WSL")
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"] if kind == "cpu" else _nvcc_candidates()
    for name in filter(None, names):
        found = shutil.which(name)
        if found:
            return found
    looked_for = ", ".join(filter(None, names))
    raise BuildError(f"no compiler for the {kind} kernels (looked for {looked_for}): {_REMEDY[kind]}")


def compiler_version(compiler: str) -> str:
    """What ``compiler --version`` prints."""
    return _run([compiler, "--version"], "cannot run the compiler")


def build_library(kind: str, out_dir: Path, targets: tuple[str, ...] | None = None) -> Path:
    """Build the library of `kind` into `out_dir` and write what it was built from beside it.

    Args:
        kind: "cpu" or "cuda".
        out_dir: made if missing; receives ``libnerf_bridge_<kind>.so`` and ``libnerf_bridge_<kind>.json``.
        targets: CUDA architectures such as ("sm_80", "sm_90"); None: `default_targets`.
    Returns:
        Path of the library.
    Raises:
        BuildError: no compiler, or it failed; the message holds the compiler's first error.
    """
    targets = targets or default_targets(kind)
    compiler = find_compiler(kind)
    out_dir.mkdir(parents=True, exist_ok=True)
    library = library_path(kind, out_dir)
    record = {"sources": source_hash(kind), "targets": list(targets)}
    handle, name = tempfile.mkstemp(dir=out_dir, prefix=".build-", suffix=".so")
    os.close(handle)
    try:
        files = [str(path) for path in source_files(kind)]
        include = f"-I{source_dir() / 'include'}"
        _run([compiler, *_flags(kind, targets), include, *files, "-o", name], f"building the {kind} kernels failed")
        os.chmod(name, 0o755)
        os.replace(name, library)
    finally:
        Path(name).unlink(missing_ok=True)
    library.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return library


def library_path(kind: str, folder: Path) -> Path:
    """Where the library of `kind` lies inside `folder`."""
    return folder / f"libnerf_bridge_{kind}.so"


def is_current(library: Path, kind: str, target: str) -> bool:
    """Whether `library` exists and its record says: built from these very sources, for `target`."""
    try:
        record = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
        return library.is_file() and record["sources"] == source_hash(kind) and target in record["targets"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def cache_dir() -> Path:
    """Where libraries built at first use are kept: $NERF_BRIDGE_CACHE, or ``nerf_bridge`` in the user's cache."""
    chosen = os.environ.get("NERF_BRIDGE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nerf_bridge"


def cached_library(kind: str, target: str) -> Path:
    """The library of `kind` for `target` out of the cache, built first when it is not there.

    Processes that ask at the same time wait for one build (a lock on a file in the cache).

    Raises:
        BuildError: it cannot be built, or the cache cannot be written.
    """
    compiler = find_compiler(kind)
    key = f"{source_hash(kind)} {target} {compiler} {compiler_version(compiler)}"
    folder = cache_dir() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    library = library_path(kind, folder)
    if is_current(library, kind, target):
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not is_current(library, kind, target):
                logger.info("building the %s kernels into %s (once)", kind, folder)
                build_library(kind, folder, (target,))
    except OSError as error:
        remedy = "set NERF_BRIDGE_CACHE to a writable folder"
        raise BuildError(f"cannot write the kernel cache {folder}: {error}; {remedy}") from None
    return library


def _flags(kind: str, targets: tuple[str, ...]) -> list[str]:
    host = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall"]
    if kind == "cpu":
        native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
        return [*host, native, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-pthread"]
    numbers = [target.removeprefix("sm_") for target in targets]
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    return ["-O3", "-std=c++17", "--fmad=false", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", *codes]


def _nvcc_candidates() -> list[str]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    return [*(str(Path(home) / "bin" / "nvcc") for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]


def _run(command: list[str], failure: str) -> str:
    repair = _REPAIR["cuda" if Path(command[0]).name == "nvcc" else "cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{failure}: {error}; {repair}") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        cause = next((line for line in lines if "error" in line), lines[0] if lines else f"status {done.returncode}")
        logger.debug("%s\n%s", " ".join(command), done.stderr)
        raise BuildError(f"{failure}: {cause.strip()} ({command[0]}); {repair}")
    return done.stdout


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    """Build the libraries that the command line names; exit status 2 with one line when that cannot be done."""
    parser = argparse.ArgumentParser(description="Build the kernels ahead of time.")
    parser.add_argument("--cpu", action="store_true", help="the C++ library for this processor")
    parser.add_argument("--cuda", action="store_true", help="the CUDA library")
    parser.add_argument("--arch", nargs="+", default=None, metavar="sm_NN", help="CUDA architectures; default sm_90")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the libraries")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (options.cpu or options.cuda):
        parser.error("nothing to build: give --cpu, --cuda or both")
    try:
        for kind in KINDS:
            if getattr(options, kind):
                targets = tuple(options.arch) if kind == "cuda" and options.arch else None
                logger.info("built %s", build_library(kind, options.out, targets))
    except (BuildError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
