"""What the single kernels take within the cases of `benchmarks.kernels`, and those that none of them runs, by torch's
profiler.

    python -m benchmarks.kernel_times                              needs a GPU; seconds
    python -m benchmarks.kernel_times --page docs/performance.md   puts the table into the page, between its two marks

It writes benchmarks/results/kernel-times-<device>.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import trimesh
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.bench_inputs import GRID, random_cameras
from benchmarks.kernel_cases import Case, Setting, Version, grid_points
from benchmarks.kernels import CASES, record, rounded
from benchmarks.report import markdown_table, replaced, results_path, save_results
from benchmarks.resources import plain_name
from benchmarks.timing import Ceilings
from benchmarks.torch_twins import random_network
from nerf_bridge.errors import UserError
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.ops.hash_encoding import hash_encode
from nerf_bridge.ops.raster import clip_positions, rasterize
from nerf_bridge.run.files import write_text

PROFILED = ("march_512", "composite_512", "grid_mlp_2e20", "render_512", "adam_grid")
MARKS = ("<!-- kernel times: written by benchmarks/kernel_times.py -->", "<!-- end of kernel times -->")
WARM_UPS, REPETITIONS = 3, 10
TORCHS_OWN = "torch's own"
BALL_RADIUS = 0.689  # of the mesh that is drawn: 20,480 faces, about as many as an asset has
RASTER_SIDE = 2048  # 512 x 512 pixels of 4 x 4 samples, as `mesh_render` draws them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when done, 2 with one line when it cannot."""
    parser = argparse.ArgumentParser(description="Time the single kernels by torch's profiler.")
    parser.add_argument("--page", type=Path, help="also put the table between the two marks of this page")
    parser.add_argument("--out", type=Path, help="the results (default: benchmarks/results/kernel-times-<device>.json)")
    options = parser.parse_args(arguments)
    try:
        if not torch.cuda.is_available():
            raise UserError("kernels are timed on a GPU, and torch sees no CUDA GPU")
        results = run(torch.device("cuda"))
        save_results(results, options.out or results_path("kernel-times", results))
        lines = table(results)
        if options.page:
            page = options.page.read_text(encoding="utf-8")
            write_text(options.page, replaced(page, markdown_table(lines), MARKS))
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join("  ".join(cell.ljust(28) for cell in line).rstrip() for line in lines))
    return 0


def run(device: torch.device) -> dict[str, object]:
    """All cases; what the results file holds."""
    torch.manual_seed(0)
    no_ceilings = Ceilings(1.0, 1.0, (1.0, 1.0))  # floors are of no matter here
    setting = Setting(device, resolve_backend("cuda", device), shrink=1, quick=True, ceilings=no_ceilings)
    makers = [maker for name in PROFILED for maker in CASES[name](name, setting)] + own_makers(setting)
    rows = [row for maker in tqdm(makers, desc="kernels", unit="case") for row in profiled(maker())]
    options = argparse.Namespace(shrink=1, quick=True, flush_l2=False)
    return record(device, options, rows, [])


def own_makers(setting: Setting) -> list[Callable[[], Case]]:
    """The kernels that no case of `benchmarks.kernels` runs as ours."""
    return [
        partial(hash_grid_case, "hash_grid_float32_2e20, rays", False, setting),
        partial(hash_grid_case, "hash_grid_repeatable_2e20, rays", True, setting),
        partial(raster_case, "rasterise_2048", setting),
    ]


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """With what torch calls deterministic algorithms, or without; afterwards as before."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def hash_grid_case(name: str, repeatable: bool, setting: Setting) -> Case:
    """The float32 kernels of the hash grid, alone, over 2^20 points: forward, and the gradients over points and table.

    `repeatable`: the table's is summed in fixed point, else with float atomics.
    """
    points = grid_points((1 << 20) // setting.shrink**2, "rays", setting)[0].requires_grad_()
    table = random_network(setting.device).table

    def forward_and_backward() -> Sequence[Tensor]:
        with deterministic(repeatable):
            features = hash_encode(points, table, GRID, setting.backend)
            return torch.autograd.grad(features, (points, table), torch.ones_like(features))

    versions = [Version("ours", forward_and_backward)]
    return Case(name, setting.device, versions, {}, {"points": len(points)})


def raster_case(name: str, setting: Setting) -> Case:
    """A ball of triangles as one camera sees it."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=BALL_RADIUS)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32, device=setting.device)
    faces = torch.tensor(ball.faces, dtype=torch.int32, device=setting.device)
    positions, side = clip_positions(vertices, random_cameras(1, setting.device))[0], RASTER_SIDE // setting.shrink

    def draw() -> Sequence[Tensor]:
        return [rasterize(positions, faces, side, side, setting.backend).face_index]

    return Case(name, setting.device, [Version("ours", draw)], {}, {"faces": len(faces), "pixels": side**2})


def profiled(case: Case) -> list[dict]:
    """A row for each kernel of our first version: milliseconds and launches of one forward and backward pass."""
    version = case.versions[0]

    def once() -> None:
        outputs: Sequence[torch.Tensor] = version.forward()
        if version.leaves:
            torch.autograd.grad(outputs, version.leaves, [torch.ones_like(out) for out in outputs])

    for _ in range(WARM_UPS):
        once()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPETITIONS):
            once()
        torch.cuda.synchronize()
    found = ((e.name, e.time_range.elapsed_us()) for e in profiler.events() if e.device_type == DeviceType.CUDA)
    return rows_of(case.name, found, REPETITIONS)


def rows_of(case: str, found: Iterable[tuple[str, float]], repetitions: int) -> list[dict]:
    """Kernels by what they take, from names and microseconds of all launches; torch's own are one row, the last."""
    microseconds: dict[str, list[float]] = {}
    for name, took in found:
        own = any(part in name for part in ("at::", "at_cuda", "_vectorized")) or name.startswith(("Memset", "Memcpy"))
        microseconds.setdefault(TORCHS_OWN if own else plain_name(name), []).append(took)
    order = sorted(microseconds, key=lambda name: (name == TORCHS_OWN, -sum(microseconds[name])))
    return [
        {
            "case": case,
            "metric": name,
            "value": rounded(sum(microseconds[name]) / repetitions / 1e3),
            "unit": "ms",
            "launches": rounded(len(microseconds[name]) / repetitions),
        }
        for name in order
    ]


def table(results: Mapping) -> list[list[str]]:
    """A header and a line for each kernel."""
    lines = [["case", "kernel", "ms", "launches"]]
    for row in results["rows"]:
        lines.append([row["case"], row["metric"], f"{row['value']:g}", f"{row['launches']:g}"])
    return lines


if __name__ == "__main__":
    sys.exit(main())
