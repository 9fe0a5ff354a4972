"""What is timed: for every case our version, the others on the same tensors, floors and sizes.

Floors are the larger of two times: fewest bytes (every input read once, every output written once) over the copy's
bandwidth, and operations over the matrix product's rate, both as measured in this run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import nerfacc_versions
from benchmarks.bench_inputs import (
    GRID,
    N_OUTPUTS,
    STEP,
    WIDTH,
    ball_sigma,
    middles,
    random_cameras,
    shell_occupancy,
    shell_samples,
)
from benchmarks.gradient_errors import Check, gradient_checks
from benchmarks.timing import Ceilings
from benchmarks.torch_twins import Network, network_compiled, network_torch, random_network
from nerf_bridge.ops import peers
from nerf_bridge.ops.adam import SkippingAdam
from nerf_bridge.ops.composite import composite, composite_torch
from nerf_bridge.ops.decoder import decode
from nerf_bridge.ops.grid_mlp import can_run, grid_mlp
from nerf_bridge.ops.hash_encoding import hash_encode
from nerf_bridge.ops.march import march_rays, march_rays_torch
from nerf_bridge.scene.rays import Rays, camera_rays

N_INPUTS = GRID.n_levels * GRID.n_features
NETWORK_FLOP = 2 * WIDTH * (N_INPUTS + N_OUTPUTS)  # of one point, forward; backward takes twice as many
CORNERS = 8 * GRID.n_levels  # table entries that a point reads
CHECKED = 18  # log2 of the points on which gradients are compared with float64's
TWIN_BYTES = 48 * CORNERS  # of one point that the torch twin keeps: factors, weight, entry and row of every corner


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: of all tensors.
        backend: ours: "cuda", "cpu" or "torch".
        shrink: pictures are so many times smaller on a side, and point sets its square.
        quick: only our own versions.
        ceilings: of the device.
    """

    device: torch.device
    backend: str
    shrink: int
    quick: bool
    ceilings: Ceilings

    def floor(self, n_bytes: float, flop: float = 0.0) -> float:
        """Milliseconds that moving `n_bytes` and `flop` operations take at best."""
        return 1e3 * max(n_bytes / self.ceilings.copy, flop / self.ceilings.matrix)


@dataclass(frozen=True)
class Version:
    """One implementation of a case.

    Attributes:
        name: as it stands in the results.
        forward: makes the outputs.
        leaves: what they are differentiated in; empty where there is nothing to differentiate.
        needs: bytes of memory that it is known to take; 0: not known.
    """

    name: str
    forward: Callable[[], Sequence[Tensor]]
    leaves: Sequence[Tensor] = ()
    needs: int = 0


@dataclass(frozen=True)
class Case:
    """One line of the results: our version first, the others after it.

    Attributes:
        name: of the case.
        device: where it runs.
        versions: ours, then the peers.
        floors: milliseconds by metric ("forward", "both").
        counts: sizes worth telling, by name.
        checks: figures beside the times, by name, for a version's name; each with its unit.
    """

    name: str
    device: torch.device
    versions: Sequence[Version]
    floors: dict[str, float]
    counts: dict[str, int]
    checks: dict[str, Check] = field(default_factory=dict)


def rays_of(n_cameras: int, size: int, setting: Setting) -> Rays:
    """Rays of `n_cameras` pictures of size x size pixels, shrunk as the setting says."""
    side = size // setting.shrink
    rays = camera_rays(random_cameras(n_cameras, setting.device), side, side)
    return Rays(rays.origins.contiguous(), rays.directions.contiguous())


