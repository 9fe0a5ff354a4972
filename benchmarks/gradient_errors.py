"""How far the gradients of grid and network are from float64's on the same numbers, none of them rounded beforehand.

Where a unit of the hidden layer has an input of almost zero, rounding switches it on here and leaves it off there, and
the gradient of that point jumps: float32 has this too. So the errors are told twice, of all points and of those that
have no unit so near its bend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.bench_inputs import N_OUTPUTS
from benchmarks.torch_twins import Network, encode_levels, network_torch

CHUNK = 1 << 15  # points that the float64 twin takes at a time, half a GiB
NEAR = 1e-4  # a unit whose input is smaller may have the other sign in halves: these are off by half as much at most
Check = tuple[str, Callable[[], dict[str, float]]]  # the unit, and what finds the figures by implementation, ours first


def gradient_checks(points: Tensor, network: Network, runs: dict[str, Callable[[], Tensor]]) -> dict[str, Check]:
    """Largest difference from the float64 twin's gradient over its largest number, in percent, for every run.

    Args:
        points: [n, 3] of the unit cube.
        network: whose gradients.
        runs: what makes the outputs [n, o] of `points` from the leaves of `network`, by name.
    """

    @functools.cache
    def errors(away: bool) -> dict[str, tuple[float, float]]:
        probe = torch.randn(len(points), N_OUTPUTS, device=points.device)
        if away:
            probe[near_a_bend(points, network)] = 0
        exact = exact_gradients(points, network, probe)
        return {name: compared(run(), network, probe, exact) for name, run in runs.items()}

    def check(place: int, away: bool) -> Check:
        return "%", lambda: {name: found[place] for name, found in errors(away).items()}

    return {
        f"{what} gradient error{', away from bends' if away else ''}": check(place, away)
        for place, what in enumerate(("table", "hidden weights"))
        for away in (False, True)
    }


def in_float64(network: Network) -> Network:
    """The same numbers, differentiable by themselves."""
    return Network(network.levels, *(leaf.detach().double().requires_grad_() for leaf in network.leaves))


@torch.no_grad()
def near_a_bend(points: Tensor, network: Network) -> Tensor:
    """Whether a hidden unit's input at a point is nearer to zero than NEAR, bool [n]."""
    exact, found = in_float64(network), []
    for some in points.split(CHUNK):
        features = encode_levels(some.double(), exact.levels, exact.table)
        found.append((nn.functional.linear(features, exact.hidden_weight, exact.hidden_bias).abs() < NEAR).any(1))
    return torch.cat(found)


def exact_gradients(points: Tensor, network: Network, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the sum of outputs times `probe` [n, o] over table and hidden weights, in float64."""
    exact = in_float64(network)
    for some, over in zip(points.split(CHUNK), probe.split(CHUNK), strict=True):
        network_torch(some.double(), exact).backward(over.double())
    assert exact.table.grad is not None and exact.hidden_weight.grad is not None
    return exact.table.grad, exact.hidden_weight.grad


def compared(out: Tensor, network: Network, probe: Tensor, exact: Sequence[Tensor]) -> tuple[float, float]:
    """The errors in percent of the gradients that `out` has over table and hidden weights."""
    got = torch.autograd.grad(out, (network.table, network.hidden_weight), probe)
    table, hidden = (
        100 * float((one.double() - other).abs().max() / other.abs().max())
        for one, other in zip(got, exact, strict=True)
    )
    return table, hidden
