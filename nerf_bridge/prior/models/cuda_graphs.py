"""CUDA graphs: work recorded once and replayed without its launch cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
WARM_UPS = 2


def warm_up(work: Callable[[], object]) -> None:
    """Run `work` on a stream of its own, so that libraries set themselves up before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def record(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The graph of `work`, and its result: tensors that a replay fills.

    Other threads may go on using the GPU, as one that compiles does.

    Args:
        pool: the memory that the graph lives in, of torch.cuda.graph_pool_handle(); graphs that share it must be
            replayed in the order of their recording.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result
