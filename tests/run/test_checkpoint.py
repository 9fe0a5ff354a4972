"""A checkpoint is the old pair or the new one, and damage is told in one line."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nerf_bridge.errors import UserError
from nerf_bridge.run import checkpoint
from nerf_bridge.run.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {
        "field.table": torch.full((7, 3), value),
        "occupied": torch.tensor([[True, False], [False, True]]).T,  # not contiguous
        "generator": torch.get_rng_state(),
        "moment": torch.tensor(value, dtype=torch.float64),
        "half": torch.full((3,), value, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None
    saved, state = tensors(0.1), {"step": 50, "rate": 0.1 + 0.2, "guard": {"skipped": 0, "since": None}}
    save_checkpoint(tmp_path / "c", saved, state)
    loaded, loaded_state = load_checkpoint(tmp_path / "c")
    assert loaded_state == state
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    first = tensors(0.1)
    save_checkpoint(tmp_path / "a", first, {"step": 1, "hash": "x"})
    save_checkpoint(tmp_path / "b", tensors(0.5), {"step": 0, "hash": "x"})
    backwards = {name: first[name].clone().requires_grad_(name == "moment") for name in reversed(first)}
    save_checkpoint(tmp_path / "b", backwards, {"hash": "x", "step": 1})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 2


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    base = torch.arange(6.0)
    save_checkpoint(tmp_path, {"all": base, "part": base[2:4]}, {})
    loaded, _ = load_checkpoint(tmp_path)
    assert torch.equal(loaded["part"], torch.tensor([2.0, 3.0]))


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.mark.parametrize("moment", ["before the tensors", "between the two files", "before old files go"])
def test_killed_at_any_moment_keeps_a_matching_pair(tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})

    def die(*arguments):
        raise Killed

    name = {"before the tensors": "write_bytes", "between the two files": "write_json", "before old files go": "sync"}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, name[moment], die)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, tensors(2.0), {"step": 2})
    loaded, state = load_checkpoint(tmp_path)
    expected = 2 if moment == "before old files go" else 1
    assert state == {"step": expected} and loaded["moment"].item() == expected
    save_checkpoint(tmp_path, tensors(3.0), {"step": 3})
    assert load_checkpoint(tmp_path)[1] == {"step": 3}
    assert len(contents(tmp_path)) == 2


def test_killed_in_the_first_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    def die(*arguments):
        raise Killed

    monkeypatch.setattr(checkpoint, "write_json", die)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    assert not has_checkpoint(tmp_path) and load_checkpoint(tmp_path) is None


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    before = contents(tmp_path)

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, tensors(2.0), {"step": 2})
    assert contents(tmp_path) == before


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and f"delete the directory {folder}" in message
    return message


def only_tensor_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_truncated_tensors(tmp_path):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    file = only_tensor_file(tmp_path)
    size = file.stat().st_size
    os.truncate(file, size // 2)
    assert f"has {size // 2} bytes and should have {size}" in refused(tmp_path)
    os.truncate(file, 0)
    assert file.name in refused(tmp_path)
    file.unlink()
    assert "missing" in refused(tmp_path)


def test_changed_tensors(tmp_path):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    file = only_tensor_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "hash" in refused(tmp_path)


def test_damaged_state(tmp_path):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    file = tmp_path / "state.json"
    good = file.read_text()
    for bad in ("", good[: len(good) // 2], "[]", "{}", '{"state": 1, "tensors": 2}', "\x00" * 40):
        file.write_text(bad)
        assert "state.json" in refused(tmp_path)
    file.write_text(good.replace('"step": 1', '"step": 2'))
    assert "hash" in refused(tmp_path)


def test_no_file_outside_the_folder_is_read(tmp_path):
    folder = tmp_path / "c"
    save_checkpoint(folder, tensors(1.0), {"step": 1})
    changed = json.loads((folder / "state.json").read_text())
    changed["tensors"]["file"] = "../elsewhere.safetensors"
    (folder / "state.json").write_text(json.dumps(changed))
    refused(folder)


def test_another_format_is_refused(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    assert "format 1" in refused(tmp_path)


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    save_checkpoint(tmp_path, tensors(1.0), {"step": 1})
    before = contents(tmp_path)
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path, tensors(1.0), {"loss": float("inf")})
    assert contents(tmp_path) == before


SAVE_FOR_EVER = """
import itertools, sys, torch
from pathlib import Path
from nerf_bridge.run.checkpoint import save_checkpoint
for step in itertools.count():
    save_checkpoint(Path(sys.argv[1]), {"w": torch.full((20000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def test_kill_9_leaves_a_matching_pair(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 20:
            break
    time.sleep(random.uniform(0.0, 0.01))
    process.kill()
    process.wait()
    process.stdout.close()
    loaded, state = load_checkpoint(tmp_path)
    assert state["step"] >= 20
    assert torch.equal(loaded["w"], torch.full((20000,), float(state["step"])))
