"""Other people's kernels: what is said where they cannot be had, the arithmetic around them, parity where they are.

The stand-ins below follow what the peers document, in plain loops, so that the arithmetic around them is tested
anywhere.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.ops import backend, peers
from nerf_bridge.ops.composite import composite, composite_torch
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode, hash_encode_torch
from nerf_bridge.ops.march import intersect_box_torch, march_rays, march_rays_torch

SPEC = HashGridSpec(n_levels=4, n_features=2, log2_table_size=10, base_resolution=4, finest_resolution=40)


@pytest.fixture(autouse=True)
def forgotten():
    """Every test starts and ends without remembered modules."""
    caches = (peers.load, peers._tcnn_level)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "nerfacc": SimpleNamespace(traverse_grids=traverse_grids, **NERFACC),
        "tcnn": SimpleNamespace(Encoding=Encoding),
    }
    monkeypatch.setattr(peers, "require", lambda name: modules[name])


@pytest.mark.parametrize("name", ["nerfacc", "tcnn"])
def test_without_a_gpu_the_error_says_so(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=f"backend '{name}' cannot be loaded: torch sees no CUDA GPU.*use --backend auto"
    ):
        backend.resolve_backend(name, "cpu")


@pytest.mark.parametrize(
    ("name", "remedy"), [("nerfacc", "pip install nerfacc"), ("tcnn", "pip install git.*tiny-cuda-nn")]
)
def test_not_installed_names_the_remedy_in_one_line(name, remedy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(peers.MODULES, name, "no_such_module_here")
    with pytest.raises(
        UserError, match=f"backend '{name}' cannot be loaded: it is not installed; remedy: {remedy}"
    ) as error:
        peers.require(name)
    assert "\n" not in str(error.value)


def test_a_peer_that_breaks_while_it_is_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "broken_peer.py").write_text("raise OSError('libcudart.so:\\n not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(peers.MODULES, "tcnn", "broken_peer")
    with pytest.raises(UserError, match="importing it failed: libcudart.so: not found; remedy: pip install"):
        peers.require("tcnn")


def test_nerfacc_without_its_kernels_is_refused_at_once(monkeypatch, tmp_path):
    (tmp_path / "nerfacc" / "cuda").mkdir(parents=True)
    for path, text in (("__init__.py", ""), ("cuda/__init__.py", ""), ("cuda/_backend.py", "_C = None")):
        (tmp_path / "nerfacc" / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="found no CUDA toolkit"):
        peers.require("nerfacc")


def test_a_peer_on_another_device_is_refused(stand_ins):
    with pytest.raises(
        UserError, match="'nerfacc' works on the device 'cuda', but the device is 'cpu': use --device cuda"
    ):
        backend.resolve_backend("nerfacc", "cpu")


def test_what_a_peer_does_not_do_our_cuda_kernels_do():
    assert [peers.kernels_of(name) for name in ("nerfacc", "tcnn", "cuda", "cpu", "torch")] == ["cuda"] * 3 + [
        "cpu",
        "torch",
    ]
    with pytest.raises(ValueError, match="x: the backend cuda expects tensors on cuda, got cpu"):
        backend.check_float("x", torch.zeros(1), "tcnn")


@pytest.mark.parametrize("finest", [4, 9, 40])
def test_tcnn_gives_our_encoding_and_its_gradients(stand_ins, finest):
    spec = HashGridSpec(4, 2, 10, 4, finest)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator) * 1.2 - 0.1
    points[:3] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.0, 1.0]])
    results = []
    for encode in (peers.hash_encode, hash_encode_torch):
        table = torch.randn(spec.n_entries, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
        out = encode(points, table, spec)
        results.append((out, *torch.autograd.grad(out.sin().sum(), table)))
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_tcnn_refuses_a_number_of_features_that_it_lacks(stand_ins):
    spec = HashGridSpec(2, 3, 10, 4, 8)
    with pytest.raises(UserError, match="expects 1, 2, 4 or 8 features a level, got 3"):
        peers.hash_encode(torch.rand(5, 3), torch.zeros(spec.n_entries, 3), spec)


def test_more_points_than_tcnn_counts_are_refused(stand_ins):
    points = torch.zeros(1, 3).expand(2**27 + 1, 3)
    with pytest.raises(UserError, match="'tcnn' takes at most 134217728 points, got 134217729"):
        peers.hash_encode(points, torch.zeros(SPEC.n_entries, 2), SPEC)


@pytest.mark.parametrize("jittered", [False, True])
def test_nerfacc_gives_our_samples(stand_ins, jittered):
    rays_o, rays_d, occupied, jitter = scene(40)
    jitter = jitter if jittered else torch.zeros_like(jitter)
    near, far = intersect_box_torch(rays_o, rays_d)
    packed_info, ray_indices, t_starts, t_ends = peers.march(rays_o, rays_d, near + jitter * 0.05, far, occupied, 0.05)
    expected = march_rays_torch(rays_o, rays_d, occupied, 0.05, jitter)
    assert torch.equal(packed_info, expected.packed_info) and torch.equal(ray_indices, expected.ray_indices)
    assert torch.allclose(t_starts, expected.t_starts, atol=1e-6) and torch.allclose(t_ends, expected.t_ends, atol=1e-6)


def test_nerfacc_composites_as_we_do_with_empty_rays_among_others(stand_ins):
    rays_o, rays_d, occupied, jitter = scene(40)
    samples = march_rays_torch(rays_o, rays_d, occupied, 0.05, jitter)
    assert (samples.packed_info[:, 1] == 0).any()
    results = [run(*sigmas_and_features(samples.n), samples) for run in (through_nerfacc, through_torch)]
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_nothing_to_do_asks_nerfacc_for_nothing(stand_ins):
    none, cells = torch.empty(0, 3), torch.ones(4, 4, 4, dtype=torch.bool)
    packed_info, *rows = peers.march(none, none, torch.empty(0), torch.empty(0), cells, 0.1)
    assert packed_info.shape == (0, 2) and [row.shape for row in rows] == [(0,)] * 3
    out, *rest = peers.composite(torch.empty(0), torch.empty(0, 3), torch.empty(0), torch.empty(0), packed_info)
    assert out.shape == (0, 3) and [row.shape for row in rest] == [(0,)] * 3


@pytest.mark.cuda
@pytest.mark.nerfacc
def test_parity_of_nerfacc():
    rays = tuple(tensor.cuda() for tensor in scene(5000))
    got, expected = (march_rays(*rays[:3], 0.05, rays[3], name) for name in ("nerfacc", "cuda"))
    differing = (got.packed_info[:, 1] != expected.packed_info[:, 1]).float().mean()
    assert differing < 0.01 and abs(got.n - expected.n) <= 1e-3 * expected.n
    sigmas, features = (tensor.cuda() for tensor in sigmas_and_features(expected.n))
    packed = (expected.t_starts, expected.t_ends, expected.packed_info)
    results = []
    for name in ("nerfacc", "cuda"):
        leaves = [tensor.clone().requires_grad_() for tensor in (sigmas, features)]
        outputs = composite(*leaves, *packed, name)
        results.append([*outputs, *torch.autograd.grad(sum(out.sin().sum() for out in outputs), leaves)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.cuda
@pytest.mark.tcnn
def test_parity_of_tcnn():
    points = torch.rand(20000, 3, device="cuda")
    results = []
    for name in ("tcnn", "cuda"):
        table = torch.randn(SPEC.n_entries, 2, generator=torch.Generator().manual_seed(1)).cuda().requires_grad_()
        place = points.clone().requires_grad_()
        out = hash_encode(place, table, SPEC, name)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (place, table))])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 1e-3 * expected.abs().max()


def scene(n: int) -> tuple[torch.Tensor, ...]:
    """Rays, cells and jitter."""
    generator = torch.Generator().manual_seed(0)
    rays_o = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) * 3
    target = torch.rand(n, 3, generator=generator) * 3 - 1.5
    rays_d = torch.nn.functional.normalize(target - rays_o, dim=1)
    return rays_o, rays_d, torch.rand(12, 12, 12, generator=generator) < 0.4, torch.rand(n, generator=generator)


def sigmas_and_features(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, generator=generator) * 20, torch.randn(n, 4, generator=generator)


def through_nerfacc(sigmas, features, samples):
    return peers.composite(sigmas, features, samples.t_starts, samples.t_ends, samples.packed_info)


def through_torch(sigmas, features, samples):
    return composite_torch(sigmas, features, samples.t_starts, samples.t_ends, samples.packed_info)


def traverse_grids(rays_o, rays_d, binaries, aabbs, near_planes, far_planes, step_size):
    """nerfacc's intervals and samples: from the near plane on by steps that are added up, kept by the middle's cell."""
    assert aabbs.tolist() == [[-1, -1, -1, 1, 1, 1]] and binaries.shape[0] == 1
    edges, left, right, rays, counts = [], [], [], [], []
    for ray in range(len(rays_o)):
        t, before = near_planes[ray].clone(), len(rays)
        while t + 0.5 * step_size < far_planes[ray]:
            point = rays_o[ray] + (t + 0.5 * step_size) * rays_d[ray]
            x, y, z = ((point + 1) * 0.5 * binaries.shape[1]).long().clamp(0, binaries.shape[1] - 1).tolist()
            if binaries[0, x, y, z]:
                joined = bool(edges) and rays and rays[-1] == ray and edges[-1] == t
                edges += [t + step_size] if joined else [t.clone(), t + step_size]
                left, right = (
                    ([*left[:-1], True, False], [*right, True])
                    if joined
                    else ([*left, True, False], [*right, False, True])
                )
                rays.append(ray)
            t = t + step_size
        counts.append(len(rays) - before)
    per_ray = torch.tensor(counts)
    packed_info = torch.stack([per_ray.cumsum(0) - per_ray, per_ray], 1)
    intervals = SimpleNamespace(vals=torch.stack(edges), is_left=torch.tensor(left), is_right=torch.tensor(right))
    return intervals, SimpleNamespace(packed_info=packed_info, ray_indices=torch.tensor(rays)), None


def render_weight_from_density(t_starts, t_ends, sigmas, packed_info):
    weights = []
    for start, count in packed_info.tolist():
        thickness = (sigmas * (t_ends - t_starts))[start : start + count]
        weights.append(torch.exp(-(thickness.cumsum(0) - thickness)) * (1 - torch.exp(-thickness)))
    return torch.cat(weights), None, None


def accumulate_along_rays(weights, values, ray_indices, n_rays):
    source = weights[:, None] if values is None else weights[:, None] * values
    return torch.zeros(n_rays, source.shape[1]).index_add(0, ray_indices, source)


NERFACC = {"render_weight_from_density": render_weight_from_density, "accumulate_along_rays": accumulate_along_rays}


class Encoding(torch.nn.Module):
    """tiny-cuda-nn's hash grid of one level: r = base_resolution vertices a side, looked up at x (r - 1) + 1/2."""

    def __init__(self, n_input_dims, encoding_config, dtype):
        super().__init__()
        assert (n_input_dims, dtype, encoding_config["n_levels"]) == (3, torch.float32, 1)
        self.side, self.n_features = encoding_config["base_resolution"], encoding_config["n_features_per_level"]
        dense = math.ceil(self.side**3 / 8) * 8
        self.size = min(dense, 1 << encoding_config["log2_hashmap_size"])
        self.params = torch.nn.Parameter(torch.zeros(self.size * self.n_features))

    def forward(self, x):
        assert self.params.shape == (self.size * self.n_features,)
        position = x * (self.side - 1) + 0.5
        low = position.floor().long()
        fraction, value = position - low, 0.0
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2])
            a, b, c = (low + bits & 0xFFFFFFFF).unbind(1)
            index = (
                a + self.side * (b + self.side * c) if self.side**3 <= self.size else a ^ b * 2654435761 ^ c * 805459861
            )
            weight = torch.where(bits > 0, fraction, 1 - fraction).prod(1)
            value = value + weight[:, None] * self.params.view(-1, self.n_features)[(index & 0xFFFFFFFF) % self.size]
        return value
