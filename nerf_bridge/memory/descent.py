"""What the loop does when memory runs out: undo the step, go one rung down the ladder, and keep that."""

from __future__ import annotations

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
    """A step for which there was not enough memory, and what said so."""

    reason: str


def attempt(step: Callable[[], Done], scene: Scene, optimiser: SkippingAdam, refreshes: bool) -> Done | OutOfMemory:
    """What `step` gives; where memory runs out, nothing of it is left: scene and optimiser are as they were before.

    A step changes the occupancy grid at its beginning, if at all, which is put back, and parameters and moments at its
    end, after all that takes memory.

    Args:
        refreshes: whether the step changes the occupancy grid.
    """
    before = {name: value.clone() for name, value in scene.occupancy.state_dict().items()} if refreshes else None
    try:
        return step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lack = OutOfMemory(one_line(error))
    optimiser.zero_grad()  # only here, with the error and the frames that it holds gone, is their memory free
    if before is not None:
        scene.occupancy.load_state_dict(before)
    return lack


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
    """One rung down the memory ladder, told and kept in the checkpoint. Raises RunError below the last rung."""
    progress = replace(progress, rung=rung_below(progress.rung, lack.reason))
    rung = RUNGS[progress.rung]
    logger.warning("out of memory at step %d (%s); from here on: %s", progress.step, lack.reason, rung.does)
    log.append("memory", "optimise", progress.step, config.steps, {"rung": rung.name, "reason": lack.reason})
    place(prior, progress.rung)
    if progress.guard.in_a_row == 0:  # bad steps in a row must not take the place of the last good state
        save(run, scene, optimiser, config, progress)
    return progress


def place(prior: Prior, rung: int) -> None:
    """Let the prior do as the rung says, and give back the GPU's memory that is not in use."""
    if isinstance(prior, SparingPrior):
        prior.place(RUNGS[rung])
    give_back_unused()


def give_back_unused() -> None:
    """Give back the GPU's memory that torch holds for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
