"""How faithful exported meshes are to their fields, and what the export costs.

    python -m benchmarks.mesh RUN [RUN ...] [--analytic] [--oracle FOLDER] [--device cpu|cuda]

Each run directory's mesh is made again, as `nerf-bridge export` does, and the file that comes out is read back and
compared with renders of the field from VIEWS cameras that the export did not see. Results go to
benchmarks/results/mesh-<device>.json, a table to the standard output.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from nerf_bridge.config import MeshConfig, build_config
from nerf_bridge.device import resolve_device
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.evaluate.results import commit
from nerf_bridge.mesh.data import MeshStatistics, Silhouettes
from nerf_bridge.mesh.export import export_mesh
from nerf_bridge.mesh.silhouettes import mean_iou, opaque_masks, render_silhouettes
from nerf_bridge.mesh.surface import Field
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.pipeline import device_name, generate, versions
from nerf_bridge.render import render_in_chunks
from nerf_bridge.run.directory import load_run, slug
from nerf_bridge.run.files import write_json
from nerf_bridge.run.state import restore_scene
from nerf_bridge.scene.cameras import Cameras, orbit_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, Texture, shade_mesh
from nerf_bridge.scene.scene import build_scene

ROOT = Path(__file__).resolve().parents[1]
VIEWS, SIZE, STEP = 24, 256, 1 / 128
ELEVATIONS_DEG = (-5.0, 12.0, 30.0)
LEAST_IOU, LEAST_PSNR, MOST_SECONDS = 0.97, 26.0, {"cpu": 40.0, "cuda": 5.0}


@dataclass(frozen=True)
class Case:
    """A field to export, and how it is rendered."""

    name: str
    field: Field
    occupied: Tensor
    step_size: float
    backend: str
    device: torch.device


@dataclass(frozen=True)
class Result:
    """What was measured of one export.

    Attributes:
        iou: [VIEWS] intersection over union of the silhouettes.
        psnr: [VIEWS] of the colours in the pixels that both cover, in dB.
        seconds, cpu_seconds: of the export with the renders that it matches, wall clock and processor time (children
            included).
        memory_gib: most that the process, or one of its children, has held by then; on a GPU also `gpu_gib`.
    """

    name: str
    iou: np.ndarray
    psnr: np.ndarray
    statistics: MeshStatistics
    seconds: float
    cpu_seconds: float
    memory_gib: float
    gpu_gib: float


def run_case(path: Path, device: torch.device) -> Case:
    """The finished run in a directory. Raises UserError when there is none."""
    run, config = load_run(path)
    scene = build_scene(config, resolve_backend("auto", device), device)
    if restore_scene(run, scene).step < config.steps:
        raise UserError(f"{path} is not optimised to its end: run the same `generate` command first")
    return Case(path.name, scene.field, scene.occupancy.occupied, scene.step_size, scene.backend, device)


def analytic_cases() -> Iterator[Case]:
    """The shapes with a known surface that the tests use, on the CPU."""
    sys.path.insert(0, str(ROOT / "tests" / "mesh"))
    import analytic_fields as known

    cpu = torch.device("cpu")
    for name in ("sphere", "torus", "l"):
        field = getattr(known, f"{name}_field")()
        yield Case(f"analytic {name}", field, occupied_by(field), 1 / 64, resolve_backend("auto", cpu), cpu)


def occupied_by(field: Field, resolution: int = 32) -> Tensor:
    """[r, r, r] bool: the cells that hold density at one of 27 points, or are beside one that does."""
    axis = (torch.arange(3 * resolution) + 0.5) * (2 / (3 * resolution)) - 1
    sigma = field.density(torch.cartesian_prod(axis, axis, axis)).reshape(1, 1, *[3 * resolution] * 3)
    held = torch.nn.functional.max_pool3d(sigma, 3)
    return torch.nn.functional.max_pool3d(held, 3, stride=1, padding=1)[0, 0] > 1e-2


def oracle_runs(folder: Path, device: str) -> list[Path]:
    """Runs of the tests' known objects by the prior that knows the truth, made in `folder` unless they are there."""
    sys.path.insert(0, str(ROOT / "tests"))
    from oracle import OraclePrior
    from oracle_objects import OBJECTS

    paths = []
    for thing in OBJECTS:
        config = build_config({"prompt": thing.prompt, "device": device, "guidance.scale": 2.0})
        paths.append(generate(config, folder / thing.noun, prior=OraclePrior()).path)
    return paths


