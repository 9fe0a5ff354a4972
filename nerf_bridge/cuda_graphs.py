"""CUDA graphs: work recorded once and replayed without its launch cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Key = TypeVar("Key")
Result = TypeVar("Result")
WARM_UPS = 2
DIFFERENTIABLE_WARM_UPS = 3  # as make_graphed_callables has


def warm_up(work: Callable[[], object], times: int = WARM_UPS) -> None:
    """Run `work` on a stream of its own, so that libraries set themselves up before a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            work()
    torch.cuda.current_stream().wait_stream(stream)


def record(work: Callable[[], Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The graph of `work`, and its result: tensors that a replay fills.

    Other threads may go on using the GPU, as one that compiles does, but for drawing from its default generator.

    Args:
        pool: the memory that the graph lives in, of torch.cuda.graph_pool_handle(), None: its own; graphs that share it
            must be replayed in the order of their recording.

    Raises:
        RuntimeError: `work` cannot be recorded, as when it waits for the GPU or finds no memory. Stream, memory and
            random numbers are then as before; recordings made earlier that draw random numbers must be made anew.
    """
    graph, device = torch.cuda.CUDAGraph(), torch.cuda.current_device()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    here = torch.cuda.stream(torch.cuda.current_stream())  # a recording that fails does not come back to it by itself
    state = torch.cuda.default_generators[device].get_state()
    try:
        with here, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = work()
    except BaseException:
        _end_recording(device, pool)
        _make_generator_usable(device, state)
        raise
    return graph, result


def _end_recording(device: int, pool: Any) -> None:
    """Let the allocator of `device` go on as without a recording, which one that became invalid forgets to.

    Until then cached memory is neither given back nor taken again. Pinned memory has no such call.
    """
    with suppress(RuntimeError):  # where the recording did end
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def _make_generator_usable(device: int, state: Tensor) -> None:
    """Bring the default generator of `device` back to `state`, in place of one that takes itself for recorded."""
    generator = torch.cuda.default_generators[device]
    try:
        torch.rand(1, device=generator.device)
        generator.set_state(state)
    except RuntimeError:  # which torch 2.11 and 2.12 raise at every draw from then on
        usable = torch.Generator(generator.device)
        usable.set_state(state)
        generator.graphsafe_set_state(usable)


@dataclass(frozen=True)
class Recording:
    """A recorded function of tensors.

    What the function reads besides its inputs, weights above all, must stay where it is.

    Attributes:
        graph: its work.
        inputs: the tensors that the graph reads.
        answer: what it fills: a tensor, or any structure with tensors in it.
    """

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    answer: Any

    def __call__(self, given: Sequence[Tensor]) -> Any:
        """The function of `given`, in memory of its own."""
        for mine, theirs in zip(self.inputs, given, strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return tree_map_only(Tensor, torch.clone, self.answer)


@torch.no_grad()
def record_function(function: Callable[..., Any], given: Sequence[Tensor], warm_ups: int) -> Recording:
    """The recording of `function`, without gradients, for tensors like `given`; it has run `warm_ups` times before.

    Raises:
        RuntimeError: as `record`.
    """
    inputs = tuple(tensor.detach().clone() for tensor in given)
    if warm_ups:
        warm_up(lambda: function(*inputs), warm_ups)
    graph, answer = record(lambda: function(*inputs))
    return Recording(graph, inputs, answer)


@dataclass(frozen=True)
class DifferentiableRecording:
    """A recorded function of tensors with its gradient, once each time.

    Attributes:
        inputs: the tensors that the forward pass reads, copied from what is given.
        parameters: what it reads besides and has gradients for, where it is.
        outputs: what the forward pass fills.
        grad_outputs: what the backward pass reads; None where an output has no gradient.
        grad_inputs: what it fills, of inputs and parameters; None where there is no gradient.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    grad_outputs: tuple[Tensor | None, ...]
    grad_inputs: tuple[Tensor | None, ...]

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The function of `given`, differentiable once; in memory that the next call overwrites."""
        return _Replay.apply(self, *given, *self.parameters)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: DifferentiableRecording, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.recording = recording
        for mine, theirs in zip(recording.inputs, given, strict=False):  # after them come the parameters
            mine.detach().copy_(theirs)
        recording.forward.replay()
        outputs = tuple(output.detach() for output in recording.outputs)
        pairs = zip(outputs, recording.grad_outputs, strict=True)
        ctx.mark_non_differentiable(*(output for output, grad in pairs if grad is None))
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        recording: DifferentiableRecording = ctx.recording
        for mine, theirs in zip(recording.grad_outputs, grads, strict=True):
            if mine is not None:
                mine.copy_(theirs)
        recording.backward.replay()
        return None, *(None if grad is None else grad.detach() for grad in recording.grad_inputs)


class _End(torch.autograd.Function):
    """A scalar with the given gradient `grad` for `output`: torch.autograd.grad imports sympy for gradients that it is
    given itself, which takes up to two seconds."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return output.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def record_differentiable(
    function: Callable[..., tuple[Tensor, ...]], given: Sequence[Tensor], parameters: Sequence[Tensor]
) -> DifferentiableRecording:
    """The recording of `function` for tensors like `given`, with the gradient of those that want one.

    As torch.cuda.make_graphed_callables, but other threads may go on using the GPU.

    Raises:
        RuntimeError: as `record`.
    """
    inputs = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in given)
    sources = (*inputs, *parameters)
    wanted = [source for source in sources if source.requires_grad]

    def gradients(outputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        ends = [_End.apply(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
        return torch.autograd.grad(ends, wanted, allow_unused=True)

    def like(outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(torch.zeros_like(output) if output.requires_grad else None for output in outputs)

    def whole() -> None:
        outputs = function(*inputs)
        gradients(outputs, like(outputs))

    warm_up(whole, DIFFERENTIABLE_WARM_UPS)
    pool = torch.cuda.graph_pool_handle()  # of both, so that the second can take the memory of what the first kept
    forward, outputs = record(lambda: function(*inputs), pool)
    grad_outputs = like(outputs)
    backward, found = record(lambda: gradients(outputs, grad_outputs), pool)
    grads = iter(found)
    grad_inputs = tuple(next(grads) if source.requires_grad else None for source in sources)
    outputs = tuple(output.detach() for output in outputs)
    return DifferentiableRecording(forward, backward, inputs, tuple(parameters), outputs, grad_outputs, grad_inputs)


def make_room(recordings: dict[Key, Any], most: int) -> None:
    """Drop the oldest of `recordings` until one more makes at most `most`."""
    while len(recordings) >= most:
        del recordings[next(iter(recordings))]
