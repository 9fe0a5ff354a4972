"""Adam for a hash grid: one kernel a tensor, which passes over entries that no sample touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nerf_bridge.ops.backend import prepared_kernel

MOMENTS = ("exp_avg", "exp_avg_sq")


class SkippingAdam:
    """Adam (Kingma & Ba 2015) whose groups may set `skip`: numbers with a gradient of exactly zero stay as they are.

    Most entries of a fine hash grid get no gradient at a step, and Adam would move them by their old moments all the
    same. Skipped numbers keep value and moments: the moments are averages over the steps that touched the number, not
    over time, while the bias corrections count all steps (as the sparse updates of Mueller et al. 2022). Without `skip`
    this is Adam. Groups and state have the names and meanings of torch's, but this is no `torch.optim.Optimizer`: to
    make one imports torch's compiler, which takes seconds.

    Attributes:
        param_groups: one {"params", "lr", "betas", "eps", "weight_decay", "skip"} a group; "lr" may be changed.
        state: for each parameter that had a gradient {"step" (no dimensions, CPU), "exp_avg", "exp_avg_sq"}.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        backend: str,
        weight_decay: float = 0.0,
    ) -> None:
        """Take `groups` of {"params", "lr", "skip"}; `backend` is "cuda", "cpu" or "torch"; the decay is AdamW's."""
        same = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups = [{"skip": False, **same, **group, "params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.backend = backend

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, group after group."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state by the parameters' places in the list of all: {"state": {place: {name: tensor}}}; not copied."""
        return {"state": {i: dict(self.state[p]) for i, p in enumerate(self.parameters) if p in self.state}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of `state_dict`, its moments to the parameters' devices."""
        parameters = self.parameters
        self.state = {
            parameters[i]: {k: v if k == "step" else v.to(parameters[i]) for k, v in entries.items()}
            for i, entries in state_dict["state"].items()
        }

    def step(self) -> None:
        """One step on all parameters that have a gradient."""
        self.prepared()()

    @torch.no_grad()
    def prepared(self) -> Callable[[], None]:
        """What makes one step on all parameters that have a gradient; until it is called, these must stay as they are.

        All that takes memory is done before, new moments of zero included: memory that runs out leaves nothing
        half-done, and a step that is not made leaves the parameters as they were.
        """
        moving = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, _, _ in moving:
            if parameter not in self.state:
                moments = {name: torch.zeros_like(parameter) for name in MOMENTS}
                self.state[parameter] = {"step": torch.zeros(())} | moments
        changes = [self._prepared(parameter, gradient.contiguous(), group) for parameter, gradient, group in moving]

        @torch.no_grad()
        def step() -> None:
            for change in changes:  # with nothing between them: a GPU is done with a small one before the next call
                change()
            for parameter, _, _ in moving:
                self.state[parameter]["step"] += 1
                torch.autograd.graph.increment_version(parameter)

        return step

    def _prepared(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Callable[[], None]:
        """What changes `parameter` and its moments, and takes no memory for it."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        step, moments = float(state["step"]) + 1, (state["exp_avg"], state["exp_avg_sq"])
        rate, root = float(group["lr"]) / (1 - beta1**step), math.sqrt(1 - beta2**step)
        keep, skip = 1.0 - float(group["lr"]) * float(group["weight_decay"]), bool(group["skip"])
        numbers = (rate, root, keep, float(beta1), float(beta2), float(group["eps"]))
        tensors = (gradient, parameter, *moments)
        aligned = all(tensor.data_ptr() % 16 == 0 for tensor in tensors)  # the GPU reads four numbers at a time
        if self.backend != "torch" and aligned:
            return prepared_kernel(self.backend, "adam", *tensors, gradient.numel(), *numbers, skip)
        new = adam_torch(*tensors, *numbers, skip=skip)

        def change() -> None:
            for mine, theirs in zip((parameter, *moments), new, strict=True):
                mine.copy_(theirs)

        return change


def adam_torch(
    gradient: Tensor,
    value: Tensor,
    mean: Tensor,
    square: Tensor,
    rate: float,
    root: float,
    keep: float,
    beta1: float,
    beta2: float,
    eps: float,
    skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference of the kernel in plain torch operations: what `value`, `mean` and `square` become.

    Args:
        gradient, value, mean, square: of one shape.
        rate: learning rate / (1 - beta1^step).
        root: sqrt(1 - beta2^step).
        keep: 1 - learning rate * weight decay.
        beta1, beta2, eps: of Adam.
        skip: leave numbers without gradient as they are.
    """
    moved = torch.ones_like(gradient, dtype=torch.bool) if not skip else gradient != 0
    new_mean = mean + (1 - beta1) * (gradient - mean)
    new_square = beta2 * square + (1 - beta2) * gradient * gradient
    new_value = keep * value - rate * new_mean / (new_square.sqrt() / root + eps)
    pairs = ((new_value, value), (new_mean, mean), (new_square, square))
    new_value, new_mean, new_square = (torch.where(moved, new, old) for new, old in pairs)
    return new_value, new_mean, new_square
