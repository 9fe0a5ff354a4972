"""Other people's kernels behind our interface, used only when asked for by name: nerfacc and tiny-cuda-nn.

`nerfacc` (Li et al. 2023) marches and composites, `tcnn` (Mueller 2021) encodes points; the rest of a run with such a
backend is done by our CUDA kernels (`kernels_of`). Both compute what our own do, so that a field trained with one
renders with the other. nerfacc adds its steps up, so that a sample may differ in the last bits, and fall into another
cell where it is near a wall.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nerf_bridge.errors import UserError, one_line

if TYPE_CHECKING:
    from nerf_bridge.ops.hash_encoding import HashGridSpec

MODULES = {"nerfacc": "nerfacc", "tcnn": "tinycudann"}
REMEDIES = {
    "nerfacc": "pip install nerfacc (its kernels are built at first use: nvcc must be on the PATH)",
    "tcnn": "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch (needs nvcc)",
}
TCNN_FEATURES = (1, 2, 4, 8)
MOST = {"nerfacc": 2**31 - 1, "tcnn": 2**27}  # rays and points that their 32-bit indices can count


@dataclass(frozen=True)
class Peer:
    """What came of importing a peer: its module, or why it cannot be used; exactly one is set."""

    module: ModuleType | None
    cause: str | None


@functools.cache
def load(name: str) -> Peer:
    """Import the peer `name` once a process, its kernels included; a failure is kept."""
    if not torch.cuda.is_available():
        return Peer(None, "torch sees no CUDA GPU, and it works on nothing else")
    try:
        module: Any = importlib.import_module(MODULES[name])
        if name == "nerfacc" and importlib.import_module("nerfacc.cuda._backend")._C is None:  # it says no more itself
            return Peer(None, f"it found no CUDA toolkit to build its kernels with; remedy: {REMEDIES[name]}")
    except ModuleNotFoundError:
        return Peer(None, f"it is not installed; remedy: {REMEDIES[name]}")
    except (ImportError, OSError, RuntimeError) as error:
        cause = one_line(error)
        return Peer(None, f"importing it failed: {cause}; remedy: {REMEDIES[name]}")
    return Peer(module, None)


def require(name: str) -> Any:
    """The module of the peer `name`. Raises UserError with the cause and the remedy when it cannot be used."""
    peer = load(name)
    if peer.module is None:
        raise UserError(f"the backend {name!r} cannot be loaded: {peer.cause}; or use --backend auto")
    return peer.module


def check_size(name: str, what: str, n: int) -> None:
    """Raise UserError when the peer `name` cannot count `n` of `what`."""
    if n > MOST[name]:
        raise UserError(f"the backend {name!r} takes at most {MOST[name]} {what}, got {n}; use --backend auto")


def kernels_of(backend: str) -> str:
    """Whose kernels do what the peer `backend` does not: our CUDA kernels; any other backend does everything itself."""
    return "cuda" if backend in MODULES else backend


@torch.no_grad()
def march(
    rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor, occupied: Tensor, step_size: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """March through nerfacc.

    Args:
        rays_o, rays_d: [n_rays, 3] as for `march_rays`.
        near, far: [n_rays] where the first interval begins, and where the ray leaves the box.
        occupied: [R, R, R] bool.
        step_size: length of an interval.
    Returns:
        packed_info [n_rays, 2]; ray_indices, t_starts, t_ends [n], as in `Samples`.
    """
    nerfacc = require("nerfacc")
    check_size("nerfacc", "rays", len(rays_o))
    if len(rays_o) == 0:
        none = torch.empty(0, dtype=torch.int64, device=rays_o.device)
        return none.view(0, 2), none, rays_o.new_empty(0), rays_o.new_empty(0)
    box = rays_o.new_tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]])
    intervals, samples, _ = nerfacc.traverse_grids(
        rays_o, rays_d, occupied[None], box, near_planes=near, far_planes=far, step_size=step_size
    )
    edges = intervals.vals
    return samples.packed_info, samples.ray_indices, edges[intervals.is_left], edges[intervals.is_right]


def composite(
    sigmas: Tensor, features: Tensor, t_starts: Tensor, t_ends: Tensor, packed_info: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite through nerfacc; arguments and results as for `composite`."""
    nerfacc, n_rays = require("nerfacc"), packed_info.shape[0]
    if n_rays == 0:
        return (
            sigmas.new_zeros(0, features.shape[1]),
            sigmas.new_zeros(0),
            sigmas.new_zeros(0),
            torch.zeros_like(sigmas),
        )
    place = torch.arange(len(sigmas), device=sigmas.device)
    ray_indices = (
        torch.searchsorted(packed_info[:, 0].contiguous(), place, right=True) - 1
    )  # the last ray to start there
    weights, _, _ = nerfacc.render_weight_from_density(t_starts, t_ends, sigmas, packed_info=packed_info)
    summed = [
        nerfacc.accumulate_along_rays(weights, values, ray_indices, n_rays)
        for values in (features, None, ((t_starts + t_ends) * 0.5)[:, None])
    ]
    return summed[0], summed[1][:, 0], summed[2][:, 0], weights


def hash_encode(points: Tensor, table: Tensor, spec: HashGridSpec) -> Tensor:
    """Encode through tiny-cuda-nn in float32, one of its grids a level; arguments and result as for `hash_encode`.

    Its grid of r vertices a side looks up x (r - 1) + 1/2, ours x N: with r = N + 1, and points moved by half a cell,
    they are the same function of the same table.

    Raises:
        UserError: tiny-cuda-nn has no such number of features, or cannot count so many points.
    """
    check_size("tcnn", "points", len(points))
    if spec.n_features not in TCNN_FEATURES:
        raise UserError(f"the backend 'tcnn' expects 1, 2, 4 or 8 features a level, got {spec.n_features}")
    outputs = []
    for level, resolution in enumerate(spec.resolutions):
        rows = table[spec.offsets[level] : spec.offsets[level + 1]]
        grid = _tcnn_level(resolution, spec.n_features, spec.log2_table_size)
        place = points.clamp(0, 1) - 0.5 / resolution
        outputs.append(torch.func.functional_call(grid, {"params": rows.reshape(-1)}, (place,)))
    return torch.cat(outputs, dim=1).to(points.dtype)


@functools.lru_cache(maxsize=256)
def _tcnn_level(resolution: int, n_features: int, log2_table_size: int) -> Any:
    """The module of one level; its own parameters are never used."""
    settings = {
        "otype": "HashGrid",
        "n_levels": 1,
        "n_features_per_level": n_features,
        "log2_hashmap_size": log2_table_size,
        "base_resolution": resolution + 1,
        "per_level_scale": 1.0,
    }
    return require("tcnn").Encoding(3, settings, dtype=torch.float32)
