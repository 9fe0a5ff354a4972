"""Recorded functions: on a CPU the recorder is a stand-in that does the work again at every replay."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nerf_bridge import cuda_graphs
from nerf_bridge.cuda_graphs import make_room, record_differentiable, record_function


class Again:
    def __init__(self, work, results):
        self.work, self.results = work, results

    def replay(self):
        for mine, new in zip(tree_leaves(self.results), tree_leaves(self.work()), strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(new)


@pytest.fixture
def stand_in(monkeypatch):
    runs = []

    def record(work, pool=None):
        result = work()
        return Again(work, result), result

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "warm_up", lambda work, times: runs.append(times) or work())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return runs


def test_a_function_is_recorded_with_its_structure_and_answers_in_memory_of_its_own(stand_in):
    recording = record_function(lambda x, y: {"sum": x + y, "n": 3}, (torch.ones(2), torch.ones(2)), warm_ups=2)
    first = recording((torch.full((2,), 2.0), torch.ones(2)))
    second = recording((torch.zeros(2), torch.ones(2)))
    assert stand_in == [2] and first["n"] == 3
    assert torch.equal(first["sum"], torch.full((2,), 3.0)) and torch.equal(second["sum"], torch.ones(2))


class Graph:
    """Replays by doing `work`."""

    def __init__(self, work):
        self.replay = work


@pytest.mark.parametrize("learned", [False, True])
def test_gradients_reach_inputs_and_parameters(stand_in, learned):
    """Recorded, the graphs then exchanged for the same function and its gradient by hand."""
    weight, unused = torch.tensor([2.0, -1.0], requires_grad=True), torch.ones(3, requires_grad=True)

    def function(x, background):
        told = (background.detach() + weight.detach()).mean(1)
        return (x * weight + background).sin(), x.sum() > 0, told

    def inputs(seed):
        x, background = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(seed))
        return x, background.requires_grad_(learned)

    made = record_differentiable(function, inputs(0), (weight, unused))
    assert stand_in == [3]
    assert [grad is not None for grad in made.grad_inputs] == [False, learned, True, False]
    assert [grad is not None for grad in made.grad_outputs] == [True, False, False]
    x, background = (tensor.detach() for tensor in made.inputs)

    def forward():
        for mine, new in zip(made.outputs, function(x, background), strict=True):
            mine.copy_(new.detach())

    def backward():
        inner = made.grad_outputs[0] * (x * weight + background).cos().detach()
        made.grad_inputs[2].copy_((inner * x).sum(0))
        if learned:
            made.grad_inputs[1].copy_(inner)

    recording = replace(made, forward=Graph(forward), backward=Graph(backward))
    for seed in (1, 2):
        found = []
        for called in (function, recording):
            given = inputs(seed)
            weight.grad = unused.grad = None
            pictures, flag, told = called(*given)
            pictures.square().sum().backward()
            found.append((pictures.detach().clone(), flag.clone(), weight.grad.clone(), given[1].grad, told.clone()))
            assert not flag.requires_grad and not told.requires_grad and unused.grad is None
        plain, recorded = found
        assert torch.equal(plain[1], recorded[1]) and (plain[3] is None) == (recorded[3] is None) == (not learned)
        assert all(torch.allclose(a, b) for a, b in zip(plain, recorded, strict=True) if a is not None)


def test_the_oldest_make_room():
    kept = dict.fromkeys(range(5))
    make_room(kept, 3)
    assert list(kept) == [3, 4]


@pytest.mark.cuda
def test_on_a_gpu_another_thread_may_use_it_meanwhile():
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    x, stop, failures = torch.randn(8, 64, device="cuda"), threading.Event(), []

    def busy():
        own = torch.Generator("cuda")
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                while not stop.is_set():
                    torch.randn(1 << 22, device="cuda", generator=own).sum().item()
                    torch.cuda.empty_cache()  # so that the next one asks the driver
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(5):
            recording = record_differentiable(lambda given: ((given @ weight).tanh(),), (x,), (weight,))
            (grad,) = torch.autograd.grad(recording(x)[0].sum(), weight)
            (expected,) = torch.autograd.grad((x @ weight).tanh().sum(), weight)
            assert torch.allclose(grad, expected, atol=1e-4)
    finally:
        stop.set()
        thread.join()
    assert not failures


@pytest.mark.cuda
def test_after_a_recording_that_fails_random_numbers_go_on_where_they_were():
    torch.cuda.manual_seed(0)
    x, _ = torch.randn(8, device="cuda"), torch.randn(4, device="cuda")
    state = torch.cuda.get_rng_state()
    expected = torch.randn(8, device="cuda")
    torch.cuda.set_rng_state(state)
    for work in (lambda: torch.randn(4, device="cuda") + x.sum().item(), lambda: torch.randn(4, device="cuda") / [x]):
        with pytest.raises((RuntimeError, TypeError)):
            cuda_graphs.record(work)
        assert torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(torch.randn(8, device="cuda"), expected)
    graph, drawn = cuda_graphs.record(lambda: torch.randn(4, device="cuda"))
    graph.replay()
    first = drawn.clone()
    graph.replay()
    assert not torch.equal(first, drawn)


@pytest.mark.cuda
def test_after_a_recording_that_fails_memory_is_given_back():
    x = torch.ones(8, device="cuda")
    with pytest.raises(RuntimeError):
        cuda_graphs.record(lambda: (torch.zeros(1 << 20, device="cuda"), x.sum().item()))
    held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_reserved()
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before - (1 << 28)
