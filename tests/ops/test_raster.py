"""The rasteriser: known scenes, the fill rule, clipping, texture space; the C++ kernel against the torch twin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nerf_bridge.ops.raster import (
    Raster,
    clip_positions,
    interpolate,
    projection_matrix,
    rasterize,
    rasterize_uv,
)
from nerf_bridge.scene.cameras import Cameras, orbit_cameras

BACKENDS = (pytest.param("cpu", marks=pytest.mark.compiler), "torch")
FOVY = math.radians(40.0)


def camera(azimuth_deg: float = 0.0, elevation_deg: float = 0.0, distance: float = 3.0) -> Cameras:
    values = (math.radians(azimuth_deg), math.radians(elevation_deg), distance, FOVY)
    return orbit_cameras(*(torch.tensor([value]) for value in values))


def box(center: tuple[float, float, float], half: float) -> tuple[Tensor, Tensor]:
    corners = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return corners * half + torch.tensor(center), torch.tensor(faces)


def sphere(radius: float, rings: int = 48) -> tuple[Tensor, Tensor]:
    theta = torch.linspace(0.0, math.pi, rings + 1)[:, None]
    phi = torch.linspace(0.0, 2.0 * math.pi, 2 * rings + 1)[None, :-1]
    points = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos().expand(-1, 2 * rings)], dim=-1)
    index = torch.arange((rings + 1) * 2 * rings).reshape(rings + 1, 2 * rings)
    a, b, c, d = index[:-1], index.roll(-1, 1)[:-1], index.roll(-1, 1)[1:], index[1:]
    faces = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).reshape(-1, 3)
    return points.reshape(-1, 3) * radius, faces


def flat(points: list[tuple[float, float]], depth: float = 0.0) -> Tensor:
    """Clip positions with w = 1 at normalised device coordinates."""
    return torch.tensor([[x, y, depth, 1.0] for x, y in points])


def assert_close(a: Raster, b: Raster) -> None:
    assert torch.equal(a.face_index, b.face_index)
    assert torch.equal(a.depth.isfinite(), b.depth.isfinite())
    torch.testing.assert_close(a.depth[a.covered], b.depth[b.covered], rtol=0, atol=1e-6)
    torch.testing.assert_close(a.barycentrics, b.barycentrics, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sphere_silhouette_is_a_disc(backend: str) -> None:
    vertices, faces = sphere(0.9)
    size, distance = 128, 3.0
    raster = rasterize(clip_positions(vertices, camera(37.0, 20.0, distance))[0], faces, size, size, backend)
    # tangent cone of the sphere: sin(half angle) = radius / distance
    radius = math.tan(math.asin(0.9 / distance)) / math.tan(FOVY / 2) * size / 2
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    from_center = (rows - size / 2).hypot(columns - size / 2)
    assert raster.covered[from_center < radius - 0.5].all()
    assert not raster.covered[from_center > radius + 0.05].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_front_view_is_not_mirrored(backend: str) -> None:
    """A box at +x is right in the front view, left from behind; one at +z is at the top; one at -y hides one at +y."""
    parts = [
        box((0.6, 0.0, 0.0), 0.1),
        box((0.0, 0.0, 0.6), 0.1),
        box((0.0, -0.3, 0.0), 0.1),
        box((0.0, 0.5, 0.0), 0.1),
    ]
    vertices = torch.cat([part[0] for part in parts])
    faces = torch.cat([part[1] + 8 * index for index, part in enumerate(parts)])
    front = rasterize(clip_positions(vertices, camera(0.0))[0], faces, 64, 64, backend)
    back = rasterize(clip_positions(vertices, camera(180.0))[0], faces, 64, 64, backend)

    def center(raster: Raster, part: int) -> tuple[float, float]:
        rows, columns = (raster.covered & (raster.face_index // 12 == part)).nonzero().double().mean(dim=0)
        return float(rows), float(columns)

    assert center(front, 0)[1] > 45 and center(back, 0)[1] < 18
    assert center(front, 1)[0] < 18 and center(back, 1)[0] < 18
    assert int(front.face_index[31, 31]) // 12 == 2 and int(back.face_index[31, 31]) // 12 == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_depth_and_barycentrics_are_those_of_the_ray(backend: str) -> None:
    """A slanted triangle filling the view: the interpolated world point lies on its plane and on the pixel's ray."""
    vertices = torch.tensor([[-3.0, -0.5, -3.0], [3.0, 1.0, -2.0], [0.0, 0.5, 4.0]])
    faces, view, size, near, far = torch.tensor([[0, 1, 2]]), camera(), 33, 0.1, 10.0
    raster = rasterize(clip_positions(vertices, view, near=near, far=far)[0], faces, size, size, backend)
    assert raster.covered.all()
    torch.testing.assert_close(raster.barycentrics.sum(dim=-1), torch.ones(size, size))
    points = interpolate(raster, faces, vertices).double()
    along = points[..., 1] + 3.0  # the front camera stands at y = -3 and looks along +y
    pixel = (torch.arange(size) + 0.5) / size * 2 - 1
    torch.testing.assert_close(points[..., 0] / along, (pixel * math.tan(FOVY / 2)).double().expand(size, -1))
    torch.testing.assert_close(points[..., 2] / along, -(pixel * math.tan(FOVY / 2)).double()[:, None].expand(-1, size))
    expected = (far + near - 2 * far * near / along) / (far - near)
    torch.testing.assert_close(raster.depth.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearer_face_wins_and_ties_go_to_the_lower_index(backend: str) -> None:
    corners = [(-0.9, -0.9), (0.9, -0.9), (0.0, 0.9)]
    positions = torch.cat([flat(corners, depth) for depth in (0.5, -0.5, -0.5, 0.0, -0.25)])
    faces = torch.arange(15).reshape(5, 3)
    raster = rasterize(positions, faces, 16, 16, backend)
    assert raster.face_index[raster.covered].unique().tolist() == [1]
    raster = rasterize(positions, faces[[2, 1, 0, 4]], 16, 16, backend)
    assert raster.face_index[raster.covered].unique().tolist() == [0]
    assert torch.equal(raster.depth[raster.covered].unique(), torch.tensor([-0.5]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("winding", [(0, 1, 2), (0, 2, 1)])
def test_top_left_rule(backend: str, winding: tuple[int, int, int]) -> None:
    """A square whose edges run through pixel centres owns its top and left ones only, for either winding."""
    low, high = -1 + 2 * 1.5 / 8, -1 + 2 * 5.5 / 8  # centres of pixels 1 and 5 of 8
    positions = flat([(low, low), (high, low), (high, high), (low, high)])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])[:, list(winding)]
    raster = rasterize(positions, faces, 8, 8, backend)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 1:5] = True
    assert torch.equal(raster.covered, expected)


