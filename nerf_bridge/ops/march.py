"""Ray marching through an occupancy grid into packed samples.

Worked example: three rays with 2, 0 and 1 samples give packed_info [[0, 2], [2, 0], [2, 1]] (start, count),
ray_indices [0, 0, 2] and t_starts, t_ends of 3 entries each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nerf_bridge.ops import peers
from nerf_bridge.ops.backend import check_float, check_tensor, run_kernel

BRICK = 4  # cells along a side of the bricks that the kernels read
MASK_BITS = 32  # samples of a ray that one word of its mask tells of
MAX_STEPS = 1 << 24  # of one ray
MAX_MASK_BYTES = 1 << 32  # of all rays together: a bit a step
BOX_DIAGONAL = 2 * math.sqrt(3)
MAX_RESOLUTION = 2048
_TORCH_CANDIDATES = 1 << 22  # midpoints that the torch twin looks at in one go


@dataclass(frozen=True)
class Samples:
    """Samples of many rays, ray after ray, each an interval of its ray.

    Args:
        packed_info: [n_rays, 2] int64: first sample and number of samples of each ray.
        ray_indices: [n] int64: the ray of each sample.
        t_starts: [n] distance from the ray's origin to the interval's start.
        t_ends: [n] distance to the interval's end.
        points: [n, 3] the intervals' midpoints in world units.
        overflow: bool, no dimensions, where a capacity was asked for: whether samples were left out for want of room.
    """

    packed_info: torch.Tensor
    ray_indices: torch.Tensor
    t_starts: torch.Tensor
    t_ends: torch.Tensor
    points: torch.Tensor
    overflow: torch.Tensor | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.t_starts.shape[0]

    @property
    def t_mids(self) -> torch.Tensor:
        """[n] distance to the middle of each interval."""
        return (self.t_starts + self.t_ends) * 0.5


@torch.no_grad()
def march_rays(
    rays_o: torch.Tensor,
    rays_d: torch.Tensor,
    occupied: torch.Tensor,
    step_size: float,
    jitter: torch.Tensor | None,
    backend: str,
    capacity: int | None = None,
) -> Samples:
    """March rays through the occupied cells of the box [-1, 1]^3.

    Sample i of a ray is the interval from t_near + (i + jitter) step to t_near + (i + 1 + jitter) step, where t_near is
    the ray's entry into the box, or 0 when it starts inside. It is kept when its midpoint lies in the box and in an
    occupied cell. Two passes, count and fill, without atomics: deterministic. On CUDA the host waits once, for the
    number of samples, unless `capacity` says how many to make room for. Not differentiable.

    Args:
        rays_o: [n_rays, 3] origins in world units. float32, or float64 on the backends cpu and torch.
        rays_d: [n_rays, 3] unit directions; components may be zero. The length is not checked: distances are counted in
            it, and a shorter one's ray ends, on every backend, once it has made the steps that the box's diagonal can
            take at unit length (rounded up to whole words of the mask).
        occupied: [R, R, R] bool, indexed x, y, z.
        step_size: length of an interval, positive.
        jitter: [n_rays] offset of a ray's samples in steps, in [0, 1); None: zero. Not checked, since the host would
            have to wait for the device: an offset below 0 gives samples before the entry, one above 1 leaves a gap.
        backend: "cuda", "cpu", "torch" or "nerfacc".
        capacity: None: just the samples there are; else the tensors have this many rows, of which
            packed_info names those in use (the rest hold ray 0 and zero length), and rays whose samples find no more
            room lose their last ones: `overflow` tells. The host never waits, so that a CUDA graph can hold it.
    Returns:
        The samples, in the dtype of `rays_o`.
    Raises:
        ValueError: a shape, dtype or device does not fit, `capacity` is negative, or `step_size` is not positive and
            finite, or so small that a ray has more than 2^24 steps, or all rays together more than 2^35.
    """
    _check(rays_o, rays_d, occupied, step_size, jitter, backend)
    if capacity is not None and capacity < 0:
        raise ValueError(f"capacity: expected at least 0, got {capacity}")
    if torch.compiler.is_compiling():
        from nerf_bridge.ops.library import KERNELS  # which imports this module

        arguments = (rays_o, rays_d, occupied, float(step_size), jitter, backend)
        return Samples(*(KERNELS.march_all(*arguments) if capacity is None else KERNELS.march(*arguments, capacity)))
    if backend == "nerfacc":
        return _with_capacity(_march_nerfacc(rays_o, rays_d, occupied, step_size, jitter), capacity)
    if backend == "torch":
        return _with_capacity(march_rays_torch(rays_o, rays_d, occupied, step_size, jitter), capacity)
    n_rays, resolution, step = rays_o.shape[0], occupied.shape[0], float(step_size)
    origins, directions, across = rays_o.contiguous(), rays_d.contiguous(), -(-resolution // BRICK)
    bricks = torch.empty(across, across, across, dtype=torch.int64, device=rays_o.device)
    run_kernel(backend, "march_pack", origins, occupied.contiguous(), bricks, resolution)
    offset = None if jitter is None else jitter.contiguous()
    counts = torch.empty(n_rays, dtype=torch.int64, device=rays_o.device)
    n_words = _n_words(step)
    masks = torch.empty(n_rays, n_words, dtype=torch.int32, device=rays_o.device)
    scene = (origins, directions, bricks, offset)
    run_kernel(backend, "march_count", *scene, counts, masks, n_rays, n_words, resolution, step)
    ends = counts.cumsum(0)
    n_kept = ends[-1] if n_rays else counts.sum()
    n, overflow = (int(n_kept), None) if capacity is None else (capacity, n_kept > capacity)
    make = torch.empty if capacity is None else torch.zeros
    packed_info = torch.empty((n_rays, 2), dtype=torch.int64, device=rays_o.device)
    ray_indices = make(n, dtype=torch.int64, device=rays_o.device)
    t_starts, t_ends, points = (make(shape, dtype=rays_o.dtype, device=rays_o.device) for shape in (n, n, (n, 3)))
    marked, made = (
        (origins, directions, offset, masks, ends, counts),
        (packed_info, ray_indices, t_starts, t_ends, points),
    )
    run_kernel(backend, "march_fill", *marked, *made, n_rays, n_words, n, step)
    return Samples(*made, overflow)


@torch.no_grad()
def march_rays_torch(
    rays_o: torch.Tensor, rays_d: torch.Tensor, occupied: torch.Tensor, step_size: float, jitter: torch.Tensor | None
) -> Samples:
    """The reference of `march_rays` in plain torch operations; any device, any float dtype."""
    n_rays = rays_o.shape[0]
    near, far = intersect_box_torch(rays_o, rays_d)
    offset = rays_o.new_zeros(n_rays) if jitter is None else jitter
    longest = float((far - near).max()) if n_rays else 0.0
    n_steps = min(max(math.ceil(longest / step_size) + 1, 1), _n_words(step_size) * MASK_BITS)
    chunk = max(_TORCH_CANDIDATES // n_steps, 1)
    parts = []
    for first in range(0, n_rays, chunk):
        rows = slice(first, first + chunk)
        rays = (rays_o[rows], rays_d[rows], near[rows], far[rows], offset[rows])
        kept, t_edges = _candidates(*rays, occupied, step_size, n_steps)
        ray, i = kept.nonzero(as_tuple=True)
        parts.append((kept.sum(1), ray + first, t_edges[ray, i], t_edges[ray, i + 1]))
    if not parts:
        empty = torch.empty(0, dtype=torch.int64, device=rays_o.device)
        parts = [(empty, empty, rays_o.new_empty(0), rays_o.new_empty(0))]
    counts, ray_indices, t_starts, t_ends = (torch.cat(part) for part in zip(*parts, strict=True))
    mids = (t_starts + t_ends) * 0.5
    points = rays_o[ray_indices] + mids[:, None] * rays_d[ray_indices]
    return Samples(_pack(counts)[0], ray_indices, t_starts, t_ends, points)


def _march_nerfacc(
    rays_o: torch.Tensor, rays_d: torch.Tensor, occupied: torch.Tensor, step_size: float, jitter: torch.Tensor | None
) -> Samples:
    near, far = intersect_box_torch(rays_o, rays_d)
    first = near if jitter is None else near + jitter * step_size
    packed_info, ray_indices, t_starts, t_ends = peers.march(rays_o, rays_d, first, far, occupied, step_size)
    points = rays_o[ray_indices] + ((t_starts + t_ends) * 0.5)[:, None] * rays_d[ray_indices]
    return Samples(packed_info, ray_indices, t_starts, t_ends, points)


def intersect_box_torch(rays_o: torch.Tensor, rays_d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances [n], [n] at which rays [n, 3] enter (at least 0) and leave the box [-1, 1]^3; both 0 where they miss.

    A ray that does not move, or is not made of numbers, misses it too.
    """
    a, b = (-1 - rays_o) / rays_d, (1 - rays_o) / rays_d
    still = rays_d == 0
    outside = still & (rays_o.abs() > 1)
    enter = torch.minimum(a, b).masked_fill(still, 0).masked_fill(outside, math.inf)
    leave = torch.maximum(a, b).masked_fill(still, math.inf)
    near, far = enter.amax(1).clamp(min=0), leave.amin(1)
    missed = ~((near < far) & (far < 1e30) & (enter <= leave).all(1))
    return near.masked_fill(missed, 0), far.masked_fill(missed, 0)


