"""What `nerf-bridge priors` does: the table of models, pulling them, and checking them again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from nerf_bridge.errors import UserError
from nerf_bridge.prior.catalogue.entries import EMBEDDED, ENTRIES, Entry, aliases, find_entry, unknown_model
from nerf_bridge.prior.catalogue.find import is_path, pull, verify_alias, verify_folder
from nerf_bridge.prior.catalogue.hub import find_cached
from nerf_bridge.prior.catalogue.lock import LockedModel, lock_path, read_lock
from nerf_bridge.prior.embedded import LICENCE

logger = logging.getLogger(__name__)

HEADINGS = ("alias", "what", "licence", "commercial", "gated", "network", "on this disk")


def list_models() -> str:
    """Every prior as a table: licence, whether commercial use is allowed and terms must be accepted, size, and state.

    Raises:
        UserError: the lock file is damaged.
    """
    locked = read_lock(lock_path())
    rows = [HEADINGS, (EMBEDDED, "the package's own, 64 px", LICENCE.split(";")[0], "yes", "no", "", "yes")]
    for entry in ENTRIES:
        state = _state(locked.get(entry.alias))
        gated = "yes" if entry.gated else "no"
        row = (entry.alias, entry.about, entry.licence, entry.commercial, gated, f"{entry.weights_gb:g} GB", state)
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*table, "", "network: its weights alone in half precision; gated: as last seen, the hub decides"])


def pull_models(names: Sequence[str], to: Path | None, non_commercial: bool) -> str:
    """Fetch the named models and say where each is. Raises UserError at the first one that cannot be had."""
    entries = _entries(names)
    if not entries:
        raise UserError(f"say which model to pull: {', '.join(aliases())}")
    if to is not None and len(entries) > 1:
        raise UserError(f"--to takes one model at a time, got {', '.join(names)}")
    lines = []
    for entry in entries:
        folder = pull(entry, non_commercial, to)
        lines.append(f"{entry.alias}: {folder.source}, {len(folder.sha256)} files, {entry.licence}, in {folder.path}")
    return "\n".join(lines)


def verify_models(names: Sequence[str]) -> str:
    """Hash the files of the named models and folders again, or of all models that were pulled into the hub's cache.

    Raises:
        UserError: for everything that is wrong; what is right is logged before.
    """
    lines, problems = [], []
    for name in names or [entry.alias for entry in ENTRIES if entry.alias in read_lock(lock_path())]:
        try:
            lines.append(_verified(name, asked=bool(names)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        for line in lines:
            logger.info("%s", line)
        raise UserError("\n".join(problems))
    return "\n".join(lines) or f"no model was pulled yet (lock file {lock_path()})"


def _verified(name: str, asked: bool) -> str:
    """A line for an alias or a folder; an alias that nobody `asked` for may be elsewhere, as after `pull --to`."""
    if find_entry(name) is None and is_path(name):
        locked = verify_folder(name)
    else:
        (entry,) = _entries([name])
        recorded = read_lock(lock_path()).get(entry.alias)
        if not asked and recorded is not None and find_cached(recorded) is None:
            return f"{entry.alias}: {_state(recorded)}"
        locked = verify_alias(entry)
    return f"{name}: {len(locked.sha256)} files as recorded from {locked.repository} at {locked.revision}"


def _entries(names: Sequence[str]) -> list[Entry]:
    entries = []
    for name in names:
        if name == EMBEDDED:
            raise UserError(f"prior {EMBEDDED} comes with the package: nothing to pull or verify; leave it out")
        entry = find_entry(name)
        if entry is None:
            raise unknown_model(name)
        entries.append(entry)
    return entries


def _state(locked: LockedModel | None) -> str:
    if locked is None:
        return "no"
    return f"{locked.repository} at {locked.revision[:8]}" if find_cached(locked) else "recorded, not cached"
