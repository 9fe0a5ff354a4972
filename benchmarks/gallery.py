"""The gallery: makes an asset of every prompt of a list, measures it, and shows all of them on one sheet.

    python -m benchmarks.gallery --out runs/gallery

Finished runs are left alone and stopped ones go on, so that the same command may be given again at any time. It writes
benchmarks/results/gallery-<device>.json, docs/gallery/sheet.png and the table of docs/gallery/README.md.

Whether the colour words of a prompt are obeyed is decided by the rule of nerf_bridge/evaluate/colours.py, on renders of
the textured mesh without light from 8 azimuths at 15 degrees of elevation; the pixels that lie wholly inside the
silhouette count.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image, ImageDraw, ImageFont

from benchmarks.report import replaced
from nerf_bridge.batch.jobs import Job, read_jobs
from nerf_bridge.batch.pool import Engine, open_engine
from nerf_bridge.batch.queue import raise_for_failures, run_batch
from nerf_bridge.errors import Interrupted, RunError, UserError
from nerf_bridge.evaluate.colours import Colour, asked_colours, judge_colours
from nerf_bridge.evaluate.results import commit
from nerf_bridge.mesh.gltf import load_textured_mesh
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.options import add_workers
from nerf_bridge.run.directory import RunDirectory, read_record, slug
from nerf_bridge.run.files import write_bytes, write_json, write_text
from nerf_bridge.run.preview import to_bytes
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.mesh_render import ColoredMesh, shade_mesh
from nerf_bridge.settings import load_yaml, merged

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
TABLE_MARKS = ("<!-- table: written by benchmarks/gallery.py -->", "<!-- end of table -->")
FACE_TOLERANCE = 0.05

JUDGED_VIEWS, JUDGED_SIZE = 8, 128

SHEET_VIEWS, SHEET_COLUMNS, SHEET_BYTES = 4, 2, 240_000
VIEW_SIZES = (128, 112, 96, 80, 64)  # the largest whose sheet fits SHEET_BYTES is taken
PAPER, INK = 0.94, (40, 46, 56)


@dataclass(frozen=True)
class Asset:
    """A finished run and what was measured of its mesh.

    Attributes:
        faces, target_faces: triangles in the file and as asked for.
        bodies: connected bodies, seams of the texture ignored.
        iou: of the mesh's silhouettes with the field's, from the run's record.
        seconds: of the stages, from the run's record.
        obeyed: whether the colour words were; None where the prompt has none.
        views: [SHEET_VIEWS, h, w, 3] in 0..1.
    """

    prompt: str
    faces: int
    target_faces: int
    bodies: int
    iou: float
    seconds: dict[str, float]
    asked: tuple[str, ...]
    colour: Colour
    obeyed: bool | None
    views: np.ndarray

    @property
    def sound(self) -> bool:
        """Faces within 5 % of the target and one connected body."""
        return abs(self.faces - self.target_faces) <= FACE_TOLERANCE * self.target_faces and self.bodies == 1


def look_around(mesh: ColoredMesh, views: int, size: int, distance: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Unlit images [views, size, size, 3] on PAPER, and coverage [views, size, size], once around the mesh."""
    cameras = turntable_cameras(views, math.radians(15), distance, math.radians(40))
    images, coverage = shade_mesh(mesh, cameras, size, resolve_backend("auto", torch.device("cpu")), (PAPER,) * 3)
    return images.numpy(), coverage.numpy()


