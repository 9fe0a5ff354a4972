"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
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
