"""Where the files that are not Python lie: kernel sources, presets and data.

A wheel carries them inside the package (``nerf_bridge/cuda_ext``, ``nerf_bridge/configs``, ``nerf_bridge/data``); a
checkout, also when it is installed with ``pip install -e``, has them beside the package.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_path(name: str = "") -> Path:
    """Path of `name` under ``data/``, whether it exists or not. Raises FileNotFoundError without the folder."""
    return _folder("data") / name


def config_path(name: str = "") -> Path:
    """Path of `name` under ``configs/``, whether it exists or not. Raises FileNotFoundError without the folder."""
    return _folder("configs") / name


def cuda_ext_path() -> Path:
    """The folder of the kernels' sources. Raises FileNotFoundError when the installation lacks it."""
    return _folder("cuda_ext")


def _folder(name: str) -> Path:
    checkout = PACKAGE.parent
    if (checkout / "setup.py").is_file() and (checkout / name).is_dir():
        return checkout / name
    if (PACKAGE / name).is_dir():
        return PACKAGE / name
    raise FileNotFoundError(f"this installation of nerf_bridge lacks its folder {name!r}; install the package again")
