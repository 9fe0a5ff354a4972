"""A function replayed from CUDA graphs: where it is not, where it is, and that it stays the same function."""

from __future__ import annotations

import logging

import pytest
import torch

from nerf_bridge import cuda_graphs
from nerf_bridge.prior import replay
from nerf_bridge.prior.replay import MOST_GRAPHS, Replayed


class Counting:
    """x @ weight, doubled; counts its calls."""

    def __init__(self, device: str) -> None:
        self.weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).to(device)
        self.calls = 0

    def __call__(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (x @ self.weight).sin() * scale[:, None]


def drawn(n: int, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator).to(device), torch.randn(n, generator=generator).to(device)


def test_on_a_cpu_every_call_runs_as_it_is():
    function = Counting("cpu")
    replayed = Replayed(function)
    for seed in range(4):
        inputs = drawn(3, "cpu", seed)
        assert torch.equal(replayed(*inputs), function(*inputs))
    assert function.calls == 8


class FakeGraph:
    """Stands for a CUDA graph: replaying runs the function again on the captured places."""

    def replay(self) -> None:
        self.replays = getattr(self, "replays", 0) + 1


class OnGpu:
    """Just enough of a tensor on a GPU."""

    device, dtype = torch.device("cuda"), torch.float32

    def __init__(self, *shape: int) -> None:
        self.shape, self.copied = shape, 0

    def detach(self):
        return self

    def clone(self):
        return OnGpu(*self.shape)

    def copy_(self, other):
        assert other.shape == self.shape
        self.copied += 1


@pytest.fixture
def calls(monkeypatch):
    """Shapes with which the function really ran, where capturing is only pretended."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda_graphs, "record", lambda work: (FakeGraph(), work()))
    return []


def test_a_graph_is_made_at_the_second_call_of_a_shape_and_then_replayed(calls):
    replayed = Replayed(lambda x: calls.append(x.shape) or OnGpu(1))
    for n in (2, 2, 2, 3, 2, 3, 3):
        replayed(OnGpu(n))
    assert calls == [(2,), (2,), (3,), (3,)]  # each as it is, and once more for the capture


def test_the_number_of_graphs_is_bounded(calls):
    replayed = Replayed(lambda x: calls.append(x.shape) or OnGpu(1))
    for n in range(MOST_GRAPHS + 1):
        for _ in range(3):
            replayed(OnGpu(n))
    assert len(replayed._captured) == MOST_GRAPHS
    replayed(OnGpu(1))
    assert len(calls) == 2 * (MOST_GRAPHS + 1)
    replayed(OnGpu(0))  # the oldest had to go
    assert len(calls) == 2 * (MOST_GRAPHS + 1) + 1


def test_a_capture_that_fails_is_told_once_and_the_calls_go_on(calls, monkeypatch, caplog):
    def refuse(work):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graphs, "record", refuse)
    replayed = Replayed(lambda x: calls.append(x.shape) or OnGpu(1))
    with caplog.at_level(logging.WARNING, replay.logger.name):
        for _ in range(4):
            replayed(OnGpu(2))
    assert len(calls) == 4
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing" in record.getMessage()


@pytest.mark.cuda
def test_a_replay_is_the_function_and_sees_weights_that_change_in_place():
    function = Counting("cuda")
    replayed = Replayed(function)
    for seed in range(6):
        inputs = drawn(3, "cuda", seed)
        if seed == 4:
            function.weight.mul_(-2)
        kept = replayed(*inputs)
        expected = function(*inputs)
        replayed(*drawn(3, "cuda", 99))  # must not write into what was given out
        assert torch.allclose(kept, expected, atol=1e-6)
    assert function.calls == 6 + 2  # our own, one as it is and one for the capture


@pytest.mark.cuda
def test_a_function_that_waits_for_the_gpu_runs_without_a_graph():
    replayed = Replayed(lambda x: x * float(x.sum()))
    x = torch.arange(3.0, device="cuda")
    for _ in range(4):
        assert torch.equal(replayed(x), 3 * x)
    assert torch.equal(
        torch.ones(2, device="cuda") + 1, torch.full((2,), 2.0, device="cuda")
    )  # the GPU is still usable
