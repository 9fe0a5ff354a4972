"""What `generate` says when its prior cannot be had: a clear line, exit code 2, and nothing on the disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import errors
from prior.catalogue.fake_hub import FakeHub, answer
from tiny_run import PROMPT, options

from nerf_bridge import cli
from nerf_bridge.prior.catalogue.entries import find_entry
from nerf_bridge.prior.catalogue.find import find_model

ALIAS = "sd21-base"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def refused(out: Path, capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of the error; nothing may be left at `out`."""
    capfd.readouterr()
    assert cli.main(["generate", PROMPT, "--out", str(out), *options(), *words]) == 2
    assert not out.exists()
    return [line for line in capfd.readouterr().err.splitlines() if "error" in line]


def test_a_wrong_path(tmp_path, capfd):
    (line,) = refused(tmp_path / "run", capfd, "--prior", str(tmp_path / "nowhere"))
    assert f"prior {tmp_path / 'nowhere'}: there is no such folder; give an alias (nerf-bridge priors list)" in line


def test_a_missing_file(published, tmp_path, capfd):
    path = find_model(ALIAS, False, False).path / WEIGHTS
    path.unlink()
    (line,) = refused(tmp_path / "run", capfd, "--prior", ALIAS)
    assert f"{path} is missing; fetch it again: nerf-bridge priors pull {ALIAS}" in line


def test_a_wrong_hash(published, tmp_path, capfd):
    path = find_model(ALIAS, False, False).path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (line,) = refused(tmp_path / "run", capfd, "--prior", ALIAS)
    assert re.search(
        rf"{path} has sha256 \w+..., but \S+ recorded \w+... at the first pull; delete {path} and", line
    ), line


def test_a_gated_repository(hub: FakeHub, tmp_path, capfd):
    (mirror,) = find_entry("sd3").mirrors
    hub.errors[mirror] = answer(errors.GatedRepoError, 403)
    line, next_thing = refused(tmp_path / "run", capfd, "--prior", "sd3")
    assert f"{mirror} is gated; read and accept its terms at" in line and "--prior FOLDER" in next_thing


def test_offline(hub: FakeHub, tmp_path, capfd):
    (line,) = refused(tmp_path / "run", capfd, "--prior", ALIAS, "--model.offline", "true")
    assert f"{ALIAS} is not on this disk, and model.offline forbids to ask the hub" in line
    assert hub.asked == []