def measure(case: Case, settings: MeshConfig) -> Result:
    """Export a field to a GLB and compare the file with the field."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "asset.glb")
        _clear_gpu_peak(case.device)
        start, cpu = time.perf_counter(), _cpu_seconds()
        silhouettes = render_silhouettes(case.field, case.occupied, case.step_size, case.backend)
        statistics = export_mesh(case.field, case.occupied, silhouettes, settings, path, {}, case.backend, case.device)
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
        iou, psnr = compare(case, read_in_box(path, statistics))
    return Result(case.name, iou, psnr, statistics, seconds, cpu, *_memory_gib(case.device))


def read_in_box(path: Path, statistics: MeshStatistics) -> ColoredMesh:
    """The textured mesh of a GLB file, back in the world's axes and the units of the field's box."""
    (mesh,) = trimesh.load_scene(path).dump()
    world = np.asarray(mesh.vertices) @ np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    low, high = (np.array(corner) for corner in statistics.bounds)
    scale = float((high - low).max() / np.ptp(world, axis=0).max())
    placed = (world - world.min(axis=0)) * scale + low
    image = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"), dtype=np.float32) / 255
    look = Texture(torch.as_tensor(np.array(mesh.visual.uv)).float(), torch.as_tensor(image))
    return ColoredMesh(torch.as_tensor(placed).float(), torch.as_tensor(np.array(mesh.faces)), look)


def judging_cameras() -> Cameras:
    """VIEWS cameras around the object, at ELEVATIONS_DEG in turn, none of them where the export looked from."""
    azimuth = (torch.arange(VIEWS) + 0.5) * (2 * math.pi / VIEWS)
    elevation = torch.deg2rad(torch.tensor(ELEVATIONS_DEG).repeat(VIEWS)[:VIEWS])
    return orbit_cameras(azimuth, elevation, torch.full((VIEWS,), 3.0), torch.full((VIEWS,), math.radians(40)))


def compare(case: Case, mesh: ColoredMesh) -> tuple[np.ndarray, np.ndarray]:
    """IoU [VIEWS] of the silhouettes and PSNR [VIEWS] in dB of the colours.

    A pixel is in the field's silhouette where its opacity is above one half, and in the mesh's where its centre sees a
    face. Colours are compared where the mesh covers the whole pixel and the field is opaque; the field's colour is
    divided by its opacity there, so that nothing behind it shines through. The field is marched in steps of at most
    STEP: the coarse steps of the training would add their own noise to the edges.
    """
    cameras = judging_cameras()
    black = torch.zeros(VIEWS, 3, device=case.device)
    there = cameras.to(case.device)
    seen = render_in_chunks(case.field, case.occupied, there, SIZE, black, min(STEP, case.step_size), case.backend)
    opaque = opaque_masks(Silhouettes(there, seen.opacity)).cpu()
    colors = (seen.color / seen.opacity[..., None].clamp_min(1e-6)).cpu()
    backend = resolve_backend("auto", torch.device("cpu"))
    iou, psnr = [], []
    for view in range(VIEWS):
        one = cameras[[view]]
        _, centre = shade_mesh(mesh, one, SIZE, backend, supersample=1)
        image, coverage = shade_mesh(mesh, one, SIZE, backend)
        inside = opaque[view] & (coverage[0] > 1.0 - 1e-6)
        iou.append(mean_iou(centre > 0.5, opaque[view][None]))
        error = float((image[0] - colors[view])[inside].square().mean()) if inside.any() else 1.0
        psnr.append(-10.0 * math.log10(max(error, 1e-10)))
    return np.array(iou), np.array(psnr)


def result_rows(results: Sequence[Result], kind: str) -> list[dict[str, object]]:
    """Rows {case, metric, value, unit, p10, p90, floor}; floor is the bar that the value must reach."""
    rows: list[dict[str, object]] = []

    def add(case: str, metric: str, value: float, unit: str, **more: float) -> None:
        rows.append({"case": case, "metric": metric, "value": round(value, 4), "unit": unit, **more})

    for result in results:
        made = result.statistics
        for metric, values, unit, bar in (
            ("silhouette_iou", result.iou, "0..1", LEAST_IOU),
            ("colour_psnr", result.psnr, "dB", LEAST_PSNR),
        ):
            p10, p90 = (round(float(np.quantile(values, q)), 4) for q in (0.1, 0.9))
            add(result.name, metric, float(values.mean()), unit, p10=p10, p90=p90, floor=bar)
        add(result.name, "faces", made.faces, "count")
        add(result.name, "bodies", made.components, "count")
        add(result.name, "watertight", int(made.watertight), "yes = 1")
        for stage, seconds in made.seconds.items():
            add(result.name, f"seconds_{stage}", seconds, "s")
        add(result.name, "seconds", result.seconds, "s", floor=MOST_SECONDS[kind])
        add(result.name, "cpu_seconds", result.cpu_seconds, "s")
        add(result.name, "memory", result.memory_gib, "GiB")
        if kind == "cuda":
            add(result.name, "gpu_memory", result.gpu_gib, "GiB")
    return rows


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a line for each case."""
    lines = [
        "| case | IoU | PSNR | faces | bodies | watertight | unwrap | time | CPU time | memory |",
        "| --- " * 10 + "|",
    ]
    for result in results:
        made = result.statistics
        lines.append(
            f"| {result.name} | {result.iou.mean():.4f} | {result.psnr.mean():.1f} dB | {made.faces:,} "
            f"| {made.components} | {'yes' if made.watertight else '**no**'} | {made.unwrap} | {result.seconds:.1f} s "
            f"| {result.cpu_seconds:.1f} s | {result.memory_gib:.2f} GiB |"
        )
    return "\n".join(lines)


