"""Events are whole lines, whatever kills or fills."""

import errno
import json
import os

import pytest

from nerf_bridge.run.events import EventLog, read_events


def test_lines_hold_the_five_names_and_the_figures(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path, clock=lambda: 12.3456) as log:
        log.append("progress", "optimise", 10, 300, {"opacity": 0.25, "gradient_norm": float("nan"), "words": "grün"})
        first = json.loads(path.read_text(encoding="utf-8"))  # there at once, before the log is closed
    expected = {"time": 12.346, "event": "progress", "stage": "optimise", "step": 10, "steps": 300}
    assert first == {**expected, "opacity": 0.25, "gradient_norm": None, "words": "grün"}


def test_a_second_log_appends(tmp_path):
    path = tmp_path / "events.jsonl"
    for event in ("start", "resumed"):
        with EventLog(path) as log:
            log.append(event, "optimise", 0, 1)
    assert [event["event"] for event in read_events(path)] == ["start", "resumed"]
    assert read_events(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_torn_last_line_is_left_out_and_then_repaired(tmp_path, kept):
    path = tmp_path / "events.jsonl"
    with EventLog(path, clock=lambda: 1.0) as log:
        log.append("start", "optimise", 0, 300)
        size = path.stat().st_size
        log.append("progress", "optimise", 10, 300)
    os.truncate(path, size + kept)
    assert [event["event"] for event in read_events(path)] == ["start"]
    with EventLog(path) as log:
        log.append("resumed", "optimise", 0, 300)
    assert [event["event"] for event in read_events(path)] == ["start", "resumed"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("start", "optimise", 0, 300)
    os.truncate(path, path.stat().st_size - 1)
    with EventLog(path) as log:
        log.append("resumed", "optimise", 0, 300)
    assert [event["event"] for event in read_events(path)] == ["start", "resumed"]


def test_a_damaged_line_in_the_middle_is_left_out(tmp_path, caplog):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "start"}\n\x00\x00\n[1]\n{"event": "done"}\n')
    assert [event["event"] for event in read_events(path)] == ["start", "done"]
    assert "damaged" in caplog.text


class FullDisk:
    """A file on a disk that takes five more bytes."""

    def __init__(self, file):
        self._file = file
        self._room = 5

    def write(self, data):
        if self._room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room = 0
        return self._file.write(data[:5])

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.append("start", "optimise", 0, 300)
        before = path.read_bytes()
        monkeypatch.setattr(log, "_file", FullDisk(log._file))
        with pytest.raises(OSError) as caught:
            log.append("progress", "optimise", 10, 300)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
