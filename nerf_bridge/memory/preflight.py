"""Before the models are loaded: what the run needs, what is free, and the rung of the memory ladder that fits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import UserError
from nerf_bridge.memory.available import free_bytes
from nerf_bridge.memory.estimate import GIB, NO_MODEL, ModelSizes, Needs, needs_on
from nerf_bridge.memory.ladder import LAST_RESORT, RUNGS, find_preset, within_preset
from nerf_bridge.memory.model_sizes import embedded_sizes, read_sizes
from nerf_bridge.paths import data_path
from nerf_bridge.prior.catalogue.entries import EMBEDDED
from nerf_bridge.prior.models.folder import ModelFolder

logger = logging.getLogger(__name__)

USABLE = 0.95  # of a GPU's memory: the rest holds the driver's own


@dataclass(frozen=True)
class MemoryPlan:
    """How a run starts.

    Attributes:
        rung: index in ladder.RUNGS.
        words_device: where the text encoders run: the main memory's processor where the device has no room for them.
        needs: what the run needs on that rung.
        free: bytes that it may take; None where that is not known.
    """

    rung: int
    words_device: torch.device
    needs: Needs
    free: int | None

    def line(self, setting: str) -> str:
        """One line for the log."""
        total = self.needs.words + self.needs.rest if self._words_lead else self.needs.step
        of = "" if self.free is None else f" of {self.free / GIB:.1f} GiB free"
        rung, words = RUNGS[self.rung], " while prompts are encoded" if self._words_lead else ""
        return f"needs about {total / GIB:.1f} GiB{words}{of}: memory {setting}, {rung.does}"

    def record(self) -> dict[str, object]:
        """For the run's record."""
        gib = {name: round(getattr(self.needs, name) / GIB, 3) for name in ("step", "network", "encoder", "render")}
        free = None if self.free is None else round(self.free / GIB, 3)
        return {"rung": RUNGS[self.rung].name, "needs_gib": gib, "free_gib": free}

    @property
    def _words_lead(self) -> bool:
        """Whether the most is needed while prompts are encoded."""
        return self.needs.words + self.needs.rest > self.needs.step and self.words_device.type != "cpu"


def plan_memory(config: GenerateConfig, device: torch.device, found: ModelFolder | None, known: bool) -> MemoryPlan:
    """The highest rung that fits, from the preset's on; told in one line.

    Args:
        found: the folder of a big prior; None: there is none.
        known: whether the prior is the one that `config` names, whose sizes can be read.

    Raises:
        UserError: nothing fits into what is free on the GPU, or the prior's files cannot be read.
    """
    cuda = device.type == "cuda"
    sizes = _sizes(config, found, cuda) if known else NO_MODEL
    plan = choose(config, sizes, device, _budget(config, free_bytes(device)))
    logger.info(plan.line(config.memory))
    return plan


def choose(config: GenerateConfig, sizes: ModelSizes, device: torch.device, free: int | None) -> MemoryPlan:
    """The highest rung on which `config` fits into `free` bytes; if none does, the last one on a CPU, with a warning.

    Raises:
        UserError: none does on a GPU.
    """
    cuda, preset = device.type == "cuda", find_preset(config.memory)
    first = preset.rung if preset else 0
    needs = [needs_on(rung, within_preset(config), sizes, cuda) for rung in RUNGS]
    fitting = [i for i in range(first, len(RUNGS)) if free is None or needs[i].step <= free]
    if not fitting and cuda:
        assert free is not None
        raise UserError(_refusal(needs, free))
    if not fitting:
        logger.warning("this may take more memory than is free: about %.1f GiB", needs[-1].step / GIB)
    rung = fitting[0] if fitting else len(RUNGS) - 1
    room = free is None or needs[rung].words + needs[rung].rest <= free
    return MemoryPlan(rung, device if room else torch.device("cpu"), needs[rung], free)


def _budget(config: GenerateConfig, free: int | None) -> int | None:
    """What may be taken: what is free, and no more than a GPU of the preset's size has."""
    preset = find_preset(config.memory)
    if preset is None:
        return free
    most = int(USABLE * preset.gigabytes * 1e9)
    return most if free is None else min(most, free)


def _sizes(config: GenerateConfig, found: ModelFolder | None, cuda: bool) -> ModelSizes:
    if config.prior == EMBEDDED:
        return embedded_sizes(data_path("prior/weights"), cuda)
    assert found is not None, "a big prior has a folder"
    return read_sizes(found, config.model, cuda)


def _refusal(needs: Sequence[Needs], free: int) -> str:
    last = needs[-1]
    names = ("network", "encoder", "render", "field", "rest")
    parts = ", ".join(f"{name} {getattr(last, name) / GIB:.1f}" for name in names)
    return (
        f"memory: the run needs about {last.step / GIB:.1f} GiB even on the last rung of the memory ladder ({parts}), "
        f"and {free / GIB:.1f} GiB may be taken; close other programs on the GPU, {LAST_RESORT}"
    )
