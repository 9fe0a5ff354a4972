"""Adam that may skip: without skipping it is torch's, with it untouched numbers stay as they are."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from nerf_bridge.ops.adam import SkippingAdam

BACKENDS = [
    "torch",
    pytest.param("cpu", marks=pytest.mark.compiler),
    pytest.param("cuda", marks=pytest.mark.cuda),
]


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"


def gradients(n_steps: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for _ in range(n_steps)]
    return [g * (torch.rand(shape, generator=generator) < 0.4) for g in drawn]


def run(optimiser_of, n_steps: int, device: str, shape: tuple[int, ...] = (37, 3)) -> torch.Tensor:
    parameter = torch.linspace(-1, 1, 111).view(shape).clone().to(device).requires_grad_()
    optimiser = optimiser_of([parameter])
    for gradient in gradients(n_steps, shape):
        parameter.grad = gradient.to(device)
        optimiser.step()
    return parameter.detach().cpu()


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_skipping_it_is_torchs_adam(backend):
    def ours(parameters):
        return SkippingAdam([{"params": parameters, "lr": 0.03, "skip": False}], (0.9, 0.99), 1e-6, backend)

    expected = run(lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.9, 0.99), eps=1e-6), 20, "cpu")
    assert torch.allclose(run(ours, 20, device_of(backend)), expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_decay_is_that_of_adamw(backend):
    def ours(parameters):
        groups = [{"params": parameters, "lr": 0.03, "skip": False}]
        return SkippingAdam(groups, (0.9, 0.99), 1e-6, backend, weight_decay=0.2)

    expected = run(lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2), 20, "cpu")
    assert torch.allclose(run(ours, 20, device_of(backend)), expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_number_moves_by_the_gradients_that_touched_it(backend):
    def ours(parameters):
        return SkippingAdam([{"params": parameters, "lr": 0.03, "skip": True}], (0.9, 0.99), 1e-6, backend)

    value = torch.linspace(-1, 1, 111, dtype=torch.float64).view(37, 3)
    mean, square = torch.zeros_like(value), torch.zeros_like(value)
    for step, gradient in enumerate(gradients(20, (37, 3)), start=1):
        for i in torch.nonzero(gradient).tolist():
            g = float(gradient[tuple(i)])
            mean[tuple(i)] = 0.9 * mean[tuple(i)] + 0.1 * g
            square[tuple(i)] = 0.99 * square[tuple(i)] + 0.01 * g * g
            corrected = mean[tuple(i)] / (1 - 0.9**step), square[tuple(i)] / (1 - 0.99**step)
            value[tuple(i)] -= 0.03 * corrected[0] / (corrected[1].sqrt() + 1e-6)
    assert torch.allclose(run(ours, 20, device_of(backend)).double(), value, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_goes_through_a_state_dict(backend):
    def made(parameters):
        return SkippingAdam([{"params": parameters, "lr": 0.03, "skip": True}], (0.9, 0.99), 1e-6, backend)

    device, parts = device_of(backend), gradients(8, (37, 3))
    whole = run(made, 8, device)
    parameter = torch.linspace(-1, 1, 111).view(37, 3).clone().to(device).requires_grad_()
    optimiser = made([parameter])
    for k, gradient in enumerate(parts):
        if k == 4:
            state = optimiser.state_dict()
            optimiser = made([parameter])
            optimiser.load_state_dict(state)
        parameter.grad = gradient.to(device)
        optimiser.step()
    assert torch.equal(parameter.detach().cpu(), whole)


def test_a_parameter_without_gradient_has_no_state():
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimiser = SkippingAdam([{"params": parameters, "lr": 1.0}], (0.9, 0.99), 1e-6, "torch")
    parameters[1].grad = torch.ones(2)
    optimiser.step()
    assert list(optimiser.state_dict()["state"]) == [1]
    assert torch.equal(parameters[0].detach(), torch.zeros(2)) and bool((parameters[1] < 0).all())
    optimiser.zero_grad()
    assert parameters[1].grad is None


@pytest.mark.parametrize("lacking", range(8))
def test_memory_that_runs_out_in_the_middle_of_a_step_changes_nothing(lacking, monkeypatch):
    """Also after the first of two parameters is computed: at every place where a step takes memory for a `where`."""
    parameters = [torch.ones(5, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimiser = SkippingAdam([{"params": parameters, "lr": 0.1, "skip": True}], (0.9, 0.99), 1e-6, "torch")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    tensors = [p.detach() for p in parameters] + [t for state in optimiser.state.values() for t in state.values()]
    before, taken, where = [tensor.clone() for tensor in tensors], itertools.count(), torch.where

    def full(*arguments):
        if next(taken) == lacking:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return where(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "where", full)
        if lacking < 6:
            with pytest.raises(torch.OutOfMemoryError):
                optimiser.step()
        else:
            optimiser.step()
    same = all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    assert same == (lacking < 6)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.compiler)])
def test_a_prepared_step_moves_nothing_until_it_is_made_and_then_what_a_step_does(backend):
    ends = []
    for prepared in (False, True):
        parameter = torch.linspace(0, 1, 4096, requires_grad=True)
        optimiser = SkippingAdam([{"params": [parameter], "lr": 0.1}], (0.9, 0.99), 1e-6, backend)
        for number in range(3):
            gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(number)).T
            parameter.grad = gradient.reshape(4096)
            if prepared:
                before, move = parameter.detach().clone(), optimiser.prepared()
                del gradient  # what was made of it lives on in `move`
                torch.rand(1 << 16)
                assert torch.equal(parameter, before) and optimiser.state[parameter]["step"] == number
                move()
            else:
                optimiser.step()
        ends.append(parameter.detach().clone())
    assert torch.equal(*ends) and not torch.equal(ends[0], torch.linspace(0, 1, 4096))


def test_a_run_does_not_wait_for_torchs_compiler():
    program = """
import sys, torch
import nerf_bridge.pipeline
from nerf_bridge.ops.adam import SkippingAdam
p = torch.zeros(4, requires_grad=True)
o = SkippingAdam([{"params": [p], "lr": 1.0}], (0.9, 0.99), 1e-6, "torch")
p.grad = torch.ones(4)
o.step(); o.zero_grad(); o.load_state_dict(o.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.compiler
def test_a_graph_that_saved_the_parameter_knows_that_it_has_changed():
    parameter = torch.ones(8, requires_grad=True)
    loss = (parameter * parameter).sum()
    parameter.grad = torch.ones(8)
    SkippingAdam([{"params": [parameter], "lr": 0.1}], (0.9, 0.99), 1e-6, "cpu").step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.compiler
def test_halves_are_refused():
    parameter = torch.ones(8, dtype=torch.half, requires_grad=True)
    parameter.grad = torch.ones(8, dtype=torch.half)
    with pytest.raises(TypeError, match="types do not fit: torch.float16"):
        SkippingAdam([{"params": [parameter], "lr": 0.1}], (0.9, 0.99), 1e-6, "cpu").step()
