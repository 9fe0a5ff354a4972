"""Turns the C++ and CUDA sources of ``cuda_ext/`` into shared libraries, with the standard library alone.

One compiler call makes one library: ``g++`` for all ``*_cpu.cpp``, ``nvcc`` for all ``*_cuda.cu``. The kernels have a
plain C interface, so neither torch nor its headers take part and an isolated build (``setup.py``) can call this too:
``python nerf_bridge/ops/build.py --cpu --cuda --arch 80 90 --out DIR``.

What a library is built for are its targets: this processor, or for CUDA machine code ("sm_80") and PTX ("compute_90",
which the driver of any newer GPU compiles when it loads it). Ahead of time that is a list, at first use one GPU.

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
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

KINDS = ("cpu", "cuda")
ARCHITECTURES = (80, 86, 89, 90)  # ahead of time where no GPU is seen, ten times the compute capability
TENSOR_CORES = 80  # from here on a GPU has the tensor-core products of half precision that our kernels use
NO_TENSOR_CORES = "no half precision below compute capability 8.0: the field is computed in float32, slower"
BUILD_SECONDS = 1800
ASK_SECONDS = 60
_TEGRA = (87, 101, 110)  # these run no machine code of other GPUs, though of their generation
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
    digest = hashlib.sha256(" ".join(_flags(kind, ())).encode())
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
    """What an ahead-of-time build is for when nothing is asked: this processor, or this machine's GPUs, or many GPUs.

    Raises:
        BuildError: for "cuda", when there is no nvcc.
    """
    if kind == "cpu":
        return (host_target(),)
    known = known_architectures(find_compiler("cuda"))
    present = [number for number in present_gpus() if number in known]
    return _with_ptx(present or [number for number in ARCHITECTURES if number in known] or known[-1:])


def named_targets(words: str, name: str) -> tuple[str, ...]:
    """The targets that a list of compute capabilities stands for, with PTX of the newest for GPUs to come.

    Args:
        words: such as "80;90", "8.0, 9.0" or "sm_80 sm_90".
        name: of the option or variable that they are the value of.
    Raises:
        BuildError: a word is none, or there is no nvcc, or it does not compile for one of them.
    """
    numbers = set()
    for word in re.split(r"[;,\s]+", words.strip("; ,\t")):
        found = re.fullmatch(r"(?:sm_)?(\d{1,2})\.?(\d)", word)
        if not found:
            raise BuildError(f"{name}: expected compute capabilities such as '80;90' or '8.0;9.0', got {word!r}")
        numbers.add(int(found[1] + found[2]))
    targets = _with_ptx(sorted(numbers))
    try:
        _check_known(targets, find_compiler("cuda"))
    except BuildError as error:
        raise BuildError(f"{name}: {error}") from None
    for code in filter(lacks_tensor_cores, targets):
        logger.warning("%s: %s", code, NO_TENSOR_CORES)
    return targets


def known_architectures(nvcc: str) -> list[int]:
    """What `nvcc` compiles for, as ten times the compute capability, in rising order."""
    listed = _run([nvcc, "--list-gpu-code"], "cannot ask nvcc for its architectures")
    return sorted(int(number) for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE))


def present_gpus() -> list[int]:
    """Ten times the compute capability of this machine's GPUs, as nvidia-smi tells; none where it is not there."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted({int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", done.stdout, re.MULTILINE)})


def has_code(targets: Sequence[str], target: str) -> bool:
    """Whether a library built for `targets` runs on `target`.

    On a GPU that is PTX of its compute capability or an older one, or machine code of its generation that is no newer
    (CUDA programming guide, "binary compatibility").
    """
    if target in targets or not target.startswith("sm_"):
        return target in targets
    gpu = int(target.removeprefix("sm_"))
    for code in targets:
        form, _, number = code.partition("_")
        if form == "compute" and int(number) <= gpu:
            return True
        same_family = int(number) // 10 == gpu // 10 and not {int(number), gpu} & set(_TEGRA)
        if form == "sm" and same_family and int(number) <= gpu:
            return True
    return False


def lacks_tensor_cores(target: str) -> bool:
    """Whether `target` is a GPU that is too old for the half-precision kernels."""
    return target.startswith("sm_") and int(target.removeprefix("sm_")) < TENSOR_CORES


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
        targets: for CUDA such as ("sm_80", "sm_90", "compute_90"); None: `default_targets`.
    Returns:
        Path of the library.
    Raises:
        BuildError: no compiler, none for one of the targets, or it failed; the message holds its first error.
    """
    compiler = find_compiler(kind)
    targets = targets or default_targets(kind)
    if kind == "cuda":
        _check_known(targets, compiler)
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
    """Whether `library` exists and its record says: built from these very sources, with code for `target`."""
    return why_not(library, kind, target) is None


def why_not(library: Path, kind: str, target: str) -> str | None:
    """Why `library` does not serve `target`, in a few words; None when it does."""
    try:
        record = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
        sources, listed, runs = record["sources"], ", ".join(record["targets"]), has_code(record["targets"], target)
    except (OSError, ValueError, KeyError, TypeError):
        return "what they were built from is not recorded"
    if not library.is_file():
        return "they are missing"
    if sources != source_hash(kind):
        return "they were built from other sources"
    return None if runs else f"they have code for {listed}, none for {target}"


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
    codes = [f"-gencode=arch=compute_{code.partition('_')[2]},code={code}" for code in targets]
    common = ["-O3", "-std=c++17", "--fmad=false", "--threads=0", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    return [*common, *codes]


def _with_ptx(numbers: Sequence[int]) -> tuple[str, ...]:
    """Machine code for compute capabilities in rising order, and PTX of the last for GPUs newer than that."""
    return (*(f"sm_{number}" for number in numbers), f"compute_{numbers[-1]}")


def _check_known(targets: Sequence[str], nvcc: str) -> None:
    """Raise BuildError when `nvcc` does not compile for one of `targets`."""
    known = known_architectures(nvcc)
    unknown = [code for code in targets if int(code.partition("_")[2]) not in known]
    if unknown:
        listed = ", ".join(map(str, known))
        raise BuildError(
            f"{nvcc} does not compile for {unknown[0]}, only for {listed}; set CUDA_HOME to a CUDA toolkit that does"
        )


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
    known = ", ".join(map(str, ARCHITECTURES))
    architectures = f"compute capabilities, such as 80 90 or 8.0 9.0; default: this machine's GPUs, else {known}"
    parser.add_argument("--arch", nargs="+", default=[], metavar="NN", help=architectures)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the libraries")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (options.cpu or options.cuda):
        parser.error("nothing to build: give --cpu, --cuda or both")
    if options.arch and not options.cuda:
        parser.error("--arch: only with --cuda")
    try:
        named = {"cuda": named_targets(" ".join(options.arch), "--arch")} if options.arch else {}
        for kind in KINDS:
            if getattr(options, kind):
                logger.info("built %s", build_library(kind, options.out, named.get(kind)))
    except (BuildError, OSError) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