def _cpu_seconds() -> float:
    """Processor time of this process and of its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory_gib(device: torch.device) -> tuple[float, float]:
    """Most memory held by this process or by one of its children, and on the GPU."""
    kib = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    gpu = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    return kib / 2**20, gpu


def _clear_gpu_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="finished run directories")
    parser.add_argument("--analytic", action="store_true", help="also shapes with a known surface (on the CPU)")
    parser.add_argument("--oracle", type=Path, help="also the tests' known objects, optimised in this folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--texture", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        device = resolve_device(chosen.device)
        settings = MeshConfig(resolution=chosen.resolution, faces=chosen.faces, texture=chosen.texture)
        paths = [*chosen.runs, *(oracle_runs(chosen.oracle, chosen.device) if chosen.oracle else [])]
        cases = [run_case(path, device) for path in paths] + (list(analytic_cases()) if chosen.analytic else [])
        if chosen.analytic and device.type != "cpu":
            raise UserError("--analytic: these fields live on the CPU; leave it out or use --device cpu")
        if not cases:
            raise UserError("nothing to measure: name run directories, --analytic or --oracle FOLDER")
        measure(cases[0], settings)  # loads kernels and libraries, so that the first case is no slower than the others
        results = [measure(case, settings) for case in cases]
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    name = device_name(device)
    document = {
        "device": name,
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions() | {"platform": platform.platform()},
        "settings": {"resolution": chosen.resolution, "faces": chosen.faces, "texture": chosen.texture},
        "rows": result_rows(results, device.type),
    }
    chosen.results.mkdir(parents=True, exist_ok=True)
    path = chosen.results / f"mesh-{slug(name)}.json"
    write_json(path, document)
    print(table(results))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
