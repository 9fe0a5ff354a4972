"""From the name of a prior to its folder on the disk, pulled and checked."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from nerf_bridge.errors import UserError
from nerf_bridge.prior.catalogue.entries import EMBEDDED, ENTRIES, Entry, find_entry, unknown_prior
from nerf_bridge.prior.catalogue.hub import Pulled, find_cached, pull_model
from nerf_bridge.prior.catalogue.lock import LOCK_NAME, LockedModel, hash_files, lock_path, read_lock, record, verify
from nerf_bridge.prior.models.folder import INDEX, ModelFolder

logger = logging.getLogger(__name__)

UNKNOWN_LICENCE = "not known: see where the model comes from"
READ = (".json", ".txt", ".model", ".safetensors")
COPY_AGAIN = "copy the folder again, whole"
SAY_NON_COMMERCIAL = "--model.non_commercial true"


def is_path(name: str) -> bool:
    """Whether `name` means a folder and not an alias: it has a slash, starts with a dot or a tilde, or is there."""
    return any(sign in name for sign in "/\\") or name.startswith((".", "~")) or Path(name).is_dir()


def check_name(name: str) -> None:
    """Raise UserError unless `name` is `embedded`, an alias, or a folder with a model in it. Loads nothing."""
    entry = find_entry(name)
    if name == EMBEDDED or (entry is not None and entry.is_prior):
        return
    if not is_path(name):
        raise unknown_prior(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"prior {name}: there is no such folder; give an alias (nerf-bridge priors list) or a folder")
    if not (folder / INDEX).is_file():
        raise UserError(f"prior {name}: {folder / INDEX} is missing; expected a model in diffusers' format there")


def find_model(name: str, non_commercial: bool, offline: bool) -> ModelFolder:
    """The folder of an alias or path, every file of it checked against what was recorded.

    Args:
        name: an alias of the catalogue, or a folder.
        non_commercial: whether the user takes a licence that forbids commercial use.
        offline: whether the hub may not be asked.

    Raises:
        UserError: it is not there, cannot be fetched, differs from what was recorded, or its licence was not accepted.
    """
    check_name(name)
    entry = find_entry(name)
    return _local(name, non_commercial) if entry is None else _of_alias(entry, non_commercial, offline)


def find_language_model(name: str, offline: bool) -> ModelFolder:
    """The folder of a language model, an alias or a path, checked as a prior's is. Raises UserError likewise."""
    entry = find_entry(name)
    if entry is not None and not entry.is_prior:
        return _of_alias(entry, False, offline)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        helpers = ", ".join(entry.alias for entry in ENTRIES if not entry.is_prior)
        raise UserError(f"guidance.debias: no language model at {name!r}; expected {helpers}, or a folder with one")
    return _local(name, False)


def pull(entry: Entry, non_commercial: bool, to: Path | None = None) -> ModelFolder:
    """Fetch an alias from the hub and record or check its files; with `to`, as a folder of its own with a lock file.

    Raises:
        UserError: as find_model does.
    """
    _check_licence(entry, non_commercial, "--non-commercial")
    lock = lock_path()
    locked = read_lock(lock).get(entry.alias)
    pulled = pull_model(entry, locked, to)
    if locked is None:
        locked = _first_record(entry, pulled)
        record(lock, entry.alias, locked)
        logger.info("recorded %d files of %s at %s in %s", len(locked.sha256), pulled.repository, locked.revision, lock)
    else:
        verify(entry.alias, pulled.folder, locked, lock, _fetch_again(entry, to))
        locked = replace(locked, repository=pulled.repository, revision=pulled.revision)
        record(lock, entry.alias, locked)  # the same files, perhaps from another mirror
    if to is not None:
        record(to / LOCK_NAME, entry.alias, locked)
    return _folder(entry, pulled.folder, locked, to)


def verify_alias(entry: Entry) -> LockedModel:
    """Hash the files of a pulled alias again. Raises UserError when it was not pulled, or is missing or changed."""
    here = _cached(entry)
    if here is None:
        raise UserError(f"prior {entry.alias} is not on this disk; fetch it: nerf-bridge priors pull {entry.alias}")
    folder, locked = here
    verify(entry.alias, folder, locked, lock_path(), _fetch_again(entry))
    return locked


