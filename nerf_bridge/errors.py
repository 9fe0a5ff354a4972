"""The ways a command can end badly, each with its exit status; and what other errors say, in one line."""


class UserError(Exception):
    """The request cannot be met as it stands; known before the work starts. Exit status 2, a line for each problem."""


class RunError(Exception):
    """The run failed on the way (disk full, out of memory, numerics). Exit status 1; the checkpoint stays."""


class Interrupted(Exception):
    """The user stopped the run; its checkpoint is saved and the same command resumes it. Exit status 130."""


def one_line(error: BaseException, most: int = 200) -> str:
    """What `error` says, in one line of at most `most` characters; its kind where it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__
