"""The lock file: repository, revision and the SHA-256 of every file of a model, recorded when it was first pulled.

Nothing in it is ever written from anywhere but files that were there. A file that does not match is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from nerf_bridge.errors import UserError
from nerf_bridge.run.files import write_json

LOCK_NAME = "priors.lock.json"
VERSION = 1


@dataclass(frozen=True)
class LockedModel:
    """What was recorded of a model.

    Attributes:
        repository, revision: where its files came from.
        sha256: file name to hexadecimal digest.
    """

    repository: str
    revision: str
    sha256: dict[str, str]


def lock_path() -> Path:
    """The user's lock file: $NERF_BRIDGE_LOCK, or priors.lock.json in the user's settings folder."""
    if os.environ.get("NERF_BRIDGE_LOCK"):
        return Path(os.environ["NERF_BRIDGE_LOCK"])
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nerf_bridge" / LOCK_NAME


def read_lock(path: Path) -> dict[str, LockedModel]:
    """What the lock file records, by alias; nothing when there is no such file.

    Raises:
        UserError: it cannot be read or is no lock file.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["version"] != VERSION:
            raise ValueError(f"version {contents['version']}, expected {VERSION}")
        return {alias: LockedModel(**held) for alias, held in contents["models"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read the lock file {path}: {reason}; restore or delete it") from None


def record(path: Path, alias: str, model: LockedModel) -> None:
    """Add a model that was just pulled. Raises UserError when the lock file cannot be written."""
    models = read_lock(path) | {alias: model}
    contents = {"version": VERSION, "models": {name: asdict(held) for name, held in sorted(models.items())}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, contents)
    except OSError as error:
        raise UserError(
            f"cannot write the lock file {path}: {error.strerror or error}; set NERF_BRIDGE_LOCK to another place"
        ) from None


def verify(name: str, folder: Path, locked: LockedModel, lock: Path, remedy: str) -> None:
    """Hash every recorded file below `folder` and compare, with a progress bar; `remedy` is what the user can do.

    Raises:
        UserError: files are missing or differ, one line for each.
    """
    absent = [file for file in locked.sha256 if not (folder / file).is_file()]
    found = hash_files(folder, [file for file in locked.sha256 if file not in absent])
    lines = [f"prior {name}: {folder / file} is missing; {remedy}" for file in absent]
    for file, digest in found.items():
        if digest != locked.sha256[file]:
            lines.append(
                f"prior {name}: {folder / file} has sha256 {digest[:12]}..., but {lock} recorded "
                f"{locked.sha256[file][:12]}... at the first pull; delete {(folder / file).resolve()} and {remedy}"
            )
    if lines:
        raise UserError("\n".join(lines))


def hash_files(folder: Path, names: Collection[str]) -> dict[str, str]:
    """SHA-256 of each of the files below `folder`, several at a time, with a progress bar.

    Raises:
        UserError: a file cannot be read.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    with (
        tqdm(total=sum(sizes.values()), desc="checking files", unit="B", unit_scale=True, delay=1) as bar,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        digests = {}
        for name, digest in zip(names, pool.map(lambda name: _hash(folder / name), names), strict=True):
            digests[name] = digest
            bar.update(sizes[name])
        return digests


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
