"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write; on success it takes the place of `path`, on failure it is removed.

    The sibling has the same suffix, so that writers which choose the format by the suffix work. Its name starts with a
    dot. The file is flushed to the disk before the rename, so that a crash leaves the old file or the new one.

    Args:
        path: the file to replace; its folder must exist.

    Raises:
        OSError: writing failed (a full disk, for example); `path` is as it was.
        FileNotFoundError: the block wrote nothing to the temporary path.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises OSError and leaves `path` as it was when that fails."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write several files in their order, all of them or none; each appears whole.

    They take their places only once all of them are on the disk. A crash in the moment between may leave old ones under
    hidden names.

    Raises:
        OSError: writing failed, or a folder stands where a file should go; what was there is as it was, and no new
            files are there.
    """
    for path in files:
        _refuse_folder(path)
    if len(files) == 1:
        ((path, data),) = files.items()
        write_bytes(path, data)
        return
    token = secrets.token_hex(4)
    new = {path: path.with_name(f".{path.stem}.{token}.tmp{path.suffix}") for path in files}
    old = {path: path.with_name(f".{path.stem}.{token}.old{path.suffix}") for path in files}
    placed: list[Path] = []
    try:
        for path, data in files.items():
            new[path].write_bytes(data)
            sync(new[path])
        for path in files:
            _refuse_folder(path)  # it may have come while the others were written
            placed.append(path)
            if path.exists():
                os.replace(path, old[path])
            os.replace(new[path], path)
    except BaseException:
        for path in placed:
            if old[path].exists():
                os.replace(old[path], path)
            elif not new[path].exists():
                path.unlink(missing_ok=True)
        _remove(new.values())
        raise
    _remove(old.values())


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _remove(paths: Iterable[Path]) -> None:
    """Remove what is there of `paths`; what cannot be removed stays, since by then success or failure is settled."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all. Raises OSError when that fails."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON with sorted keys, whole or not at all.

    Raises:
        OSError: writing failed; `path` is as it was.
        TypeError, ValueError: `value` is no plain JSON (NaN and infinity are refused).
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flush the file or folder `path` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
