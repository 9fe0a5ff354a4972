"""Guards of the optimisation: what to do about steps that are not finite, and when a scene counts as empty.

Pure functions of frozen states, so that a resumed run decides as an uninterrupted one does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from nerf_bridge.errors import RunError

SKIPS_IN_A_ROW = 5
RESTORES = 3
RATE_CUT = 0.5
EMPTY_OPACITY = 0.004


class Action(Enum):
    """What to do with a step."""

    APPLY = "apply"
    SKIP = "skip"
    RESTORE = "restore"


@dataclass(frozen=True)
class StepGuard:
    """What the steps so far were like.

    Attributes:
        in_a_row: steps without finite gradients since the last good one.
        skipped: steps skipped in the whole run.
        restores: times that the last good state was restored.
        rate: factor on every learning rate.
    """

    in_a_row: int = 0
    skipped: int = 0
    restores: int = 0
    rate: float = 1.0

    @property
    def good(self) -> bool:
        """Whether this is a state to keep: bad steps in a row must not take the place of the last good one."""
        return self.in_a_row == 0


def judge_step(guard: StepGuard, finite: bool) -> tuple[StepGuard, Action]:
    """Decide about a step whose gradients are known.

    SKIPS_IN_A_ROW bad steps in a row restore the last good state at RATE_CUT of the learning rate. The guard returned
    with `Action.RESTORE` is kept, not the one of the restored state: it remembers that this was tried.

    Args:
        guard: the state before the step.
        finite: whether loss and gradients are all finite.

    Returns:
        The state after the step, and what to do.

    Raises:
        RunError: the last good state was restored RESTORES times and the gradients are again not finite.
    """
    if finite:
        return replace(guard, in_a_row=0), Action.APPLY
    guard = replace(guard, in_a_row=guard.in_a_row + 1, skipped=guard.skipped + 1)
    if guard.in_a_row < SKIPS_IN_A_ROW:
        return guard, Action.SKIP
    if guard.restores == RESTORES:
        raise RunError(
            f"the gradients are not finite: {guard.skipped} steps were skipped and the last good state was restored "
            f"{RESTORES} times, at last with {guard.rate:g} of the learning rate; "
            "try another seed, a lower optim.lr_grid or a lower guidance.scale"
        )
    return replace(guard, in_a_row=0, restores=guard.restores + 1, rate=guard.rate * RATE_CUT), Action.RESTORE


@dataclass(frozen=True)
class EmptyGuard:
    """Since when the scene has been empty.

    Attributes:
        since: the step at which the opacity was first too low without a break; None when it is not.
    """

    since: int | None = None


def judge_opacity(guard: EmptyGuard, step: int, opacity: float, patience: int) -> EmptyGuard:
    """Watch the mean opacity of the views; it may be looked at at any steps, not only at each.

    Args:
        guard: the state at the last look.
        step: steps done.
        opacity: mean opacity of the views, in [0, 1].
        patience: steps that a scene may stay empty.

    Returns:
        The state after this look.

    Raises:
        RunError: the opacity has been below EMPTY_OPACITY for `patience` steps or more.
    """
    if opacity >= EMPTY_OPACITY:
        return EmptyGuard()
    since = step if guard.since is None else guard.since
    if step - since >= patience:
        raise RunError(
            f"the scene is empty: its mean opacity has been below {EMPTY_OPACITY:g} since step {since}; "
            "try another seed, a lower optim.weight_opacity, a higher guidance.scale or simpler words in the prompt"
        )
    return EmptyGuard(since)