def march_case(name: str, n_cameras: int, size: int, setting: Setting) -> Case:
    """Rays to packed samples.

    Floor: rays and cells read; of a sample 16 bytes written (its ray and interval), of a ray 16 (packed_info).
    """
    rays, occupied = rays_of(n_cameras, size, setting), shell_occupancy(setting.device)
    scene = (rays.origins, rays.directions, occupied, STEP)
    samples = march_rays(*scene, None, setting.backend)
    n = samples.n

    def ours(capacity: int | None) -> Callable[[], Sequence[Tensor]]:
        return lambda: [march_rays(*scene, None, setting.backend, capacity).t_starts]

    versions = [Version("ours", ours(None)), Version("ours, capacity given", ours(n))]
    if not setting.quick:
        compiled = torch.compile(march_rays_torch)
        versions += [
            Version("torch eager", lambda: [march_rays_torch(*scene, None).t_starts]),
            Version("torch.compile", lambda: [compiled(*scene, None).t_starts]),
        ]
        if has_peer("nerfacc"):
            versions.append(Version("nerfacc", nerfacc_versions.March(rays, occupied)))
    floor = setting.floor(40 * len(rays) + occupied.numel() + 16 * n)
    return Case(name, setting.device, versions, {"forward": floor}, {"rays": len(rays), "samples": n})


def composite_case(name: str, n_cameras: int, size: int, setting: Setting) -> Case:
    """Colour, opacity and depth of packed samples.

    Floor of a sample: 24 bytes read forward (sigma, colour, interval); backward the same, and 16 bytes of gradients.
    """
    rays = rays_of(n_cameras, size, setting)
    samples = shell_samples(rays, setting.backend)
    sigmas = ball_sigma(middles(rays, samples).norm(dim=-1)).requires_grad_()
    colors = torch.rand(samples.n, 3, device=setting.device, requires_grad=True)
    inputs = (sigmas, colors, samples.t_starts, samples.t_ends, samples.packed_info)

    def version(name: str, run: Callable[..., Sequence[Tensor]]) -> Version:
        return Version(name, lambda: run(*inputs)[:3], (sigmas, colors))

    versions = [version("ours", lambda *of: composite(*of, setting.backend))]
    if not setting.quick:
        versions += [version("torch eager", composite_torch), version("torch.compile", torch.compile(composite_torch))]
        if has_peer("nerfacc"):
            theirs = nerfacc_versions.Composite(samples, sigmas, colors)
            versions.append(Version("nerfacc", theirs, (sigmas, colors)))
    floors = {"forward": setting.floor(24 * samples.n), "both": setting.floor(64 * samples.n)}
    return Case(name, setting.device, versions, floors, {"rays": len(rays), "samples": samples.n})


def grid_points(n: int, order: str, setting: Setting) -> tuple[Tensor, Tensor | None]:
    """Points [n, 3] of the unit cube: "random", or "rays": the first midpoints of samples in the order of the rays,
    with the rays' packed_info [n_rays, 2], which a renderer has."""
    if order == "random":
        return torch.rand(n, 3, device=setting.device), None
    rays = rays_of(1, 512, setting)
    samples = shell_samples(rays, setting.backend)
    starts = samples.packed_info[:, 0].clamp(max=n)
    packed_info = torch.stack([starts, samples.packed_info.sum(1).clamp(max=n) - starts], dim=1)
    return (middles(rays, samples)[:n] * 0.5 + 0.5).contiguous(), packed_info