def measure(prompt: str, run: RunDirectory, target_faces: int) -> Asset:
    """Measure a finished run. Raises UserError when its file holds no textured mesh."""
    record = read_record(run)
    mesh = load_textured_mesh(run.asset)
    (shape,) = trimesh.load_scene(run.asset).dump()
    shape.merge_vertices(merge_tex=True, merge_norm=True)
    images, coverage = look_around(mesh, JUDGED_VIEWS, JUDGED_SIZE)
    inside = images[coverage > 1.0 - 1e-6]
    asked = asked_colours(prompt)
    colour, obeyed = judge_colours(inside, asked)
    return Asset(
        prompt=prompt,
        faces=len(mesh.faces),
        target_faces=target_faces,
        bodies=int(shape.body_count),
        iou=float(record["mesh"]["iou"]),
        seconds=record["seconds"],
        asked=asked,
        colour=colour,
        obeyed=obeyed,
        views=look_around(mesh, SHEET_VIEWS, VIEW_SIZES[0], distance=2.6)[0],
    )


def result_rows(assets: Sequence[Asset], n_failed: int) -> list[dict[str, object]]:
    """Rows {case, metric, value, unit} of all assets, then those of the whole list as the case "all"."""
    rows: list[dict[str, object]] = []

    def add(case: str, metric: str, value: float, unit: str) -> None:
        rows.append({"case": case, "metric": metric, "value": value, "unit": unit})

    for asset in assets:
        add(asset.prompt, "faces", asset.faces, "count")
        add(asset.prompt, "faces_off_target", 100.0 * (asset.faces / asset.target_faces - 1.0), "%")
        add(asset.prompt, "bodies", asset.bodies, "count")
        add(asset.prompt, "textured", 1, "yes = 1")  # without UVs and texture it would not have been read
        add(asset.prompt, "silhouette_iou", asset.iou, "0..1")
        add(asset.prompt, "seconds", sum(asset.seconds.values()), "s")
        if asset.obeyed is not None:
            add(asset.prompt, "colour_obeyed", int(asset.obeyed), "yes = 1")
            add(asset.prompt, "colour_share", sum(asset.colour.shares.get(w, 0.0) for w in asset.asked), "of the area")
    judged = [asset.obeyed for asset in assets if asset.obeyed is not None]
    add("all", "assets", len(assets), "count")
    add("all", "failed", n_failed, "count")
    add("all", "sound", sum(asset.sound for asset in assets), "count")
    add("all", "colour_judged", len(judged), "count")
    add("all", "colour_obeyed", sum(judged), "count")
    return rows


def results(assets: Sequence[Asset], n_failed: int, record: Mapping) -> dict[str, object]:
    """The results file: device, commit, date, versions, rows, and the colours found, by prompt."""
    colours = {
        asset.prompt: {
            "asked": asset.asked,
            "shares": {word: round(share, 4) for word, share in asset.colour.shares.items()},
            "main_rgb": [round(value, 4) for value in asset.colour.main_rgb],
            "median_rgb": [round(value, 4) for value in asset.colour.median_rgb],
        }
        for asset in assets
    }
    return {
        "device": record.get("device", platform.machine()),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": record.get("versions", {}),
        "rows": result_rows(assets, n_failed),
        "colours": colours,
    }


def table(assets: Sequence[Asset], document: Mapping) -> str:
    """A Markdown table with a line for each asset, and below it what the results `document` says of its making."""
    lines = [
        "| prompt | colour obeyed | colours seen | main colour | faces | bodies | IoU | time |",
        "| --- " * 8 + "|",
    ]
    for asset in assets:
        verdict = {True: "yes", False: "**no**", None: ""}[asset.obeyed]
        shares = list(asset.colour.shares.items())[:3]
        seen = ", ".join(f"{word} {100 * share:.0f} %" for word, share in shares if share >= 0.05)
        rgb = ", ".join(f"{value:.2f}" for value in asset.colour.main_rgb)
        lines.append(
            f"| {asset.prompt} | {verdict} | {seen} | {rgb} | {asset.faces:,} | {asset.bodies} | {asset.iou:.3f} "
            f"| {sum(asset.seconds.values()):.0f} s |"
        )
    counts = {row["metric"]: row["value"] for row in document["rows"] if row["case"] == "all"}
    lines.append(
        f"\nColour words obeyed in {counts['colour_obeyed']} of the {counts['colour_judged']} assets that have some; "
        f"failed runs: {counts['failed']}. Made on {document['date']} by {document['device']}, "
        f"commit {document['commit']}."
    )
    return "\n".join(lines)


