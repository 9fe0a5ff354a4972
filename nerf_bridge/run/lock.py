"""A lock that one process holds on a folder; the system drops it when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
from pathlib import Path
from typing import IO

from nerf_bridge.errors import UserError

logger = logging.getLogger(__name__)


def take_lock(path: Path) -> IO[bytes]:
    """Take the lock `path` (made when absent) and return its open file; closing the file gives the lock back.

    Raises:
        UserError: another process holds the lock.
        OSError: the file cannot be opened for writing.
    """
    file = open(path, "ab")  # noqa: SIM115 - the lock lives as long as the file is open: the caller closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another process is at work in {path.parent}: wait for it or choose another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            file.close()
            raise
        logger.warning("%s: the file system knows no locks; do not start a second run there", path.parent)
    return file


def is_locked(path: Path) -> bool:
    """Whether another open file holds the lock `path`."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
