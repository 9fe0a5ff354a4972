"""The memory ladder: ways to do the same step, each with less memory than the one before it.

A run starts on the rung that its preset or the estimate says (`preflight.py`); memory that runs out takes it one rung
down, and the step is done again. What a step does is a function of the step and the rung alone; the rung is in the
checkpoint. All rungs but the last give the same gradient, but for the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import RunError

LAST_RESORT = "use a smaller model.image_size, a smaller prior, or --device cpu"
LACKS = ("out of memory", "alloc_failed", "defaultcpuallocator")  # in lower case: CUDA and our kernels; libraries; CPU


@dataclass(frozen=True)
class Rung:
    """One way to do a step. Each rung does what the ones above it do, and one thing more.

    Attributes:
        name: for the log.
        does: what it does, in words.
        one_group: the views are rendered, encoded and judged one group at a time (one view, where the prior has no
            groups), and their gradients summed.
        samples_at_once: rays are rendered in parts of at most so many samples, each rendered again in the backward
            pass; None: all at once, and kept.
        recompute_encoder: the autoencoder's blocks are computed again in the backward pass.
        one_prompt: the network sees one prompt of one group of views at a time.
        stream_network: the network's weights stay in main memory and come to the GPU layer by layer.
        image_divisor: the prior sees images so many times smaller along a side.
    """

    name: str
    does: str
    one_group: bool = False
    samples_at_once: int | None = None
    recompute_encoder: bool = False
    one_prompt: bool = False
    stream_network: bool = False
    image_divisor: int = 1


RUNGS: tuple[Rung, ...] = (
    Rung("whole", "everything at once"),
    Rung("views", "one group of views at a time", True),
    Rung("recompute", "rays in parts and the encoder computed again in the backward pass", True, 1 << 22, True),
    Rung("prompts", "one prompt at a time through the network, rays in smaller parts", True, 1 << 20, True, True),
    Rung("stream", "the network's weights in main memory, brought layer by layer", True, 1 << 20, True, True, True),
    Rung("half", "images of half the size for the prior", True, 1 << 19, True, True, True, 2),
)


@dataclass(frozen=True)
class Preset:
    """How sparing a run is for a GPU of a size.

    Attributes:
        name: what `memory` calls it.
        gigabytes: of the GPU, 1e9 bytes.
        rung: index of the rung that it starts on, or of one below where that would not fit.
        largest_view: most pixels along a side of a view; None: as the settings say.
    """

    name: str
    gigabytes: float
    rung: int
    largest_view: int | None


PRESETS: tuple[Preset, ...] = (
    Preset("80gb", 80, 0, None),
    Preset("24gb", 24, 1, 512),
    Preset("12gb", 12, 2, 384),
    Preset("8gb", 8, 2, 256),
)


LAST_EQUAL = max(i for i, rung in enumerate(RUNGS) if rung.image_divisor == 1)  # below it the result is another one


def find_preset(name: str) -> Preset | None:
    """The preset called `name`; None for "auto"."""
    return next((preset for preset in PRESETS if preset.name == name), None)


def preset_for(n_bytes: int) -> Preset | None:
    """The largest preset whose GPU has no more than `n_bytes`, give or take a twentieth; None below all of them."""
    return next((preset for preset in PRESETS if 0.95 * preset.gigabytes * 1e9 <= n_bytes), None)


def within_preset(config: GenerateConfig) -> GenerateConfig:
    """`config` with views no larger than its preset allows."""
    preset = find_preset(config.memory)
    if preset is None or preset.largest_view is None:
        return config
    render, most = config.render, preset.largest_view
    smaller = render.model_copy(update={"size": min(render.size, most)})
    return config.model_copy(update={"render": smaller})


def parts_of(n_views: int, group: int, rung: Rung) -> list[slice]:
    """The views of a step as slices that are rendered together: all of them, or group by group."""
    size = group if rung.one_group else n_views
    return [slice(start, min(start + size, n_views)) for start in range(0, n_views, size)]


def rung_below(rung: int, reason: str) -> int:
    """The next rung down. Raises RunError, which says what was tried, below the last."""
    if rung + 1 < len(RUNGS):
        return rung + 1
    tried = "; ".join(below.does for below in RUNGS[1:])
    raise RunError(
        f"out of memory below the last rung of the memory ladder (tried: {tried}): {reason}; "
        f"go on with a smaller --memory, whose views are smaller, or {LAST_RESORT}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on the GPU, in Python, or where only the text of a RuntimeError says so.

    Such are those of torch on the CPU, of the CUDA driver, of cuBLAS and cuDNN, and of our kernels.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(lack in str(error).lower() for lack in LACKS)
