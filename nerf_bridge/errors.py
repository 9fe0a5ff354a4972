"""The ways a command can end badly, each with its exit status; and what other errors say, in one line."""

import traceback
from pathlib import Path


class UserError(Exception):
    """The request cannot be met as it stands; known before the work starts. Exit status 2, a line for each problem."""


class RunError(Exception):
    """The run failed on the way (disk full, out of memory, numerics). Exit status 1; the checkpoint stays."""


class Interrupted(Exception):
    """The user stopped the run; its checkpoint is saved and the same command resumes it. Exit status 130."""


def one_line(error: BaseException, most: int = 200) -> str:
    """What `error` says, in one line of at most `most` characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def where_raised(error: BaseException) -> str:
    """File and line of the package's own code that raised `error` or called what did; empty where none is known."""
    package = Path(__file__).parent
    own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(package)]
    return f"{Path(own[-1].filename).relative_to(package).as_posix()}, line {own[-1].lineno}" if own else ""
