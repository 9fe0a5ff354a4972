"""Fetching a model from the hub: the mirrors in their order, and for each failure its reason and what to do next."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from nerf_bridge.errors import UserError, one_line
from nerf_bridge.prior.catalogue.entries import Entry
from nerf_bridge.prior.catalogue.lock import LockedModel
from nerf_bridge.prior.catalogue.select import select_files

logger = logging.getLogger(__name__)

HUB_ERRORS = (errors.HTTPError, OSError, errors.OfflineModeIsEnabled, errors.HFValidationError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
ROOM = "make room there, or set HF_HOME or --to to another disk"
SIGN_IN = "read and accept its terms at https://huggingface.co/{repository}, then sign in with `hf auth login`"


@dataclass(frozen=True)
class Pulled:
    """A model that is on the disk now.

    Attributes:
        folder: where its files lie.
        repository, revision: where they came from.
        files: their names.
        published: hashes that the hub states for the big ones.
    """

    folder: Path
    repository: str
    revision: str
    files: tuple[str, ...]
    published: dict[str, str]


def find_cached(locked: LockedModel) -> Path | None:
    """The folder in the hub's cache that holds the recorded revision; None when it is not there. Asks nobody."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                locked.repository,
                revision=locked.revision,
                allow_patterns=list(locked.sha256),
                local_files_only=True,
            )
        )
    except HUB_ERRORS:
        return None


def pull_model(entry: Entry, locked: LockedModel | None, to: Path | None = None) -> Pulled:
    """Fetch a model, with the hub's progress bars: the recorded revision, else the newest of the first mirror there is.

    Args:
        locked: what was recorded at the first pull, if anything was.
        to: a folder to put the files in; None: the hub's cache.

    Raises:
        UserError: no mirror has it, or none can be reached; a line for each mirror with its reason and the remedy.
    """
    mirrors = entry.mirrors
    if locked is not None:
        mirrors = (locked.repository, *(mirror for mirror in mirrors if mirror != locked.repository))
    reasons = []
    for repository in mirrors:
        revision = locked.revision if locked is not None and repository == locked.repository else None
        try:
            pulled = _pull(repository, revision, None if locked is None else tuple(locked.sha256), to)
        except UserError as error:
            reasons.append(str(error))
        except HUB_ERRORS as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise UserError(f"prior {entry.alias}: cannot write the model: {error.strerror}; {ROOM}") from None
            reasons.append(explain(repository, error))
        else:
            for reason in reasons:
                logger.warning("%s; took %s", reason, repository)
            return pulled
    raise UserError("\n".join([*(f"prior {entry.alias}: {reason}" for reason in reasons), _next(entry)]))


def explain(repository: str, error: Exception) -> str:
    """One line for what the hub, or the network, answered: the reason and the next thing to try."""
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated; {SIGN_IN.format(repository=repository)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} no longer has the recorded revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{repository} is gone from the hub, or private"
    if isinstance(error, errors.DisabledRepoError):
        return f"{repository} has been disabled by the hub"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository} is not on this disk and HF_HUB_OFFLINE forbids to ask the hub; unset it"
    if isinstance(error.__cause__, errors.HfHubHTTPError):  # a refused download, told as no network
        return explain(repository, error.__cause__)
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError) or type(error).__name__.endswith(
        ("ConnectError", "Timeout", "ConnectTimeout", "ReadTimeout")
    ):
        return f"{repository} cannot be reached; check the network, or set HF_ENDPOINT to a mirror of the hub"
    reason = one_line(error)
    return f"{repository}: the hub answered: {reason}"


def _pull(repository: str, revision: str | None, recorded: tuple[str, ...] | None, to: Path | None) -> Pulled:
    about = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in about.siblings or []}
    files = sorted(recorded) if recorded is not None else select_files(repository, siblings)
    absent = [name for name in files if name not in siblings]
    if absent:
        raise UserError(f"{repository} lacks {', '.join(absent)}, recorded at the first pull")
    assert about.sha is not None, "the hub names the revision"
    folder = huggingface_hub.snapshot_download(repository, revision=about.sha, allow_patterns=files, local_dir=to)
    published = {name: digest for name in files if (digest := _published(siblings[name]))}
    return Pulled(Path(folder), repository, about.sha, tuple(files), published)


def _published(sibling: Any) -> str | None:
    return sibling.lfs.sha256 if sibling.lfs is not None else None


def _next(entry: Entry) -> str:
    return (
        f"prior {entry.alias}: next, try a copy of your own: --prior FOLDER, with the model in diffusers' format; on a "
        f"machine with network `nerf-bridge priors pull {entry.alias} --to FOLDER` makes one"
    )
