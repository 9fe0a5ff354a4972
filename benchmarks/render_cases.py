"""The whole render of an opaque ball, forward and backward, as the optimisation calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.bench_inputs import BALL, STEP, middles, n_visible, random_cameras, shell_occupancy, shell_samples
from benchmarks.kernel_cases import NETWORK_FLOP, TWIN_BYTES, Case, Setting, Version, has_peer
from benchmarks.torch_twins import TorchField
from nerf_bridge.ops import peers
from nerf_bridge.render import render
from nerf_bridge.scene.cameras import Cameras
from nerf_bridge.scene.field import Field, HashGridField
from nerf_bridge.scene.rays import camera_rays

GRAPH_SAMPLES = 1 << 22  # beyond, launching costs little beside the work, and light decides what is worth evaluating


class RaysUnknown:
    """A field that is not told which points belong to one ray: what telling it gains."""

    def __init__(self, field: HashGridField) -> None:
        self.field, self.activation = field, field.activation

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density [n] and albedo [n, 3]."""
        return self.field(points)

    def raw(self, points: Tensor, packed_info: Tensor | None = None) -> Tensor:
        """The network's four outputs [n, 4]."""
        return self.field.raw(points)

    def normals(self, points: Tensor) -> Tensor:
        """Outward unit normals [n, 3]."""
        return self.field.normals(points)


class Pictures(torch.nn.Module):
    """The pictures as one function of tensors, with room for a given number of samples: what a CUDA graph can hold."""

    def __init__(self, field: HashGridField, occupied: Tensor, cameras: Cameras, side: int, capacity: int) -> None:
        super().__init__()
        self.field = field
        self.occupied, self.cameras, self.side, self.capacity = occupied, cameras, side, capacity

    def forward(self, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colour, opacity and depth."""
        views = (self.field, self.occupied, self.cameras, self.side, background, STEP, self.field.backend)
        picture = render(*views, capacity=self.capacity)
        return picture.color, picture.opacity, picture.depth


def render_floors(setting: Setting, numbers: int, touched: int, visible: int) -> dict[str, float]:
    """Milliseconds by metric: the network's operations on the samples that the light reaches, forward once and backward
    three times (the hidden layer is made again), and the touched of the table's numbers read each time in half
    precision, with a gradient of 4 bytes for every number written once."""
    read, written, flop = 2 * touched, 4 * numbers, NETWORK_FLOP * visible
    return {
        "forward": setting.floor(read, flop),
        "backward": setting.floor(read + written, 3 * flop),
        "both": setting.floor(2 * read + written, 4 * flop),
    }


def render_case(name: str, n_cameras: int, size: int, setting: Setting) -> Case:
    """Pictures of the ball: march, grid and network, composite; gradients over all parameters of the field.

    Floors: `render_floors`, where every entry of the table is touched.
    """
    side = size // setting.shrink
    cameras, occupied = random_cameras(n_cameras, setting.device), shell_occupancy(setting.device)
    field = HashGridField(BALL, seed=0, backend=setting.backend).to(setting.device)
    background = torch.full((n_cameras, 3), 0.5, device=setting.device)

    def version(name: str, field: Field, of: HashGridField, backend: str, needs: int = 0) -> Version:
        def forward() -> Sequence[Tensor]:
            picture = render(field, occupied, cameras, side, background, STEP, backend)
            return picture.color, picture.opacity, picture.depth

        return Version(name, forward, tuple(of.parameters()), needs)

    rays = camera_rays(cameras, side, side)
    with torch.no_grad():
        samples = shell_samples(rays, setting.backend)
        points = middles(rays, samples)
        sigmas = torch.cat([field.density(part) for part in points.split(1 << 20)])
        visible = n_visible(sigmas, samples)
        del points, sigmas
    versions = [version("ours", field, field, setting.backend)]
    if setting.device.type == "cuda":
        versions.append(version("ours, rays unknown", RaysUnknown(field), field, setting.backend))
    if setting.device.type == "cuda" and samples.n <= GRAPH_SAMPLES:
        pictures = Pictures(field, occupied, cameras, side, samples.n)
        graphed = torch.cuda.make_graphed_callables(pictures, (background,))
        versions.append(Version("ours, in a CUDA graph", lambda: graphed(background), tuple(field.parameters())))
    if not setting.quick:
        needs = TWIN_BYTES * samples.n
        versions.append(version("torch eager", TorchField(field, compiled=False), field, "torch", needs))
    if not setting.quick and setting.device.type == "cuda":
        exact = HashGridField(BALL.model_copy(update={"precision": "float32"}), 0, setting.backend).to(setting.device)
        versions.append(version("ours, float32", exact, exact, setting.backend))
        versions.append(version("torch.compile", TorchField(field, compiled=True), field, "torch"))
        for peer in filter(has_peer, peers.MODULES):
            theirs = HashGridField(BALL, seed=0, backend=peer).to(setting.device)
            versions.append(version(f"render through {peer}", theirs, theirs, peer))
    floors = render_floors(setting, field.table.numel(), field.table.numel(), visible)
    counts = {"rays": len(rays), "samples": samples.n, "visible": visible}
    return Case(name, setting.device, versions, floors, counts)