@pytest.mark.compiler
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), perspective=st.booleans())
def test_shared_edges_leave_no_gaps_and_no_doubles(seed: int, perspective: bool) -> None:
    """A fan that covers the image: each pixel lies in exactly one of its triangles, taken one at a time."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(2, generator=generator) * 1.6 - 0.8
    center = (center * 16).round() / 16 + 1 / 32  # often on pixel centres of the 32 x 32 image
    corners = torch.tensor([[-1.5, -1.5], [1.5, -1.5], [1.5, 1.5], [-1.5, 1.5]])
    positions = torch.cat([torch.cat([center[None], corners]), torch.zeros(5, 1), torch.ones(5, 1)], dim=1)
    if perspective:
        positions = positions * (0.5 + 3 * torch.rand(5, 1, generator=generator))
    faces = torch.tensor([[0, 1, 2], [0, 3, 2], [0, 3, 4], [1, 0, 4]])  # mixed windings
    times = torch.zeros(32, 32, dtype=torch.int64)
    for face in faces:
        times += rasterize(positions, face[None], 32, 32, "cpu").covered
    assert torch.equal(times, torch.ones_like(times))


@pytest.mark.compiler
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 60), height=st.integers(1, 40), width=st.integers(1, 40))
def test_kernel_equals_twin_on_triangle_soup(seed: int, n: int, height: int, width: int) -> None:
    """Soup around the eye: in front, behind, across the near plane and across w = 0, some corners equal."""
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.randn(n + 2, 3, generator=generator)
    faces = torch.randint(0, n + 2, (n, 3), generator=generator)
    positions = clip_positions(vertices, camera(10.0, 20.0, distance=1.0))[0]
    assert_close(rasterize(positions, faces, height, width, "cpu"), rasterize(positions, faces, height, width, "torch"))


@pytest.mark.compiler
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_near_plane_cuts_at_the_plane(seed: int) -> None:
    """Ray casting in float64 against the plane of one triangle that runs past the eye."""
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(3, 3, generator=generator) * 2 - 1
    near, size, view = 0.3, 24, camera(distance=0.5)
    raster = rasterize(clip_positions(vertices, view, near=near)[0], torch.tensor([[0, 1, 2]]), size, size, "cpu")
    pixel = ((torch.arange(size) + 0.5) / size * 2 - 1).double() * math.tan(FOVY / 2)
    directions = torch.stack(
        torch.broadcast_tensors(pixel[None, :], torch.ones(1, 1).double(), -pixel[:, None]), dim=-1
    )
    a, b, c = vertices.double()
    eye = torch.tensor([0.0, -0.5, 0.0], dtype=torch.float64)
    columns = torch.stack(torch.broadcast_tensors(b - a, c - a, -directions), dim=-1)
    u, v, t = torch.linalg.solve(columns, (eye - a).expand(size, size, 3)).unbind(dim=-1)
    margin = torch.stack([u, v, 1 - u - v, t - near]).amin(dim=0)
    assert raster.covered[margin > 1e-4].all()
    assert not raster.covered[margin < -1e-4].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_uv_square_covers_exactly_its_texels(backend: str) -> None:
    """u in 1/4..3/4 and v in 1/2..1: columns 2..5, rows 0..3 of 8, and the texel's centre is what is interpolated."""
    uvs = torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.75, 1.0], [0.25, 1.0]])
    faces = torch.tensor([[0, 1, 2], [2, 0, 3]])
    raster = rasterize_uv(uvs, faces, 8, backend)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:4, 2:6] = True
    assert torch.equal(raster.covered, expected)
    texel = (torch.arange(8) + 0.5) / 8
    found = interpolate(raster, faces, uvs)
    torch.testing.assert_close(found[0:4, 2:6, 0], texel[2:6].expand(4, 4))
    torch.testing.assert_close(found[0:4, 2:6, 1], (1 - texel[0:4])[:, None].expand(4, 4))
    assert (raster.depth[raster.covered] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_uv_square_fills_the_texture(backend: str) -> None:
    uvs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    raster = rasterize_uv(uvs, torch.tensor([[0, 1, 2], [0, 2, 3]]), 37, backend)
    assert raster.covered.all()
    assert raster.face_index[0, 0] == 1 and raster.face_index[-1, -1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_vertices", [0, 3])
def test_no_faces_see_nothing(backend: str, n_vertices: int) -> None:
    raster = rasterize(torch.ones(n_vertices, 4), torch.zeros(0, 3, dtype=torch.int64), 4, 6, backend)
    assert raster.face_index.shape == (4, 6) and raster.barycentrics.shape == (4, 6, 3)
    assert (raster.face_index == -1).all() and (raster.depth == math.inf).all() and (raster.barycentrics == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_and_broken_faces_cover_nothing(backend: str) -> None:
    positions = flat([(-0.5, -0.5), (0.5, -0.5), (0.0, 0.5), (0.25, -0.5)])
    broken = torch.tensor([[math.nan, 0, 0, 1], [math.inf, 0, 0, 1], [0, 0, -2.0, 1.0], [0, 0, 0, 0]])
    positions = torch.cat([positions, broken, positions * -1.0])
    faces = [[0, 0, 0], [0, 1, 1], [0, 1, 3], [0, 1, 4], [5, 1, 2], [6, 6, 6], [7, 7, 7], [8, 9, 10]]
    raster = rasterize(positions, torch.tensor(faces), 16, 16, backend)
    assert not raster.covered.any()
    raster = rasterize(positions, torch.tensor([*faces, [0, 1, 2]]), 16, 16, backend)
    assert raster.face_index[raster.covered].unique().tolist() == [8]


@pytest.mark.compiler
def test_the_result_does_not_depend_on_threads() -> None:
    vertices, faces = sphere(0.9, rings=12)
    positions = clip_positions(vertices, camera(elevation_deg=30.0))[0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = rasterize(positions, faces.int(), 50, 40, "cpu")
        torch.set_num_threads(3)
        several = rasterize(positions, faces, 50, 40, "cpu")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(single.face_index, several.face_index)
    assert torch.equal(single.barycentrics, several.barycentrics)


def test_many_groups_of_fragments_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = sphere(0.9, rings=16)
    positions = clip_positions(vertices, camera())[0]
    whole = rasterize(positions, faces, 40, 40, "torch")
    monkeypatch.setattr("nerf_bridge.ops.raster.MAX_FRAGMENTS", 100)
    assert_close(whole, rasterize(positions, faces, 40, 40, "torch"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.ones(3, 3)}, "positions: expected shape"),
        ({"faces": torch.tensor([[0, 1, 3]])}, r"faces: expected indices in 0\.\.2, got 0\.\.3"),
        ({"faces": torch.tensor([[0, -1, 2]])}, r"got -1\.\.2"),
        ({"faces": torch.ones(1, 3)}, "faces: expected dtype"),
        ({"height": 0}, "at least 1"),
        ({"backend": "auto"}, "backend: expected"),
        ({"backend": "cuda"}, "positions: the backend cuda expects tensors on cuda, got cpu"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "positions": torch.ones(3, 4),
        "faces": torch.tensor([[0, 1, 2]]),
        "height": 4,
        "width": 4,
        "backend": "cpu",
    }
    with pytest.raises(ValueError, match=message):
        rasterize(**(arguments | change))  # type: ignore[arg-type]


def test_projection_maps_near_and_far_to_the_ends() -> None:
    matrix = projection_matrix(FOVY, aspect=2.0, near=0.5, far=8.0)
    edge = math.tan(FOVY / 2)
    points = torch.tensor([[0.0, 0.0, -0.5, 1.0], [0.0, 0.0, -8.0, 1.0], [2 * edge, edge, -1.0, 1.0]])
    clip = points @ matrix.T
    ndc = clip[:, :3] / clip[:, 3:]
    torch.testing.assert_close(ndc[:2, 2], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(ndc[2, :2], torch.tensor([1.0, 1.0]))
    assert projection_matrix(torch.full((5,), FOVY)).shape == (5, 4, 4)
    with pytest.raises(ValueError, match="near"):
        projection_matrix(FOVY, near=0.0)


def test_interpolation_is_differentiable_in_the_values() -> None:
    uvs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    faces = torch.tensor([[0, 1, 2]])
    values = torch.ones(3, 2, requires_grad=True)
    raster = rasterize_uv(uvs, faces, 8, "torch")
    interpolate(raster, faces, values).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad[:, 0], raster.barycentrics.sum(dim=(0, 1)))
