"""The parts of training that need no GPU; the training itself is tried on one (marker cuda)."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.embedded import load_weights
from nerf_bridge.prior.train import FlatParameters, draw_times, learning_rate
from nerf_bridge.prior.unet import Condition, UNet, UNetConfig

TINY = UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=4)


def test_flat_parameters_are_the_networks_own() -> None:
    torch.manual_seed(0)
    network = UNet(TINY)
    original = {name: value.clone() for name, value in network.state_dict().items()}
    flat = FlatParameters(network)
    for name, value in network.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.allclose(value.float(), original[name], atol=1e-2)
    for name, value in flat.averaged(TINY).state_dict().items():
        assert torch.equal(value, original[name]), name
    flat.weights.zero_()
    assert all(float(p.detach().abs().sum()) == 0 for p in network.parameters())


def test_gradients_arrive_in_the_flat_tensor() -> None:
    torch.manual_seed(0)
    network = UNet(TINY)
    flat = FlatParameters(network)
    bf16 = torch.bfloat16
    told = Condition(
        torch.randn(2, 4, 384, dtype=bf16),
        torch.ones(2, 4, dtype=torch.bool),
        torch.randn(2, 13, dtype=bf16),
        torch.randn(2, 6, 8, 8, dtype=bf16),
    )
    network(torch.randn(2, 3, 16, 16, dtype=bf16), torch.tensor([0.2, 0.8]), told).float().square().sum().backward()
    assert float(flat.gradient.float().norm()) == 0.0  # the last convolution starts at zero, and so does every gradient
    with torch.no_grad():
        network.conv_out.weight.normal_()
    network(torch.randn(2, 3, 16, 16, dtype=bf16), torch.tensor([0.2, 0.8]), told).float().square().sum().backward()
    assert float(flat.gradient.float().norm()) > 0.0


def test_half_of_the_times_are_high() -> None:
    torch.manual_seed(0)
    t = draw_times(4000, torch.device("cpu"))
    assert 0.0 < float(t.min()) < float(t.max()) < 1.0
    assert 0.6 < float(((t >= 0.7) & (t <= 0.98)).float().mean()) < 0.68


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.01
    assert rates[300] == 1.0
    assert rates[-1] < 0.02
    assert all(later <= earlier for earlier, later in pairwise(rates[400:]))


@pytest.mark.cuda
def test_a_short_training_runs_and_saves_weights(tmp_path: Path) -> None:
    library = tmp_path / "library.npz"
    pack_library(build_primitives(0, n_single=30, n_pairs=10), library)
    command = [sys.executable, "-m", "nerf_bridge.prior.train", "--library", str(library), "--out", str(tmp_path / "w")]
    command += ["--minutes", "0.3", "--views", "4", "--batch", "64"]
    subprocess.run(command, check=True, env=os.environ | {"RANK": "0", "WORLD_SIZE": "1"})
    network, _ = load_weights(tmp_path / "w")
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())
    log = json.loads((tmp_path / "w" / "index.json").read_text())["training"]["log"]
    assert log[-1]["loss"] < 0.5
