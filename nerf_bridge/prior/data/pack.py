"""The packed library: every model in one compressed file, a few bytes a face.

Run it as ``python -m nerf_bridge.prior.data.pack --package FILE.deb|DIR --out library.npz``.

Vertices are 16-bit fractions of the box [-0.9, 0.9]^3, ordered by first use; indices and vertices are stored as
differences, high and low bytes apart, and colours channel by channel, which is what makes deflate work on them.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.curation import curate
from nerf_bridge.prior.data.holdout import mark_holdout
from nerf_bridge.prior.data.library import iter_library
from nerf_bridge.prior.data.model import HALF_DIAGONAL, LibraryModel
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.run.files import write_bytes

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_STEPS = 65535
_TEXT_FIELDS = ("name", "noun", "article", "category", "creator", "licence", "base_colour_word", "holdout")


def pack_library(models: Sequence[LibraryModel], path: Path) -> None:
    """Write models to one file; vertices move by at most 1.4e-5 units, all else is kept.

    Args:
        models: the library; path: the .npz file to write, whole or not at all.
    """
    ordered = [_order_vertices(model) for model in models]
    about = json.dumps([_about(model) for model in models]).encode()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        format=np.array([FORMAT_VERSION]),
        about=np.frombuffer(about, dtype=np.uint8),
        vertex_counts=np.array([len(vertices) for vertices, _ in ordered], dtype=np.int32),
        face_counts=np.array([len(faces) for _, faces in ordered], dtype=np.int32),
        vertices=_split_bytes(_differences(np.concatenate([vertices for vertices, _ in ordered]))),
        faces=_split_bytes(_differences(np.concatenate([faces for _, faces in ordered]))),
        colors=_differences(np.concatenate([model.face_colors for model in models])).T.copy(),
        tintable=np.concatenate([model.face_tintable for model in models]),
    )
    write_bytes(Path(path), buffer.getvalue())


def load_library(path: Path) -> list[LibraryModel]:
    """Read a packed library.

    Args:
        path: a file of pack_library.

    Returns:
        Its models, in order.

    Raises:
        UserError: if there is no such file or it is not a packed library.
    """
    if not Path(path).is_file():
        raise UserError(f"no packed library at {path}: build it with python -m nerf_bridge.prior.data.pack")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):  # whatever numpy makes of another file
        arrays = {}
    if "format" not in arrays or int(arrays["format"][0]) != FORMAT_VERSION:
        raise UserError(f"{path} is not a packed library of format {FORMAT_VERSION}: build it again")
    about = json.loads(arrays["about"].tobytes().decode())
    vertices = _sums(_join_bytes(arrays["vertices"]))
    faces = _sums(_join_bytes(arrays["faces"])).astype(np.int32)
    colors = _sums(np.ascontiguousarray(arrays["colors"].T))
    tintable = arrays["tintable"]
    positions = vertices.astype(np.float32) / _STEPS * (2 * HALF_DIAGONAL) - HALF_DIAGONAL
    vertex_ends = np.cumsum(arrays["vertex_counts"])
    face_ends = np.cumsum(arrays["face_counts"])
    models = []
    for i, words in enumerate(about):
        v = slice(vertex_ends[i] - arrays["vertex_counts"][i], vertex_ends[i])
        f = slice(face_ends[i] - arrays["face_counts"][i], face_ends[i])
        models.append(_restore(words, positions[v], faces[f], colors[f], tintable[f]))
    return models


def _about(model: LibraryModel) -> dict[str, str | bool | None]:
    return {name: getattr(model, name) for name in _TEXT_FIELDS}


def _restore(
    words: dict[str, str | bool | None],
    vertices: np.ndarray,
    faces: np.ndarray,
    colors: np.ndarray,
    tintable: np.ndarray,
) -> LibraryModel:
    own_colour = words["base_colour_word"]
    return LibraryModel(
        name=str(words["name"]),
        noun=str(words["noun"]),
        article=str(words["article"]),
        category=str(words["category"]),
        creator=str(words["creator"]),
        licence=str(words["licence"]),
        vertices=vertices,
        faces=faces,
        face_colors=colors,
        face_tintable=tintable,
        base_colour_word=None if own_colour is None else str(own_colour),
        holdout=bool(words["holdout"]),
    )


def _order_vertices(model: LibraryModel) -> tuple[np.ndarray, np.ndarray]:
    """Quantise, and renumber vertices in the order in which faces first use them: neighbours get close numbers."""
    flat = model.faces.reshape(-1)
    used, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(used), dtype=np.int64)
    rank[order] = np.arange(len(used))
    faces = rank[inverse].reshape(-1, 3)
    if len(used) > _STEPS:
        raise ValueError(f"model {model.name} needs at most {_STEPS} vertices, got {len(used)}")
    fractions = (model.vertices[used[order]].astype(np.float64) + HALF_DIAGONAL) / (2 * HALF_DIAGONAL)
    return np.clip(np.round(fractions * _STEPS), 0, _STEPS).astype(np.uint16), faces.astype(np.uint16)


def _differences(values: np.ndarray) -> np.ndarray:
    """Differences down the rows of unsigned integers [n, k], modulo their range."""
    return np.diff(values, axis=0, prepend=np.zeros((1, values.shape[1]), dtype=values.dtype))


def _sums(differences: np.ndarray) -> np.ndarray:
    return np.cumsum(differences, axis=0, dtype=differences.dtype)


def _split_bytes(values: np.ndarray) -> np.ndarray:
    """uint16 [n, k] -> uint8 [2, k, n]: high bytes, then low bytes; differences folded so that small ones are small."""
    signed = values.astype(np.int16).astype(np.int32)
    folded = np.where(signed >= 0, 2 * signed, -2 * signed - 1).astype(np.uint16)
    return np.stack([(folded >> 8).T, (folded & 255).T]).astype(np.uint8)


def _join_bytes(planes: np.ndarray) -> np.ndarray:
    folded = (planes[0].astype(np.int32) << 8 | planes[1]).T
    signed = np.where(folded % 2 == 0, folded // 2, -(folded + 1) // 2)
    return np.ascontiguousarray(signed.astype(np.int16).view(np.uint16))


def build_library(folder: Path, seed: int, workers: int) -> list[LibraryModel]:
    """Read, curate and mark all models below a folder, and add the primitives; shows a progress bar."""
    models: list[LibraryModel] = []
    with tqdm(desc="models", unit="model") as bar:
        for model, total in iter_library(folder, workers):
            bar.total = total
            bar.update()
            if model is not None:
                models.append(model)
    return mark_holdout([*curate(models), *build_primitives(seed)])


def unpack_package(package: Path, folder: Path) -> None:
    """Unpack a Debian package into a folder with dpkg-deb; UserError where that tool is missing or fails."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise UserError(f"cannot unpack {package}: dpkg-deb is not installed; unpack it elsewhere and give the folder")
    done = subprocess.run([tool, "-x", str(package), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"cannot unpack {package}: {done.stderr.strip()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the library from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nerf_bridge.prior.data.pack", description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, required=True, help="Debian package of the models, or its folder")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the primitives (default 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.workers < 1:
        parser.error(f"--workers: expected at least 1, got {options.workers}")
    if not options.package.exists():
        parser.error(f"--package: no such file or folder: {options.package}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.package
        if options.package.is_file():
            folder = Path(scratch)
            unpack_package(options.package, folder)
        models = build_library(folder, options.seed, options.workers)
    pack_library(models, options.out)
    size = options.out.stat().st_size / 1e6
    logger.info("%d models, %d nouns, %.1f MB: %s", len(models), len({m.noun for m in models}), size, options.out)


if __name__ == "__main__":
    main()
