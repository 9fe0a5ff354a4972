"""The ways a command can end badly, each with its exit status."""


class UserError(Exception):
    """The request cannot be met as it stands; known before the work starts. Exit status 2, a line for each problem."""


class RunError(Exception):
    """The run failed on the way (disk full, out of memory, numerics). Exit status 1; the checkpoint stays."""


class Interrupted(Exception):
    """The user stopped the run; its checkpoint is saved and the same command resumes it. Exit status 130."""
