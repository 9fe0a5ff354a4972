"""What the steps of the mesh exporter hand to each other. World axes and box units everywhere but in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nerf_bridge.scene.cameras import Cameras


@dataclass(frozen=True)
class Mesh:
    """Triangles, counter-clockwise seen from outside.

    Attributes:
        vertices: [v, 3] float64.
        faces: [f, 3] int64 indices into `vertices`.
    """

    vertices: np.ndarray
    faces: np.ndarray


@dataclass(frozen=True)
class DensityGrid:
    """Density at the centres of n^3 cells of the box [-1, 1]^3, kept where it may be above zero.

    Sample (i, j, k) of the whole box lies at ((i, j, k) + 0.5) * cell - 1.

    Attributes:
        sigma: [nx, ny, nz] float16, indexed x, y, z, finite and at least 0; beyond it the density is 0.
        low: which sample of the whole box `sigma[0, 0, 0]` is.
        resolution: n, cells along a side of the whole box.
        non_finite: how many samples came as NaN or infinity.
    """

    sigma: Tensor
    low: tuple[int, int, int]
    resolution: int
    non_finite: int

    @property
    def cell(self) -> float:
        """Side of a cell, in units of the box."""
        return 2.0 / self.resolution

    @property
    def highest(self) -> float:
        """The highest density; 0 when no cell is kept."""
        return float(self.sigma.max()) if self.sigma.numel() else 0.0


@dataclass(frozen=True)
class Silhouettes:
    """What the field looks like from some cameras, to compare meshes with.

    Attributes:
        cameras: b views.
        opacity: [b, h, w] of the field's renders, in 0..1, row 0 at the top.
    """

    cameras: Cameras
    opacity: Tensor


@dataclass(frozen=True)
class ThresholdChoice:
    """The density of the surface, and how well each candidate agreed with the silhouettes.

    Attributes:
        threshold: the chosen density.
        iou: its mean intersection over union with the silhouettes, in 0..1.
        curve: (density, mean IoU) of every candidate, by rising density.
    """

    threshold: float
    iou: float
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class UnwrappedMesh:
    """A mesh whose vertices are split along the seams of its texture.

    Attributes:
        vertices: [v, 3] float64.
        normals: [v, 3] float64, unit length, outward.
        uv: [v, 2] float64 in 0..1; v points up, so row 0 of the texture is at v = 1 (in glTF v points down).
        faces: [f, 3] int64.
        method: who made the atlas, "xatlas" or "grid".
    """

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    method: str


@dataclass(frozen=True)
class Material:
    """What the surface looks like: one metal-roughness material (glTF 2.0, section 3.9), by the texture coordinates.

    Attributes:
        base_color: [h, w, 3] uint8 sRGB, row 0 at v = 1.
        normal: [h, w, 3] uint8 normals in tangent space, (n + 1) / 2 * 255 with x along u, y along v (green points up,
            as in OpenGL) and z outward, row 0 at v = 1, the tangents as MikkTSpace makes them; None: no normal map.
        roughness: 0..1 all over.
        metallic: 0..1 all over.
    """

    base_color: np.ndarray
    normal: np.ndarray | None
    roughness: float
    metallic: float


@dataclass(frozen=True)
class Asset:
    """All that goes into a file.

    Attributes:
        mesh: in the world's axes (z up, front -y) and the box's units.
        material: its look.
        metadata: plain JSON values, for example prompt, seed, prior, licence.
    """

    mesh: UnwrappedMesh
    material: Material
    metadata: Mapping[str, object]


@dataclass(frozen=True)
class MeshStatistics:
    """What was written, for the run's record and its report.

    Attributes:
        vertices: in the file, seams counted twice.
        faces: triangles in the file.
        components: connected bodies of the surface, seams ignored.
        watertight: every edge of the surface joins two faces, seams ignored.
        threshold: density of the surface.
        iou: mean intersection over union of the final mesh's silhouettes with the field's.
        curve: (density, mean IoU) of the candidates; empty when the threshold was given.
        bounds: lowest and highest corner in the world's axes and the units of the field's box.
        bounds_m: lowest and highest corner in metres, in the file's axes (glTF: y up, front +z).
        texture: texture pixels along a side.
        unwrap: "xatlas" or "grid".
        seconds: by stage.
    """

    vertices: int
    faces: int
    components: int
    watertight: bool
    threshold: float
    iou: float
    curve: tuple[tuple[float, float], ...]
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    bounds_m: tuple[tuple[float, float, float], tuple[float, float, float]]
    texture: int
    unwrap: str
    seconds: dict[str, float]
