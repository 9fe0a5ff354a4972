"""Timing of work on a device, the memory it takes, and the ceilings of the device measured in the same run."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MOST_REPETITIONS, GOOD_REPETITIONS, FEWEST_REPETITIONS = 100, 20, 3
LONGER = 10  # times a measurement may take longer than asked for, to have the good number of repetitions
WARM_UPS, MOST_WARM_UPS = 3, 12
SETTLED = 0.8  # two rounds of which the faster one takes at least so much of the other's time take the same
SLOW_SECONDS = 5.0  # work that takes so long, once it has settled, is timed once
COPY_BYTES = 1 << 30
MATRIX = 8192
GIB = 2**30


@dataclass(frozen=True)
class Clock:
    """How to time.

    Attributes:
        device: where the work runs.
        seconds: what one measurement may take; it is repeated to fill them, 20 to 100 times, as long as that takes
            no more than ten times as long; at least 3 times, slow work once.
        flush: on CUDA, overwrite the level-2 cache before every repetition.
    """

    device: torch.device
    seconds: float
    flush: bool


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one thing over all repetitions: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float
    repetitions: int


def timing_of(milliseconds: Sequence[float]) -> Timing:
    """Median and percentiles of at least one repetition."""
    ordered = sorted(milliseconds)
    low, high = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.1, 0.9))
    return Timing(statistics.median(ordered), low, high, len(ordered))


def time_stages(stages: Sequence[Callable[[], object]], clock: Clock) -> list[Timing]:
    """Time stages that run one after the other, each on its own, and after them all of them together.

    On CUDA by events on the current stream, which the host runs ahead of; the first rounds do not count.
    """
    repetitions = _repetitions(_settled_seconds(stages, clock), clock.seconds)
    marks = [_round(stages, clock) for _ in range(repetitions)]
    rounds = [_read(mark, clock) for mark in marks]
    return [timing_of([each[k] for each in rounds]) for k in range(len(stages))] + [timing_of([*map(sum, rounds)])]


def peak_gib(work: Callable[[], object], device: torch.device) -> float | None:
    """Most memory that tensors took while `work` ran, what was there before included; None where it is not counted."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / GIB


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best.

    Attributes:
        copy: bytes read and written by a large copy, per second.
        matrix: floating-point operations of a large product, per second: half precision on CUDA, float32 on a CPU.
        gathers: random gathers of 4 bytes by `torch.index_select`, per second, from 2 MiB and from 32 MiB.
    """

    copy: float
    matrix: float
    gathers: tuple[float, float]


def measure_ceilings(clock: Clock) -> Ceilings:
    """Measure them; a CPU gets smaller work."""
    small = 1 if clock.device.type == "cuda" else 16
    source = torch.rand(COPY_BYTES // 4 // small, device=clock.device)
    target = torch.empty_like(source)
    copied = time_stages([lambda: target.copy_(source)], clock)[0].median
    gathers = [_gathers_per_second(size, source.numel() // 4, clock) for size in (1 << 19, 1 << 23)]
    side = MATRIX // small
    a = torch.randn(side, side, device=clock.device, dtype=torch.half if clock.device.type == "cuda" else torch.float)
    product = time_stages([lambda: a @ a], clock)[0].median
    return Ceilings(2 * COPY_BYTES / small / copied * 1e3, 2 * side**3 / product * 1e3, (gathers[0], gathers[1]))


def _gathers_per_second(size: int, n: int, clock: Clock) -> float:
    table = torch.rand(size, device=clock.device)
    places = torch.randint(size, (n,), device=clock.device, dtype=torch.int32)
    return n / time_stages([lambda: table.index_select(0, places)], clock)[0].median * 1e3


def _settled_seconds(stages: Sequence[Callable[[], object]], clock: Clock) -> float:
    """Seconds of a round after those that compile, record and learn sizes, however long these took."""
    before, now = math.inf, _seconds(stages, clock)
    for done in range(1, MOST_WARM_UPS):
        if done >= WARM_UPS and min(before, now) >= SETTLED * max(before, now):
            break
        before, now = now, _seconds(stages, clock)
    return min(before, now)


def _repetitions(estimate: float, seconds: float) -> int:
    """How often work of `estimate` seconds is timed, where `seconds` are asked for."""
    filling, allowed = (int(time / max(estimate, 1e-6)) for time in (seconds, LONGER * seconds))
    fewest = FEWEST_REPETITIONS if estimate < SLOW_SECONDS else 1
    return min(max(filling, min(allowed, GOOD_REPETITIONS), fewest), MOST_REPETITIONS)


def _seconds(stages: Sequence[Callable[[], object]], clock: Clock) -> float:
    return sum(_read(_round(stages, clock), clock)) / 1e3


def _round(stages: Sequence[Callable[[], object]], clock: Clock) -> list:
    """Run the stages once; their boundaries, as events or as seconds."""
    if clock.device.type != "cuda":
        marks: list = [time.perf_counter()]
        for stage in stages:
            stage()
            marks.append(time.perf_counter())
        return marks
    if clock.flush:
        cache = torch.cuda.get_device_properties(clock.device).L2_cache_size
        torch.empty(2 * cache, dtype=torch.uint8, device=clock.device).fill_(1)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
    events[0].record()
    for stage, event in zip(stages, events[1:], strict=True):
        stage()
        event.record()
    return events


def _read(marks: list, clock: Clock) -> list[float]:
    """Milliseconds between the boundaries of a round."""
    pairs = list(itertools.pairwise(marks))
    if clock.device.type != "cuda":
        return [1e3 * (after - before) for before, after in pairs]
    marks[-1].synchronize()
    return [before.elapsed_time(after) for before, after in pairs]
