"""The work that the kernels are timed on: a shell of occupied cells, cameras around it, points, and an opaque ball.

Field box [-1, 1]^3; occupancy 128^3, of whose cells 10 % lie in a shell; cameras at distance 1.5 with a field of view
of 55 degrees; a fixed step of 2 sqrt(3) / 512. One camera of 512 x 512 pixels so makes 16.6 M samples, four of 64 x 64
make 1.04 M.
"""

from __future__ import annotations

import math

import torch

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops.hash_encoding import HashGridSpec
from nerf_bridge.ops.march import Samples, march_rays
from nerf_bridge.scene.cameras import Cameras, orbit_cameras
from nerf_bridge.scene.rays import Rays

STEP = 2 * math.sqrt(3) / 512
RESOLUTION = 128
SHELL = (0.6135, 0.75)  # radii between which a cell's centre makes the cell occupied
DISTANCE, FOVY_DEG = 1.5, 55.0
GRID = HashGridSpec(n_levels=16, n_features=2, log2_table_size=19, base_resolution=16, finest_resolution=4096)
WIDTH, N_OUTPUTS = 64, 4
VISIBLE = 1e-4  # transmittance from which on a sample counts as kept

# A blob so steep that it is a ball: sigma is e^15 (the cap) inside r = 0.586, 50 at 0.662, 1 at 0.689 and 1e-4 at
# 0.752. The network's own part, near zero at the start, is added before the exponential.
BALL = FieldConfig(
    n_levels=GRID.n_levels,
    n_features=GRID.n_features,
    log2_table_size=GRID.log2_table_size,
    base_resolution=GRID.base_resolution,
    finest_resolution=GRID.finest_resolution,
    hidden_width=WIDTH,
    density_activation="trunc_exp",
    blob_scale=100.0,
    blob_radius=0.689,
)


def shell_occupancy(device: torch.device) -> torch.Tensor:
    """The occupied cells, bool [128, 128, 128], indexed x, y, z."""
    axis = (torch.arange(RESOLUTION, device=device) + 0.5) / RESOLUTION * 2 - 1
    r = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1)
    return (r > SHELL[0]) & (r < SHELL[1])


def ball_sigma(r: torch.Tensor) -> torch.Tensor:
    """Density [n] of a softer opaque ball at distances r [n] from the centre: 50 inside 0.68, gone by 0.75."""
    return 50.0 * torch.sigmoid((0.68 - r) / 0.01)


def random_cameras(n: int, device: torch.device, seed: int = 0) -> Cameras:
    """`n` cameras that look at the origin, from all sides and from -11 to 40 degrees above the horizon."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.tensor([2 * math.pi, 0.9]), torch.tensor([0.0, 0.2])
    azimuth, elevation = torch.stack([torch.rand(2, generator=generator) * scale - shift for _ in range(n)]).unbind(1)
    same = torch.ones(n)
    quarter = math.pi / 2  # these azimuths are counted from +x, the package's from -y
    cameras = orbit_cameras(azimuth + quarter, elevation, DISTANCE * same, math.radians(FOVY_DEG) * same)
    return cameras.to(device)


def shell_samples(rays: Rays, backend: str) -> Samples:
    """What marching through the shell gives, without jitter."""
    return march_rays(rays.origins, rays.directions, shell_occupancy(rays.origins.device), STEP, None, backend)


def middles(rays: Rays, samples: Samples) -> torch.Tensor:
    """Points [n, 3] of the box in the middle of the samples, in the order of the rays."""
    origins, directions = (of.index_select(0, samples.ray_indices) for of in (rays.origins, rays.directions))
    return torch.addcmul(origins, directions, samples.t_mids[:, None])


def n_visible(sigmas: torch.Tensor, samples: Samples) -> int:
    """How many samples the light still reaches: transmittance in front of them above VISIBLE."""
    thickness = (sigmas * (samples.t_ends - samples.t_starts)).double()
    before = thickness.cumsum(0) - thickness
    starts, counts = samples.packed_info.unbind(1)
    of_ray = before[starts.clamp(max=max(samples.n - 1, 0))].repeat_interleave(counts) if samples.n else before
    return int((before - of_ray < -math.log(VISIBLE)).sum())
