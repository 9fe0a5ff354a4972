"""The field: density and albedo at any point of the box [-1, 1]^3, from a multiresolution hash grid and a small MLP."""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops.decoder import decode
from nerf_bridge.ops.field_composite import DensityActivation
from nerf_bridge.ops.grid_mlp import can_run, grid_mlp
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode, hash_encode_point_gradient

TABLE_INIT = 1e-4  # half-width of the uniform distribution of the table's entries at the start (Mueller et al. 2022)
BOX_SLACK = 1e-5  # a midpoint on the box's face may land this far outside by rounding
MIN_GRADIENT_SQUARED = 1e-8  # keeps the normal, and its derivative, finite where the density is flat


class Field(Protocol):
    """What the renderer needs of a scene."""

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(sigma [n], albedo [n, 3] in 0..1) at points [n, 3] of the box [-1, 1]^3."""

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals [n, 3] at points [n, 3]."""


class RawField(Protocol):
    """A field whose activations the renderer can apply itself, together with the compositing."""

    activation: DensityActivation

    def raw(self, points: Tensor, packed_info: Tensor | None = None) -> Tensor:
        """Density and three albedo logits [n, 4] at points [n, 3], before their activations.

        `packed_info` [n_rays, 2] tells which of the points are samples of one ray, where that is known.
        """


def is_raw(field: object) -> TypeGuard[RawField]:
    """Whether `field` is a `RawField`; asking a protocol takes a hundred times as long."""
    return hasattr(field, "raw")


class HashGridField(nn.Module):
    """Hash grid (Mueller et al. 2022) -> hidden layer with ReLU -> raw density and three albedo logits.

    sigma = activation(raw + blob), blob = blob_scale * (1 - |x| / blob_radius) (Magic3D, Lin et al. 2023, sec. 3.2),
    albedo = sigmoid(logits). At the start the raw outputs are near zero: a grey ball with soft edges. Everything is
    differentiable in the parameters; density and albedo in the points too (almost everywhere).
    """

    def __init__(self, settings: FieldConfig, seed: int, backend: str) -> None:
        """Make the field on the CPU; move it with `.to(device)`.

        Args:
            settings: sizes, activation and starting blob.
            seed: of the initial values, drawn from a generator of the field's own: the same on every device.
            backend: 'cuda', 'cpu' or 'torch', whose hash encoding to use.
        """
        super().__init__()
        self.settings = settings
        self.backend = backend
        self.spec = HashGridSpec(
            n_levels=settings.n_levels,
            n_features=settings.n_features,
            log2_table_size=settings.log2_table_size,
            base_resolution=settings.base_resolution,
            finest_resolution=settings.finest_resolution,
        )
        self.activation = DensityActivation(settings.density_activation, settings.blob_scale, settings.blob_radius)
        generator = torch.Generator().manual_seed(seed)
        n_inputs, width = settings.n_levels * settings.n_features, settings.hidden_width
        self.table = nn.Parameter(_uniform((self.spec.n_entries, settings.n_features), TABLE_INIT, generator))
        self.hidden_weight = nn.Parameter(_uniform((width, n_inputs), (6.0 / n_inputs) ** 0.5, generator))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.out_weight = nn.Parameter(_uniform((4, width), width**-0.5, generator))
        self.out_bias = nn.Parameter(torch.zeros(4))

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density and albedo.

        Args:
            points: [n, 3] in world space; n may be 0.

        Returns:
            sigma [n] >= 0, per unit of length, 0 outside the box; albedo [n, 3] in 0..1.
        """
        raw = self.raw(points)
        return self._sigma(raw[:, 0], points), torch.sigmoid(raw[:, 1:])

    def raw(self, points: Tensor, packed_info: Tensor | None = None) -> Tensor:
        """Density and three albedo logits [n, 4] at points [n, 3], before blob and activations (`field_composite`).

        `packed_info` [n_rays, 2]: which of the points are samples of one ray (`Samples`); it makes a GPU faster.
        """
        return self._raw(points, 4, packed_info)

    def density(self, points: Tensor) -> Tensor:
        """sigma [n] at points [n, 3]: the first output of `forward` without the cost of the second."""
        return self._sigma(self._raw(points, 1)[:, 0], points)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals: minus the direction in which the density grows, -grad sigma / |grad sigma|.

        The gradient is the exact one (one encoding and its derivative along the points; central differences would take
        six), of the density before its activation: that is monotonic, so that the direction is the same, and stays
        right where sigma itself underflows or saturates. Differentiable once in the parameters where autograd is on,
        so that shading can shape the geometry; not in the points.

        Args:
            points: [n, 3] in the box.

        Returns:
            [n, 3] of unit length, shorter only where the density is flat (zero where it is constant).
        """
        place = 0.5 * points.detach() + 0.5
        with torch.no_grad():  # 1 where the ReLU lets through, else 0: constant almost everywhere
            features = hash_encode(place, self.table, self.spec, self.backend)
            passed = nn.functional.linear(features, self.hidden_weight, self.hidden_bias).relu_().sign_()
        grad_features = (passed * self.out_weight[0]) @ self.hidden_weight  # d raw / d features
        uphill = 0.5 * hash_encode_point_gradient(place, self.table, grad_features, self.spec, self.backend)
        outward = points * torch.rsqrt((points * points).sum(-1, keepdim=True) + MIN_GRADIENT_SQUARED)
        downhill = (self.settings.blob_scale / self.settings.blob_radius) * outward - uphill
        return downhill * torch.rsqrt((downhill * downhill).sum(-1, keepdim=True) + MIN_GRADIENT_SQUARED)

    def _raw(self, points: Tensor, n_outputs: int, packed_info: Tensor | None = None) -> Tensor:
        """The decoder's first `n_outputs` outputs [n, n_outputs]: density, then albedo, before their activations."""
        last: tuple[Tensor, Tensor] = (self.out_weight, self.out_bias)
        if n_outputs < 4:
            last = (self.out_weight[:n_outputs], self.out_bias[:n_outputs])
        network = (self.hidden_weight, self.hidden_bias, *last)
        if self._in_half_precision(points):
            return grid_mlp(points, self.table, *network, self.spec, packed_info, centred=True)
        place = 0.5 * points + 0.5
        return decode(hash_encode(place, self.table, self.spec, self.backend), *network, self.backend)

    def _in_half_precision(self, points: Tensor) -> bool:
        """Whether the tensor-core kernels do this: where they can, and nothing exact nor points gradients are asked."""
        exact = self.settings.precision == "float32" or torch.are_deterministic_algorithms_enabled()
        if exact or points.requires_grad:
            return False
        return can_run(self.spec, self.settings.hidden_width, 4, self.backend, points.device)

    def _sigma(self, raw: Tensor, points: Tensor) -> Tensor:
        return self.activation(raw, points) * (points.abs().amax(-1) <= 1.0 + BOX_SLACK)


def _uniform(shape: tuple[int, int], half_width: float, generator: torch.Generator) -> Tensor:
    return (2.0 * torch.rand(shape, generator=generator) - 1.0) * half_width
