"""A network's forward pass from CUDA graphs: one launch in place of hundreds, which take longer than their work."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from nerf_bridge.cuda_graphs import Recording, make_room, record_function
from nerf_bridge.errors import one_line

logger = logging.getLogger(__name__)

MOST_GRAPHS = 4  # kept at a time; a run needs one for each number of prompts and views that it asks about

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]


class Replayed:
    """A function of tensors that needs no gradient, on a GPU replayed from a graph for each shape of its inputs.

    The first call with new shapes runs as it is, so that libraries choose and load their kernels, and so that shapes
    which come once cost nothing; the second captures the graph. On a CPU, and where the capture fails (logged once),
    every call runs as it is. What the function reads besides its inputs, weights above all, must stay where it is.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """`function` takes tensors on one device and returns one; it must not wait for the GPU."""
        self._function = function
        self._seen: set[Shapes] = set()
        self._captured: dict[Shapes, Recording] = {}
        self._fails = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of `inputs`, in memory of its own."""
        if inputs[0].device.type != "cuda" or self._fails or torch.cuda.is_current_stream_capturing():
            return self._function(*inputs)
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        if shapes not in self._seen:
            self._seen.add(shapes)
            return self._function(*inputs)
        captured = self._captured.get(shapes) or self._capture(shapes, inputs)
        return self._function(*inputs) if captured is None else captured(inputs)

    def _capture(self, shapes: Shapes, inputs: tuple[Tensor, ...]) -> Recording | None:
        """The graph for `inputs`, kept in place of the oldest; None (logged) when it cannot be made."""
        make_room(self._captured, MOST_GRAPHS)
        try:
            self._captured[shapes] = record_function(self._function, inputs, warm_ups=0)
        except RuntimeError as error:
            self._fails = True
            reason = one_line(error)
            logger.warning("the prior runs without CUDA graphs, slower: the capture failed (%s)", reason)
            return None
        return self._captured[shapes]
