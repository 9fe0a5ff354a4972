"""Reading furniture catalogues (.sh3f zips of OBJ models) into coloured models in world space."""

from __future__ import annotations

import logging
import multiprocessing
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data.curation import GLASS_HIDES, is_dropped
from nerf_bridge.prior.data.model import LibraryModel, normalise_vertices
from nerf_bridge.prior.data.obj import read_obj
from nerf_bridge.prior.data.surface import PaintedMesh, paint
from nerf_bridge.prior.data.tinting import own_colour_word, tintable_faces
from nerf_bridge.prior.data.visibility import visible_pixels

logger = logging.getLogger(__name__)

PROPERTIES = "PluginFurnitureCatalog.properties"
_ENTRY = re.compile(r"(\w+)#(\d+)\s*=\s*(.*)")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_LICENCES = (("public domain", "CC0"), ("united states", "CC-BY 3.0 US"), ("attribution 3.0", "CC-BY 3.0"))
# File axes (y up, front +z) to world axes (z up, front −y); determinant +1.
FILE_TO_WORLD = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class CatalogueEntry:
    """One piece of furniture as its catalogue describes it; sizes in cm, rotation [3, 3] in file axes."""

    key: str
    name: str
    tags: tuple[str, ...]
    category: str
    model_path: str
    rotation: np.ndarray
    width: float
    depth: float
    height: float
    creator: str
    licence: str


def read_catalogue(archive: zipfile.ZipFile) -> list[CatalogueEntry]:
    """Read the entries of one catalogue.

    Args:
        archive: an open .sh3f file.

    Returns:
        Its entries in the order of their numbers.

    Raises:
        UserError: if the archive holds no catalogue.
    """
    if PROPERTIES not in archive.namelist():
        raise UserError(f"{archive.filename} is not a furniture catalogue: it holds no {PROPERTIES}")
    text = archive.read(PROPERTIES).decode("latin-1")
    numbered: dict[int, dict[str, str]] = {}
    licence = "unknown"
    for line in text.splitlines():
        match = _ENTRY.match(line)
        if match:
            numbered.setdefault(int(match[2]), {})[match[1]] = _unescape(match[3].strip())
        elif line.startswith("license="):
            licence = _short_licence(line.partition("=")[2])
    return [_entry(fields, licence) for _, fields in sorted(numbered.items())]


def _entry(fields: dict[str, str], licence: str) -> CatalogueEntry:
    rotation = [float(value) for value in fields.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()]
    return CatalogueEntry(
        key=fields["id"],
        name=fields["name"],
        tags=tuple(tag.strip() for tag in fields.get("tags", "").split(",") if tag.strip()),
        category=fields["category"],
        model_path=fields["model"].lstrip("/"),
        rotation=np.array(rotation).reshape(3, 3),
        width=float(fields["width"]),
        depth=float(fields["depth"]),
        height=float(fields["height"]),
        creator=fields.get("creator", "unknown"),
        licence=licence,
    )


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


def _short_licence(text: str) -> str:
    lower = text.lower()
    return next((short for words, short in _LICENCES if words in lower), text.strip())


def place_vertices(vertices: np.ndarray, used: np.ndarray, entry: CatalogueEntry) -> np.ndarray:
    """Bring a model's vertices into world space at its true proportions.

    The rotated bounding box is stretched to width x height x depth, then normalised.

    Args:
        vertices: [v, 3] in file axes; used: [u] indices of the vertices that faces use; entry: the catalogue's words.

    Returns:
        [v, 3] float64, box of the used vertices centred, half diagonal 0.9.
    """
    rotated = vertices @ entry.rotation.T
    low, high = rotated[used].min(axis=0), rotated[used].max(axis=0)
    size = np.array([entry.width, entry.height, entry.depth])
    stretched = (rotated - 0.5 * (low + high)) * (size / np.maximum(high - low, 1e-9))
    return stretched @ FILE_TO_WORLD.T * (1.8 / np.linalg.norm(size))


def load_entry(archive: zipfile.ZipFile, entry: CatalogueEntry) -> LibraryModel:
    """Load one model; its noun is still the catalogue's name.

    Args:
        archive: the open .sh3f; entry: one of its entries, whose key also seeds the texture sampling.

    Returns:
        The model.

    Raises:
        ValueError: if the file holds nothing visible.
        KeyError: if the catalogue names a file that the archive does not hold.
    """
    folder = entry.model_path.rsplit("/", 1)[0] + "/"
    beside = {n[len(folder) :].lower(): n for n in archive.namelist() if n.startswith(folder)}

    def read_file(name: str) -> bytes | None:
        path = beside.get(name.lower())
        return None if path is None else archive.read(path)

    mesh = read_obj(archive.read(entry.model_path).decode("latin-1"), read_file)
    vertices = place_vertices(mesh.vertices, np.unique(mesh.faces), entry)
    return _to_model(
        entry, paint(mesh, vertices, zlib.crc32(entry.key.encode()), keep_glass=entry.key not in GLASS_HIDES)
    )


def _to_model(entry: CatalogueEntry, painted: PaintedMesh) -> LibraryModel:
    used, faces = np.unique(painted.faces, return_inverse=True)
    vertices, faces = normalise_vertices(painted.vertices[used]), faces.reshape(-1, 3)
    seen = visible_pixels(vertices, faces)
    tintable = tintable_faces(painted, seen)
    return LibraryModel(
        name=entry.key,
        noun=entry.name,
        article="",
        category=entry.category,
        creator=entry.creator,
        licence=entry.licence,
        vertices=vertices,
        faces=faces.astype(np.int32),
        face_colors=np.clip(np.round(painted.colors * 255.0), 0, 255).astype(np.uint8),
        face_tintable=tintable,
        base_colour_word=own_colour_word(painted, tintable, seen),
    )


def find_catalogues(folder: Path) -> list[Path]:
    """Return the .sh3f files below a folder in a fixed order; UserError where there are none."""
    paths = sorted(folder.rglob("*.sh3f"))
    if not paths:
        raise UserError(f"no .sh3f catalogue below {folder}: give the unpacked package or its .deb file")
    return paths


def iter_library(folder: Path, workers: int) -> Iterator[tuple[LibraryModel | None, int]]:
    """Load all models below a folder but those that curation drops, always in the same order.

    Args:
        folder: where the .sh3f files are; workers: processes; 1 loads in this one.

    Yields:
        (model or None when it could not be read, how many there are in all).
    """
    jobs = list_jobs(folder)
    if workers == 1:
        for path, entry in jobs:
            yield _try_load(path, entry), len(jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        paths, entries = [path for path, _ in jobs], [entry for _, entry in jobs]
        for model in pool.map(_try_load, paths, entries, chunksize=4):
            yield model, len(jobs)


def list_jobs(folder: Path) -> list[tuple[Path, CatalogueEntry]]:
    """List (catalogue file, entry) for every entry below a folder that curation keeps."""
    jobs = []
    for path in find_catalogues(folder):
        with zipfile.ZipFile(path) as archive:
            jobs += [(path, entry) for entry in read_catalogue(archive) if not is_dropped(entry.key, entry.name)]
    return jobs


def _try_load(path: Path, entry: CatalogueEntry) -> LibraryModel | None:
    with zipfile.ZipFile(path) as archive:
        try:
            return load_entry(archive, entry)
        except (ValueError, KeyError, IndexError) as error:
            logger.warning("model %s left out: %s", entry.key, error)
            return None