def verify_folder(name: str) -> LockedModel:
    """Hash the files of a folder of `pull` with `to` again. Raises UserError when it has no lock, or was changed."""
    folder = Path(name).expanduser()
    held = read_lock(folder / LOCK_NAME)
    if not held:
        raise UserError(
            f"{name}: there is no {LOCK_NAME} in it that says what should be there; nerf-bridge priors pull ALIAS "
            f"--to FOLDER makes a folder with one"
        )
    (alias, locked), *_ = held.items()
    verify(name, folder, locked, folder / LOCK_NAME, _mend_folder(find_entry(alias), folder))
    return locked


def _of_alias(entry: Entry, non_commercial: bool, offline: bool) -> ModelFolder:
    _check_licence(entry, non_commercial, SAY_NON_COMMERCIAL)
    if (here := _cached(entry)) is not None:
        folder, locked = here
        verify(entry.alias, folder, locked, lock_path(), _fetch_again(entry))
        return _folder(entry, folder, locked)
    if offline:
        raise UserError(
            f"prior {entry.alias} is not on this disk, and model.offline forbids to ask the hub; leave model.offline "
            f"out, or give the model's folder in place of the alias: --prior FOLDER"
        )
    return pull(entry, non_commercial)


def _cached(entry: Entry) -> tuple[Path, LockedModel] | None:
    """Where a pulled alias lies in the hub's cache, and what was recorded of it; None when it is not there."""
    locked = read_lock(lock_path()).get(entry.alias)
    folder = None if locked is None else find_cached(locked)
    return None if locked is None or folder is None else (folder, locked)


def _local(name: str, non_commercial: bool) -> ModelFolder:
    """A folder of the user's; checked when it has a lock file of its own, as `priors pull --to` writes it."""
    folder = Path(name).expanduser()
    held = read_lock(folder / LOCK_NAME)
    if not held:
        names = sorted(path for path in folder.rglob("*") if path.suffix in READ and path.is_file())
        sha256 = hash_files(folder, [path.relative_to(folder).as_posix() for path in names])
        return ModelFolder(name, folder, UNKNOWN_LICENCE, str(folder), sha256, COPY_AGAIN)
    (alias, locked), *_ = held.items()
    entry = find_entry(alias)
    if entry is not None:
        _check_licence(entry, non_commercial, SAY_NON_COMMERCIAL)
    remedy = _mend_folder(entry, folder)
    verify(name, folder, locked, folder / LOCK_NAME, remedy)
    licence = UNKNOWN_LICENCE if entry is None else entry.licence
    return ModelFolder(name, folder, licence, f"{locked.repository} at {locked.revision}", locked.sha256, remedy)


def _first_record(entry: Entry, pulled: Pulled) -> LockedModel:
    """What to record: hashes of the files as they came, which must be what the hub states."""
    found = hash_files(pulled.folder, pulled.files)
    wrong = [name for name, digest in pulled.published.items() if found[name] != digest]
    if wrong:
        raise UserError(
            f"prior {entry.alias}: {', '.join(wrong)} did not come whole from {pulled.repository}: the hash is not the "
            f"one that the hub states; delete {pulled.folder} and pull again"
        )
    return LockedModel(pulled.repository, pulled.revision, found)


def _check_licence(entry: Entry, non_commercial: bool, option: str) -> None:
    if entry.commercial == "no" and not non_commercial:
        raise UserError(
            f"prior {entry.alias} is under the licence '{entry.licence}', which forbids commercial use; "
            f"to use it so, say {option}"
        )


def _fetch_again(entry: Entry, to: Path | None = None) -> str:
    option = "" if to is None else f" --to {shlex.quote(str(to))}"
    return f"fetch it again: nerf-bridge priors pull {entry.alias}{option}"


def _mend_folder(entry: Entry | None, folder: Path) -> str:
    return COPY_AGAIN if entry is None else f"{COPY_AGAIN}, or {_fetch_again(entry, folder)}"


def _folder(entry: Entry, folder: Path, locked: LockedModel, to: Path | None = None) -> ModelFolder:
    source = f"{locked.repository} at {locked.revision}"
    return ModelFolder(entry.alias, folder, entry.licence, source, locked.sha256, _fetch_again(entry, to))