def put_table(page: Path, text: str) -> None:
    """Put `text` between TABLE_MARKS of the file `page`. Raises UserError when it lacks them."""
    try:
        write_text(page, replaced(page.read_text(encoding="utf-8"), text, TABLE_MARKS))
    except ValueError as error:
        raise UserError(f"{page}: {error}") from None


def sheet_bytes(assets: Sequence[Asset], limit: int = SHEET_BYTES) -> bytes:
    """The contact sheet as PNG, in the largest of VIEW_SIZES that takes at most `limit` bytes, else in the smallest."""
    for size in VIEW_SIZES:
        stream = io.BytesIO()
        draw_sheet(assets, size).save(stream, "PNG", optimize=True)
        if stream.tell() <= limit:
            break
    return stream.getvalue()


def draw_sheet(assets: Sequence[Asset], size: int) -> Image.Image:
    """Each asset in a row of views of `size` pixels, its prompt below; SHEET_COLUMNS assets side by side."""
    font = ImageFont.load_default(size=max(11, size // 8))
    margin, caption = size // 8, size // 4
    width, height = SHEET_VIEWS * size + margin, size + caption
    n_rows = math.ceil(len(assets) / SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, n_rows * height), (round(255 * PAPER),) * 3)
    draw = ImageDraw.Draw(sheet)
    for i, asset in enumerate(assets):
        left, top = i % SHEET_COLUMNS * width, i // SHEET_COLUMNS * height
        for k, view in enumerate(to_bytes(asset.views)):
            picture = Image.fromarray(view).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + k * size, top))
        draw.text((left + margin, top + size), asset.prompt, font=font, fill=INK)
    return sheet


def make_gallery(jobs: Sequence[Job], out: Path, results_folder: Path, docs: Path, engine: Engine) -> Path:
    """Run the jobs, measure what they made, and write results, sheet and table.

    Returns:
        The results file.

    Raises:
        UserError: a folder cannot be written.
        RunError: a job failed or its asset cannot be read; the results and the sheet of the others are written.
        Interrupted: the user stopped it.
    """
    states = run_batch(jobs, out, engine)
    done = [job for job, state in zip(jobs, states, strict=True) if state.state == "done"]
    if not done:
        raise_for_failures(states)
    assets = [measure(job.prompt, RunDirectory(job.out), job.config().mesh.faces) for job in done]
    document = results(assets, len(jobs) - len(done), read_record(RunDirectory(done[0].out)))
    path = results_folder / f"gallery-{slug(str(document['device']))}.json"
    for folder in (results_folder, docs):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    write_bytes(docs / "sheet.png", sheet_bytes(assets))
    if (docs / "README.md").is_file():
        put_table(docs / "README.md", table(assets, document))
    raise_for_failures(states)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--prompts", type=Path, default=ROOT / "data" / "prompts" / "gallery.txt", help="one a line")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    add_workers(parser)
    parser.add_argument("--config", type=Path, help="settings that differ from the defaults (YAML)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "gallery", help="folder of sheet and table")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_yaml(chosen.config) if chosen.config else {}
        jobs = read_jobs(chosen.prompts, chosen.out, merged(settings, {"device": chosen.device, "seed": chosen.seed}))
        with open_engine(chosen.workers, chosen.out, chosen.device) as engine:
            path = make_gallery(jobs, chosen.out, chosen.results, chosen.docs, engine)
        print(json.dumps(json.loads(path.read_text(encoding="utf-8"))["rows"][-5:]))
        print(path)
    except (UserError, RunError, Interrupted) as error:
        print(error, file=sys.stderr)
        return {UserError: 2, RunError: 1, Interrupted: 130}[type(error)]
    return 0


if __name__ == "__main__":
    sys.exit(main())
