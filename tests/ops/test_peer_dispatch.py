"""The public functions hand over to a peer: with stand-ins for the peers, a render through them is ours."""

from __future__ import annotations

import pytest
import torch
from test_peers import NERFACC, Encoding, scene, sigmas_and_features, traverse_grids

from nerf_bridge.config import FieldConfig
from nerf_bridge.ops import peers
from nerf_bridge.ops.composite import composite
from nerf_bridge.ops.march import march_rays
from nerf_bridge.render import render
from nerf_bridge.scene import field
from nerf_bridge.scene.cameras import turntable_cameras

pytestmark = pytest.mark.compiler
CALLS: list[str] = []


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers in plain torch operations, whose gaps the CPU's kernels fill; CALLS notes who was asked."""
    modules = {"nerfacc": {"traverse_grids": traverse_grids, **NERFACC}, "tcnn": {"Encoding": Encoding}}

    def require(name: str) -> object:
        CALLS.append(name)
        return type(name, (), {key: staticmethod(value) for key, value in modules[name].items()})

    CALLS.clear()
    monkeypatch.setattr(peers, "require", require)
    monkeypatch.setattr(peers, "kernels_of", lambda backend: "cpu" if backend in peers.MODULES else backend)
    monkeypatch.setattr(field, "can_run", lambda *sizes: False)
    peers._tcnn_level.cache_clear()


def test_march_and_composite_ask_nerfacc():
    rays = scene(40)
    got, expected = (march_rays(*rays[:3], 0.05, rays[3], name) for name in ("nerfacc", "cpu"))
    assert torch.equal(got.ray_indices, expected.ray_indices) and torch.allclose(got.points, expected.points, atol=1e-5)
    packed = (expected.t_starts, expected.t_ends, expected.packed_info)
    sums = [composite(*sigmas_and_features(expected.n), *packed, name) for name in ("nerfacc", "cpu")]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*sums, strict=True))
    assert CALLS == ["nerfacc", "nerfacc"]


@pytest.mark.parametrize("name", ["nerfacc", "tcnn"])
def test_a_render_through_a_peer_is_ours(name):
    cells, cameras = torch.ones(8, 8, 8, dtype=torch.bool), turntable_cameras(1, 0.3, 3.0, 0.7)
    pictures = []
    for backend in (name, "cpu"):
        ball = field.HashGridField(FieldConfig(n_levels=2, log2_table_size=8), 0, backend)
        pictures.append(render(ball, cells, cameras, 8, torch.zeros(1, 3), 0.1, backend))
    assert torch.allclose(pictures[0].color, pictures[1].color, atol=1e-5)
    assert torch.allclose(pictures[0].depth, pictures[1].depth, atol=1e-5) and set(CALLS) == {name}