def _candidates(
    rays_o: torch.Tensor,
    rays_d: torch.Tensor,
    near: torch.Tensor,
    far: torch.Tensor,
    offset: torch.Tensor,
    occupied: torch.Tensor,
    step_size: float,
    n_steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of n_steps intervals of each ray are kept [n_rays, n_steps], and their edges [n_rays, n_steps + 1]."""
    i = torch.arange(n_steps + 1, device=rays_o.device, dtype=rays_o.dtype)
    t_edges = near[:, None] + (i + offset[:, None]) * step_size
    mids = (t_edges[:, :-1] + t_edges[:, 1:]) * 0.5
    points = rays_o[:, None] + mids[..., None] * rays_d[:, None]
    resolution = occupied.shape[0]
    cells = ((points + 1) * 0.5 * resolution).nan_to_num().long().clamp(0, resolution - 1)
    return (mids < far[:, None]) & occupied[cells[..., 0], cells[..., 1], cells[..., 2]], t_edges


def _n_words(step_size: float) -> int:
    """Words of the mask of a ray, with room for all samples of a ray of unit length and the box's diagonal."""
    return math.ceil((BOX_DIAGONAL / step_size + 2) / MASK_BITS)


def _pack(counts: torch.Tensor, capacity: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """packed_info [n_rays, 2] from counts [n_rays], cut off at `capacity`; their sum; whether some were cut."""
    ends = counts.cumsum(0)
    n_kept = ends[-1] if len(ends) else counts.new_zeros(())
    if capacity is None:
        return torch.stack([ends - counts, counts], dim=1), n_kept, None
    starts = (ends - counts).clamp(max=capacity)
    return torch.stack([starts, ends.clamp(max=capacity) - starts], dim=1), n_kept, n_kept > capacity


def _with_capacity(samples: Samples, capacity: int | None) -> Samples:
    """`samples` in tensors of `capacity` rows; as they are when it is None."""
    if capacity is None:
        return samples
    packed_info, _, overflow = _pack(samples.packed_info[:, 1], capacity)
    rows = [samples.ray_indices, samples.t_starts, samples.t_ends, samples.points]
    missing = max(0, capacity - samples.n)
    ray_indices, t_starts, t_ends, points = (
        torch.cat([row[:capacity], row.new_zeros(missing, *row.shape[1:])]) for row in rows
    )
    return Samples(packed_info, ray_indices, t_starts, t_ends, points, overflow)


def _check(
    rays_o: torch.Tensor,
    rays_d: torch.Tensor,
    occupied: torch.Tensor,
    step_size: float,
    jitter: torch.Tensor | None,
    backend: str,
) -> None:
    check_tensor("rays_o", rays_o, (None, 3))
    check_float("rays_o", rays_o, backend)
    check_tensor("rays_d", rays_d, (rays_o.shape[0], 3), like=rays_o)
    is_cube = occupied.dim() == 3 and len(set(occupied.shape)) == 1 and occupied.shape[0] > 0
    if not is_cube or occupied.dtype != torch.bool or occupied.shape[0] > MAX_RESOLUTION:
        got = f"{occupied.dtype} {list(occupied.shape)}"
        raise ValueError(f"occupied: expected bool [R, R, R] with R from 1 to {MAX_RESOLUTION}, got {got}")
    if occupied.device != rays_o.device:
        raise ValueError(f"occupied: expected device {rays_o.device}, got {occupied.device}")
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size: expected a positive length, got {step_size}")
    if BOX_DIAGONAL / step_size > MAX_STEPS:
        raise ValueError(f"step_size: {step_size} cuts the box's diagonal into more than {MAX_STEPS} steps")
    mask_bytes = rays_o.shape[0] * _n_words(step_size) * MASK_BITS // 8
    if mask_bytes > MAX_MASK_BYTES:
        raise ValueError(
            f"step_size: with {step_size}, the masks of {rays_o.shape[0]} rays take {mask_bytes / 2**30:.1f} GiB, more "
            f"than {MAX_MASK_BYTES / 2**30:.0f}: take longer steps, or fewer rays at a time"
        )
    if jitter is not None:
        check_tensor("jitter", jitter, (rays_o.shape[0],), like=rays_o)
