"""Before the models are loaded: what the run needs, what is free, and the rung of the memory ladder that fits."""

from __future__ import annotations

import logging
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
DOUBT = 1.5  # the estimate may be so many times too high: up to there a run is worth a try


@dataclass(frozen=True)
class MemoryPlan:
    """How a run starts.

    Attributes:
        rung: index in ladder.RUNGS.
        words_device: where the text encoders run: the main memory's processor where the device has no room for them.
        needs: what the run needs on that rung.
        free: bytes that are free; None where that is not known.
        budget: bytes that it may take: what is free, and no more than a GPU of the preset's size has; None: not known.
    """

    rung: int
    words_device: torch.device
    needs: Needs
    free: int | None
    budget: int | None

    def line(self, setting: str) -> str:
        """One line for the log."""
        total = self.needs.words + self.needs.rest if self._words_lead else self.needs.step
        rung, words = RUNGS[self.rung], " while prompts are encoded" if self._words_lead else ""
        return f"needs about {total / GIB:.1f} GiB{words}{self._room()}: memory {setting}, {rung.does}"

    def record(self) -> dict[str, object]:
        """For the run's record."""
        gib = {name: round(getattr(self.needs, name) / GIB, 3) for name in ("step", "network", "encoder", "render")}
        free, budget = (None if n is None else round(n / GIB, 3) for n in (self.free, self.budget))
        return {"rung": RUNGS[self.rung].name, "needs_gib": gib, "free_gib": free, "budget_gib": budget}

    def _room(self) -> str:
        """What there is, and where the preset allows less, what of it may be taken."""
        free = "" if self.free is None else f"{self.free / GIB:.1f} GiB free"
        if self.budget is None or self.budget == self.free:
            return free and f" of {free}"
        return f" of the {self.budget / GIB:.1f} GiB that it may take" + (free and f" ({free})")

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
        UserError: nothing comes near to what may be taken on the GPU, or the prior's files cannot be read.
    """
    cuda = device.type == "cuda"
    sizes = _sizes(config, found, cuda) if known else NO_MODEL
    plan = choose(config, sizes, device, free_bytes(device))
    logger.info(plan.line(config.memory))
    return plan


def choose(config: GenerateConfig, sizes: ModelSizes, device: torch.device, free: int | None) -> MemoryPlan:
    """The highest rung on which `config` fits into what it may take; if none does, the last one, with a warning.

    Args:
        free: bytes that are free; None: not known.

    Raises:
        UserError: on a GPU even the last one would need DOUBT times what may be taken.
    """
    cuda, preset = device.type == "cuda", find_preset(config.memory)
    first = preset.rung if preset else 0
    needs = [needs_on(rung, within_preset(config), sizes, cuda) for rung in RUNGS]
    budget = _budget(config, free)
    fitting = [i for i in range(first, len(RUNGS)) if budget is None or needs[i].step <= budget]
    if not fitting:
        assert budget is not None
        if cuda and needs[-1].step > DOUBT * budget:
            raise UserError(_refusal(needs[-1], config, free, budget))
        than = "is free" if budget == free else f"--memory {config.memory} is made for"
        logger.warning("this may take more memory than %s: about %.1f GiB", than, needs[-1].step / GIB)
    rung = fitting[0] if fitting else len(RUNGS) - 1
    room = budget is None or needs[rung].words + needs[rung].rest <= budget
    return MemoryPlan(rung, device if room else torch.device("cpu"), needs[rung], free, budget)


def bound_views(config: GenerateConfig, before: int | None) -> GenerateConfig:
    """`config` with views no larger than its preset allows; told in one line where that changes their size.

    Args:
        before: pixels along a side of the largest views so far, in a run that goes on, maybe with another preset.
    """
    within = within_preset(config)
    asked, size = config.render.size, within.render.size
    if before not in (None, size):
        logger.info("views of %d pixels become %d from here on (memory %s)", before, size, config.memory)
    elif size != asked:
        logger.info("views of %d pixels become %d (memory %s)", asked, size, config.memory)
    return within


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


def _refusal(last: Needs, config: GenerateConfig, free: int | None, budget: int) -> str:
    names = ("network", "encoder", "render", "field", "rest")
    parts = ", ".join(f"{name} {getattr(last, name) / GIB:.1f}" for name in names)
    more = "close other programs on the GPU" if budget == free else f"use a larger --memory than {config.memory}"
    return (
        f"memory: the run needs about {last.step / GIB:.1f} GiB even on the last rung of the memory ladder ({parts}), "
        f"and {budget / GIB:.1f} GiB may be taken; {more}, {LAST_RESORT}"
    )
