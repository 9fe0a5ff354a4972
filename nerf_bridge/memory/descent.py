"""What the loop does when memory runs out: undo the step, go one rung down the ladder, and keep that."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import one_line
from nerf_bridge.memory.ladder import RUNGS, is_out_of_memory, rung_below
from nerf_bridge.ops.adam import SkippingAdam
from nerf_bridge.prior.protocol import Prior, SparingPrior
from nerf_bridge.run.directory import RunDirectory
from nerf_bridge.run.events import EventLog
from nerf_bridge.run.state import Progress, save
from nerf_bridge.scene.scene import Scene

logger = logging.getLogger(__name__)

Done = TypeVar("Done")


@dataclass(frozen=True)
class OutOfMemory:
    """Work for which there was not enough memory, and what said so."""

    reason: str


def tried(work: Callable[[], Done]) -> Done | OutOfMemory:
    """What `work` gives, or that memory ran out; what it held is free by then, its error and the error's frames too."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemory(one_line(error))


def attempt(step: Callable[[], Done], scene: Scene, optimiser: SkippingAdam, refreshes: bool) -> Done | OutOfMemory:
    """What `step` gives; where memory runs out, nothing of it is left: scene and optimiser are as they were before.

    A step changes the occupancy grid at its beginning, if at all, which is put back, and parameters and moments at its
    end, after all that takes memory; of several inner steps those that were done stay.

    Args:
        refreshes: whether the step changes the occupancy grid.
    """
    before = {name: value.clone() for name, value in scene.occupancy.state_dict().items()} if refreshes else None
    done = tried(step)
    if isinstance(done, OutOfMemory):
        optimiser.zero_grad()
        if before is not None:
            scene.occupancy.load_state_dict(before)
    return done


def descend(
    run: RunDirectory,
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    config: GenerateConfig,
    progress: Progress,
    lack: OutOfMemory,
    log: EventLog,
) -> Progress:
    """One rung down the memory ladder, or to the first one below where the prior has room; told, and kept in the
    checkpoint. Raises RunError below the last rung."""
    below = rung_below(progress.rung, lack.reason)
    tell_descent(config, progress.step, log, below, lack)
    return settle(run, scene, optimiser, prior, config, replace(progress, rung=below), log, keeps=True)


def settle(
    run: RunDirectory,
    scene: Scene,
    optimiser: SkippingAdam,
    prior: Prior,
    config: GenerateConfig,
    progress: Progress,
    log: EventLog,
    keeps: bool = False,
) -> Progress:
    """Place the prior on the rung of `progress` or, where memory runs out, on the first one below that has room.

    Args:
        keeps: keep the rung in the checkpoint even where the prior had room at once.

    Raises:
        RunError: there is no room on the last rung.
    """
    rung = place_or_descend(prior, progress.rung, functools.partial(tell_descent, config, progress.step, log))
    changed, progress = rung != progress.rung, replace(progress, rung=rung)
    if (changed or keeps) and progress.guard.good:
        save(run, scene, optimiser, config, progress)
    return progress


def tell_descent(config: GenerateConfig, step: int, log: EventLog, rung: int, lack: OutOfMemory) -> None:
    """Tell, in one line and as an event, that the run goes on at `step` on `rung`."""
    logger.warning("out of memory at step %d (%s); from here on: %s", step, lack.reason, RUNGS[rung].does)
    log.append("memory", "optimise", step, config.steps, {"rung": RUNGS[rung].name, "reason": lack.reason})


def place_or_descend(prior: Prior, rung: int, on_descent: Callable[[int, OutOfMemory], None]) -> int:
    """Place the prior on `rung` or, where memory runs out, on the first one below that has room.

    Args:
        on_descent: is told each rung further down, and why.

    Returns:
        The rung where the prior is.

    Raises:
        RunError: there is no room on the last rung.
    """
    while isinstance(lack := tried(functools.partial(place, prior, rung)), OutOfMemory):
        give_back_unused()
        rung = rung_below(rung, lack.reason)
        on_descent(rung, lack)
    return rung


def place(prior: Prior, rung: int) -> None:
    """Let the prior do as the rung says, and give back the GPU's memory that is not in use."""
    if isinstance(prior, SparingPrior):
        prior.place(RUNGS[rung])
    give_back_unused()


def give_back_unused() -> None:
    """Give back the GPU's memory that torch holds for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
