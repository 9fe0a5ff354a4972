"""The parts of training that need no GPU; the training itself is tried on one (marker cuda)."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.prior import embedded
from nerf_bridge.prior.batches import Batch
from nerf_bridge.prior.data.pack import pack_library
from nerf_bridge.prior.data.primitives import build_primitives
from nerf_bridge.prior.designs import DESIGNS
from nerf_bridge.prior.embedded import load_weights, save_weights
from nerf_bridge.prior.train import (
    ASTRAY_FROM,
    FlatParameters,
    diffusion_loss,
    draw_times,
    learning_rate,
    run,
    where_to_start,
)
from nerf_bridge.prior.unet import TOGETHER, Condition, UNet, UNetConfig, schedule

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


def test_a_quarter_of_the_times_and_some_by_chance_are_high() -> None:
    torch.manual_seed(0)
    t = draw_times(4000, torch.device("cpu"), 4)
    assert 0.0 < float(t.min()) < float(t.max()) < 1.0
    assert 0.42 < float(((t >= 0.7) & (t <= 0.98)).float().mean()) < 0.5  # 1/4 and 0.28 of the rest
    noisy_sets = t.unflatten(0, (-1, TOGETHER))[::4]
    assert float(noisy_sets.min()) >= 0.7


def told_nothing(b: int) -> Condition:
    return Condition(
        torch.zeros(b, 4, 384), torch.zeros(b, 4, dtype=torch.bool), torch.zeros(b, 13), torch.zeros(b, 6, 8, 8)
    )


def test_the_answer_to_what_has_gone_astray_is_the_image() -> None:
    """A network that knows the images has no loss, whatever is noised; below ASTRAY_FROM nothing has gone astray."""
    torch.manual_seed(0)
    images, astray = 2 * torch.rand(2, 512, 3, 16, 16) - 1
    asked = []

    def all_knowing(noised: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        asked.append((noised.float(), t))
        alpha, sigma = (level[:, None, None, None] for level in schedule(t))
        return (alpha * noised.float() - images) / sigma  # v of the image: x = alpha x_t - sigma v

    loss = diffusion_loss(all_knowing, Batch(images, astray, told_nothing(512)), noisy_every=4)
    assert float(loss) < 1e-3  # noised comes in bfloat16, which v takes over sigma; with this seed no t is near 0
    ((noised, t),) = asked
    alpha, sigma = (level[:, None, None, None] for level in schedule(t))

    def is_noise(rest: torch.Tensor) -> torch.Tensor:
        return ((rest / sigma).flatten(1).std(1) - 1).abs()

    from_astray = is_noise(noised - alpha * astray) < is_noise(noised - alpha * images)
    clear = t < 0.65  # above, noise hides what it was added to
    assert torch.equal(from_astray[clear], (t >= ASTRAY_FROM)[clear])


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] < 0.01
    assert rates[300] == 1.0
    assert rates[-1] < 0.02
    assert all(later <= earlier for earlier, later in pairwise(rates[400:]))


def arguments(out: Path, start_from: Path | None = None, resume: bool = False) -> Namespace:
    return Namespace(out=out, start_from=start_from, resume=resume)


def test_going_on_takes_the_weights_and_the_record_of_how_they_came(tmp_path: Path) -> None:
    assert where_to_start(arguments(tmp_path)) == (None, [])
    save_weights(UNet(TINY), tmp_path / "w", {"seed": 1, "log": [{"step": 5}], "earlier": [{"seed": 0}]})
    expected = (tmp_path / "w", [{"seed": 0}, {"seed": 1, "log": [{"step": 5}]}])
    assert where_to_start(arguments(tmp_path / "w", resume=True)) == expected
    assert where_to_start(arguments(tmp_path / "new", start_from=tmp_path / "w")) == expected
    with pytest.raises(UserError, match="not both"):
        where_to_start(arguments(tmp_path / "w", tmp_path / "w", resume=True))
    with pytest.raises(UserError, match="no weights to go on from"):
        where_to_start(arguments(tmp_path / "new", resume=True))


@pytest.mark.parametrize("in_sets", [64, 384, -128])
def test_sets_that_do_not_fill_a_step_are_refused(in_sets: int) -> None:
    with pytest.raises(UserError, match=rf"--in-sets: expected a multiple of 128 up to --batch \(256\), got {in_sets}"):
        run(Namespace(in_sets=in_sets, batch=256, noisy_every=4, astray_every=2), 0, 1)


def test_what_fills_a_step_goes_by_the_share_of_noisy_sets() -> None:
    with pytest.raises(UserError, match=r"--in-sets: expected a multiple of 64 up to --batch \(384\), got 96"):
        run(Namespace(in_sets=96, batch=384, noisy_every=2, astray_every=0), 0, 1)
    with pytest.raises(UserError, match="--noisy-every: expected a whole number from 1, got 0"):
        run(Namespace(in_sets=0, batch=384, noisy_every=0, astray_every=0), 0, 1)
    with pytest.raises(UserError, match="--astray-every: expected a whole number from 0, got -1"):
        run(Namespace(in_sets=0, batch=384, noisy_every=2, astray_every=-1), 0, 1)
    missing = Namespace(in_sets=192, batch=384, noisy_every=2, astray_every=2, resume=True, start_from=Path("w"))
    with pytest.raises(UserError, match="--resume goes on from --out"):  # so 192 were taken, as the shipped weights had
        run(missing, 0, 1)


def test_a_kill_while_weights_are_written_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_weights(UNet(TINY), tmp_path, {})
    before = {name: value.clone() for name, value in load_weights(tmp_path).network.state_dict().items()}
    real, written = embedded.save_file, []

    def killed(shard: dict, path: Path) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(shard, path)

    monkeypatch.setattr(embedded, "save_file", killed)
    monkeypatch.setattr(embedded, "LARGEST_SHARD_BYTES", 2**16 + 2**17)
    with pytest.raises(KeyboardInterrupt):
        save_weights(UNet(TINY), tmp_path, {})
    after = load_weights(tmp_path).network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.cuda
def test_a_short_training_runs_and_saves_weights(tmp_path: Path) -> None:
    library = tmp_path / "library.npz"
    pack_library(build_primitives(0, n_single=30, n_pairs=10), library)
    command = [sys.executable, "-m", "nerf_bridge.prior.train", "--library", str(library), "--out", str(tmp_path / "w")]
    command += ["--minutes", "0.3", "--views", "4", "--batch", "128"]
    subprocess.run(command, check=True, env=os.environ | {"RANK": "0", "WORLD_SIZE": "1"})
    stored = load_weights(tmp_path / "w")
    assert stored.designs == DESIGNS
    assert all(bool(torch.isfinite(p).all()) for p in stored.network.parameters())
    log = json.loads((tmp_path / "w" / "index.json").read_text())["training"]["log"]
    assert log[-1]["loss"] < 0.5
    assert load_weights(tmp_path / "w").together == 1
    subprocess.run(
        [*command, "--resume", "--in-sets", "128"], check=True, env=os.environ | {"RANK": "0", "WORLD_SIZE": "1"}
    )
    again = json.loads((tmp_path / "w" / "index.json").read_text())["training"]
    assert load_weights(tmp_path / "w").together == TOGETHER
    assert again["earlier"][0]["log"] == log and again["log"][-1]["loss"] < 1.2 * log[-1]["loss"]
