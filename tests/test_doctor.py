"""The doctor: finds what is there, names what is not with a remedy, and says whether the main job can run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from nerf_bridge import doctor
from nerf_bridge.doctor import Check, can_run, examine, format_table
from nerf_bridge.memory import available


def test_each_lack_has_a_remedy_and_each_check_a_finding() -> None:
    checks = examine()
    assert len({check.name for check in checks}) == len(checks) == 13
    for check in checks:
        assert check.found, check
        assert "\n" not in check.found + check.remedy
        assert check.ok or check.remedy, check


def test_this_environment_has_what_the_tests_need() -> None:
    for check in (doctor.check_python(), doctor.check_libraries(), doctor.check_torch(), doctor.check_text_encoder()):
        assert check.ok, check
    assert torch.__version__ in doctor.check_torch().found


def test_table_and_verdict() -> None:
    checks = [Check("Python", True, "3.11"), Check("GPU", False, "none", "get one", needed=False)]
    text = format_table(checks)
    assert text.splitlines()[:2] == ["ok    Python  3.11", "lack  GPU     none"]
    assert "GPU (optional): get one" in text
    assert text.endswith("The main job can run here.")
    assert can_run(checks)
    broken = [*checks, Check("prior", False, "damaged", "install again")]
    assert not can_run(broken)
    assert format_table(broken).endswith("The main job cannot run here yet.")
    assert "What to do" not in format_table(checks[:1])


def write_prior(folder: Path) -> Path:
    """A folder that looks like a prior's: one file and its index."""
    (folder / "unet-1-of-1.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    (folder / "index.json").write_text(json.dumps({"sha256": {"unet-1-of-1.safetensors": digest}}), encoding="utf-8")
    return folder


def test_a_sound_prior(tmp_path: Path) -> None:
    check = doctor.check_prior(write_prior(tmp_path))
    assert check.ok
    assert "1 files" in check.found


def test_a_damaged_prior(tmp_path: Path) -> None:
    (write_prior(tmp_path) / "unet-1-of-1.safetensors").write_bytes(b"weightz")
    check = doctor.check_prior(tmp_path)
    assert not check.ok
    assert check.found == "damaged: unet-1-of-1.safetensors"
    assert "pip install" in check.remedy


@pytest.mark.parametrize(
    "index", [None, "{", "{}", "[]", '{"sha256": []}', '{"sha256": {"gone": "x"}}', '{"sha256": {}}']
)
def test_an_absent_or_broken_prior(tmp_path: Path, index: str | None) -> None:
    if index is not None:
        (tmp_path / "index.json").write_text(index, encoding="utf-8")
    check = doctor.check_prior(tmp_path)
    assert not check.ok
    assert check.needed


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nerf_bridge.ops.build.shutil.which", lambda name: None)
    for check, remedy in ((doctor.check_compiler(), "apt install g++"), (doctor.check_nvcc(), "CUDA toolkit")):
        assert not check.ok
        assert not check.needed
        assert check.found.startswith("no compiler for the ")
        assert remedy in check.remedy


def test_a_backend_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from nerf_bridge.errors import UserError

    def fail(kind: str) -> None:
        raise UserError(f"the backend {kind!r} cannot be loaded: because")

    monkeypatch.setattr("nerf_bridge.ops.backend.library", fail)
    check = doctor.check_cpu_backend()
    assert (check.ok, check.needed) == (False, False)
    assert "because" in check.remedy


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build of torch" in doctor.check_gpu().remedy
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    check = doctor.check_gpu()
    assert not check.needed
    assert "driver" in check.remedy
    assert not doctor.check_cuda_backend().ok


def test_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * doctor.GIB, 80 * doctor.GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr("nerf_bridge.ops.backend.library", lambda kind: None)
    found = "Some GPU, 60.0 of 80.0 GiB free: as large as --memory 24gb"
    assert doctor.check_gpu() == Check("GPU", True, found, needed=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 * doctor.GIB, 80 * doctor.GIB))
    assert doctor.check_gpu().found.endswith("free: less than --memory 8gb is made for")
    assert doctor.check_cuda_backend().ok


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "xatlas" else find(name))
    check = doctor.check_libraries()
    assert (check.ok, check.found) == (False, "missing: xatlas")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB free in" in doctor.check_disk(tmp_path).found
    monkeypatch.setattr("os.access", lambda *_: False)
    assert not doctor.check_disk(tmp_path).ok


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_GIB", 1e9)
    check = doctor.check_disk(tmp_path)
    assert (check.ok, check.needed) == (False, True)


def test_ffmpeg_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_ffmpeg().ok
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "/nowhere/ffmpeg")
    check = doctor.check_ffmpeg()
    assert not check.ok
    assert "imageio-ffmpeg" in check.remedy


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available, "main_memory", lambda: doctor.GIB)
    check = doctor.check_memory()
    assert not check.ok and check.found == "1.0 GiB available"
    monkeypatch.setattr(available, "main_memory", lambda: None)
    assert doctor.check_memory().ok