def grid_mlp_case(name: str, log2_points: int, order: str, setting: Setting) -> Case:
    """Points to four outputs through hash grid and network.

    Floor: points and the part of the table in half precision that they can touch read, outputs written, and the
    network's operations; backward the same again and the table's gradient of 8 bytes an entry written.

    At 2^CHECKED points our gradients are compared with those of the float64 twin on the same, unrounded numbers.
    """
    points, packed_info = grid_points((1 << log2_points) // setting.shrink**2, order, setting)
    n, network = points.shape[0], random_network(setting.device)
    exact = Version("ours, float32", lambda: [exact_network(points, network, setting.backend)], network.leaves)
    versions = [exact]
    if can_run(GRID, WIDTH, N_OUTPUTS, setting.backend, setting.device):
        half = Version("ours", lambda: [grid_mlp(points, *network.leaves, GRID, packed_info)], network.leaves)
        versions = [half, exact]
        if packed_info is not None:
            as_they_come = Version(
                "ours, rays unknown", lambda: [grid_mlp(points, *network.leaves, GRID)], network.leaves
            )
            versions.append(as_they_come)
    checks = {}
    if not setting.quick:
        twins = twin_versions(points, network)
        if log2_points == CHECKED:
            checks = grid_mlp_checks(points, network, [*versions, twins[0]])
        versions += twins
        if has_peer("tcnn"):
            versions.append(tcnn_version(points))
    touched = min(GRID.n_entries, n * CORNERS)
    moved, flop = 28 * n + 2 * GRID.n_features * touched, NETWORK_FLOP * n
    floors = {
        "forward": setting.floor(moved, flop),
        "both": setting.floor(2 * moved + 4 * GRID.n_features * touched, 3 * flop),
    }
    return Case(f"{name}, {order}", setting.device, versions, floors, {"points": n}, checks)


def grid_mlp_checks(points: Tensor, network: Network, versions: Sequence[Version]) -> dict[str, Check]:
    """How far the gradients of the versions, ours first, are from float64's."""
    names = ["ours", *(version.name for version in versions[1:])]
    runs = {name: lambda v=version: v.forward()[0] for name, version in zip(names, versions, strict=True)}
    return gradient_checks(points, network, runs)


def exact_network(points: Tensor, network: Network, backend: str) -> Tensor:
    """Outputs [n, 4] in float32: hash encoding, then the decoder."""
    return decode(hash_encode(points, network.table, GRID, backend), *network.leaves[1:], backend)


def twin_versions(points: Tensor, network: Network) -> list[Version]:
    """The torch twin, eager and compiled."""
    needs = TWIN_BYTES * points.shape[0]
    return [
        Version("torch eager", lambda: [network_torch(points, network)], network.leaves, needs),
        Version("torch.compile", lambda: [network_compiled(points, network)], network.leaves),
    ]


def has_peer(name: str) -> bool:
    """Whether the peer is installed and works here."""
    return peers.load(name).module is not None


def tcnn_version(points: Tensor) -> Version:
    """tiny-cuda-nn's own module for encoding and network, in half precision: as people use it."""
    grid = {
        "otype": "HashGrid",
        "n_levels": GRID.n_levels,
        "n_features_per_level": GRID.n_features,
        "log2_hashmap_size": GRID.log2_table_size,
        "base_resolution": GRID.base_resolution,
        "per_level_scale": (GRID.finest_resolution / GRID.base_resolution) ** (1 / (GRID.n_levels - 1)),
    }
    layers = {"otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None"}
    module = peers.require("tcnn").NetworkWithInputEncoding(
        3, N_OUTPUTS, grid, layers | {"n_neurons": WIDTH, "n_hidden_layers": 1}
    )
    return Version("tiny-cuda-nn", lambda: [module(points)], tuple(module.parameters()))


def adam_case(name: str, setting: Setting) -> Case:
    """One step of the optimiser over the grid, whose gradient comes from 2^18 points in the order of the rays.

    Floor: every gradient is read (4 bytes), and where it is not zero value and moments are read and written (24 bytes).
    """
    points, _ = grid_points((1 << 18) // setting.shrink**2, "rays", setting)
    network = random_network(setting.device)
    encoded = hash_encode(points, network.table, GRID, setting.backend)
    (gradient,) = torch.autograd.grad(encoded, network.table, torch.randn_like(encoded))

    def version(name: str, make: Callable[[list[dict]], torch.optim.Adam], skip: bool = False) -> Version:
        table = network.table.detach().clone().requires_grad_()
        table.grad = gradient
        optimiser = make([{"params": [table], "lr": 1e-3} | ({"skip": True} if skip else {})])

        def forward() -> Sequence[Tensor]:
            optimiser.step()
            return [table]

        return Version(name, forward)

    betas, eps = (0.9, 0.99), 1e-6
    versions = [version("ours", lambda groups: SkippingAdam(groups, betas, eps, setting.backend), skip=True)]
    if not setting.quick:
        versions += [
            version("ours, nothing skipped", lambda groups: SkippingAdam(groups, betas, eps, setting.backend)),
            version("torch eager", lambda groups: torch.optim.Adam(groups, betas=betas, eps=eps, foreach=True)),
            version("torch fused", lambda groups: torch.optim.Adam(groups, betas=betas, eps=eps, fused=True)),
        ]
    touched = int((gradient != 0).sum())
    floor = setting.floor(4 * gradient.numel() + 24 * touched)
    return Case(name, setting.device, versions, {"forward": floor}, {"entries": gradient.numel(), "touched": touched})
