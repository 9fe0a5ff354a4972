"""Files appear whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from nerf_bridge.run import files as files_module
from nerf_bridge.run.files import replacing, write_all, write_bytes, write_json, write_text


def test_written_files_read_back(tmp_path):
    write_text(tmp_path / "a.txt", "grün\n")
    write_bytes(tmp_path / "b.bin", b"\x00\x01")
    write_json(tmp_path / "c.json", {"b": 1, "a": [1.5, None]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "grün\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"
    assert json.loads((tmp_path / "c.json").read_text()) == {"a": [1.5, None], "b": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin", "c.json"]


def test_temporary_sibling_keeps_the_suffix(tmp_path):
    with replacing(tmp_path / "asset.glb") as aside:
        assert aside.suffix == ".glb" and aside.parent == tmp_path
        aside.write_bytes(b"x")
        assert not (tmp_path / "asset.glb").exists()
    assert (tmp_path / "asset.glb").read_bytes() == b"x"


def test_failure_keeps_the_old_file_and_removes_the_temporary(tmp_path):
    target = tmp_path / "asset.glb"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as aside:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_passes_on_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "run.json"
    write_json(target, {"state": "running"})

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_json(target, {"state": "done"})
    assert caught.value.errno == errno.ENOSPC
    assert json.loads(target.read_text()) == {"state": "running"}
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_at_the_rename(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_not_a_number(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_several_files_appear_together(tmp_path):
    (tmp_path / "b").write_text("old")
    write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "1", "b": "2"}


@pytest.mark.parametrize("failing", range(5))
def test_several_files_are_written_all_or_none(tmp_path, monkeypatch, failing):
    """Whichever of the renames goes wrong: a and c are new, b is there before."""
    (tmp_path / "b").write_text("old")
    real, left = os.replace, iter(range(failing))

    def fail_once(source, target):
        if next(left, None) is None:
            monkeypatch.setattr(os, "replace", real)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    files = {tmp_path / name: b"new" for name in "abc"}
    if failing < 4:  # a, b aside, b, c
        with pytest.raises(OSError, match="Input/output"):
            write_all(files)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "old"}
    else:
        write_all(files)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "new")


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_in_the_place_of_a_file_is_never_moved(tmp_path, monkeypatch, late):
    """Whether it is there from the start or comes while the files are written."""
    (tmp_path / "a").write_text("old")
    real, folder = files_module.sync, tmp_path / "b"

    def sync_and_make(path):
        folder.mkdir(exist_ok=True)
        real(path)

    if late:
        monkeypatch.setattr(files_module, "sync", sync_and_make)
    else:
        folder.mkdir()
    with pytest.raises(IsADirectoryError):
        write_all({tmp_path / "a": b"new", folder: b"new"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"] and folder.is_dir()
    assert (tmp_path / "a").read_text() == "old"


def test_an_old_file_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    write_all({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(tmp_path / name).read_text() for name in "ab"] == ["new", "new"]
