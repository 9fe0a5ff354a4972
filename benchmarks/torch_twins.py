"""Hash grid, network and field in plain torch operations on all levels at once: what torch.compile is given.

The package's own twin goes level by level, which is easier to read, but a graph of 16 times 8 gathers takes minutes to
compile. This one gathers through `index_select`, whose backward pass adds up with atomics instead of sorting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.bench_inputs import GRID, N_OUTPUTS, WIDTH
from nerf_bridge.ops.hash_encoding import level_rows
from nerf_bridge.scene.field import HashGridField

PRIMES = (1, 2654435761, 805459861)
CORNERS = tuple((c & 1, c >> 1 & 1, c >> 2) for c in range(8))


@dataclass(frozen=True)
class Network:
    """A hash grid and the network behind it: rows of the grid's levels (`level_rows`), and the parameters."""

    levels: Tensor
    table: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The parameters."""
        return (self.table, self.hidden_weight, self.hidden_bias, self.out_weight, self.out_bias)


def random_network(device: torch.device) -> Network:
    """Parameters of about the size that training gives them."""
    n_inputs = GRID.n_levels * GRID.n_features
    shapes = ((GRID.n_entries, GRID.n_features), (WIDTH, n_inputs), (WIDTH,), (N_OUTPUTS, WIDTH), (N_OUTPUTS,))
    half_widths = (0.1, n_inputs**-0.5, 0.1, WIDTH**-0.5, 0.1)
    sized = zip(shapes, half_widths, strict=True)
    parameters = (((2 * torch.rand(shape, device=device) - 1) * half).requires_grad_() for shape, half in sized)
    return Network(level_rows(GRID, device), *parameters)


def encode_levels(points: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    """Features [n, L * F] of points [n, 3] of the unit cube; the same function as `hash_encode`."""
    resolution, offset, size, dense = levels.unbind(1)
    place = points.clamp(0, 1)[:, :, None] * resolution  # [n, 3, L]
    low = torch.minimum(place.long(), resolution - 1)
    fraction = place - low
    side = resolution + 1
    value: Tensor | float = 0.0
    for corner in CORNERS:
        x, y, z = (low[:, axis] + bit for axis, bit in enumerate(corner))
        hashed = (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) & (size - 1)
        entry = offset + torch.where(dense > 0, x + side * (y + side * z), hashed)
        a, b, c = (fraction[:, axis] if bit else 1 - fraction[:, axis] for axis, bit in enumerate(corner))
        rows = table.index_select(0, entry.flatten()).view(*entry.shape, table.shape[1])
        value = value + (a * b * c)[..., None] * rows
    return value.flatten(1)


def network_torch(points: Tensor, network: Network) -> Tensor:
    """Outputs [n, 4] in float32."""
    features = encode_levels(points, network.levels, network.table)
    hidden = nn.functional.linear(features, network.hidden_weight, network.hidden_bias)
    return nn.functional.linear(hidden.relu(), network.out_weight, network.out_bias)


network_compiled = torch.compile(network_torch, dynamic=True)  # once for all sizes


class TorchField:
    """What a `HashGridField` of the shape GRID is, on its parameters, in plain torch operations."""

    def __init__(self, field: HashGridField, compiled: bool) -> None:
        self.run = network_compiled if compiled else network_torch
        weights = (field.hidden_weight, field.hidden_bias, field.out_weight, field.out_bias)
        self.network = Network(level_rows(field.spec, field.table.device), field.table, *weights)
        self.activation = field.activation

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density [n] and albedo [n, 3] at points [n, 3] of the box."""
        raw = self.raw(points)
        return self.activation(raw[:, 0], points), torch.sigmoid(raw[:, 1:])

    def raw(self, points: Tensor, packed_info: Tensor | None = None) -> Tensor:
        """The network's four outputs [n, 4] at points [n, 3] of the box; the order of the points is of no use to it."""
        return self.run(0.5 * points + 0.5, self.network)

    def normals(self, points: Tensor) -> Tensor:
        """Not needed by the renders that are timed."""
        raise NotImplementedError
