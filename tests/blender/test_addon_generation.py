"""Generations in the background, against a stub with the real command line, run directory and events."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from nerf_bridge_addon.errors import AddonError
from nerf_bridge_addon.generation import Generation, Request, Status, command_words, generate_words, run_name
from nerf_bridge_addon.runs import read_run

import nerf_bridge
from nerf_bridge import cli
from nerf_bridge.run.directory import default_run_path
from nerf_bridge.run.lock import take_lock

STUB = shlex.join([sys.executable, str(Path(__file__).with_name("stub_nerf_bridge.py"))])


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asset = tmp_path / "any.glb"
    asset.write_bytes(b"a mesh")
    monkeypatch.setenv("STUB_ASSET", str(asset))
    monkeypatch.setenv("PYTHONPATH", str(Path(nerf_bridge.__file__).parents[1]))


def wait(generation: Generation, enough: Callable[[Status], bool], seconds: float = 60.0) -> list[Status]:
    """Look every 10 ms until a status is `enough`; all that were seen."""
    seen: list[Status] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen.append(generation.poll())
        if enough(seen[-1]):
            return seen
        time.sleep(0.01)
    raise AssertionError(f"still {seen[-1]}")


def ended(status: Status) -> bool:
    return status.state != "running"


def test_a_generation_goes_from_start_through_progress_to_the_asset(tmp_path: Path) -> None:
    generation = Generation(STUB, Request("a green  chair ", 2, 20), tmp_path / "new" / "runs")
    seen = wait(generation, ended)
    assert generation.run == tmp_path / "new" / "runs" / "a-green-chair-s2"
    assert seen[-1] == Status("done", "made a-green-chair-s2", 1.0)
    assert seen[0].text == "starting"
    fractions = [status.fraction for status in seen]
    assert fractions == sorted(fractions) and len(set(fractions)) > 5
    assert "optimise, step 10 of 20" in [status.text for status in seen]
    assert read_run(generation.run).state == "done"
    generation.close()


def test_stopping_is_an_interrupt_and_the_same_request_goes_on(tmp_path: Path) -> None:
    request = Request("slow chair", 0, 50)
    generation = Generation(STUB, request, tmp_path)
    wait(generation, lambda status: status.text.startswith("optimise"))
    generation.stop()
    assert wait(generation, ended)[-1].state == "stopped"
    assert read_run(generation.run).state == "interrupted"
    generation.close()
    again = Generation(STUB, request, tmp_path)
    assert again.run == generation.run and again.poll().fraction == 0.0  # what the first start said is over
    wait(again, lambda status: status.text.startswith("optimise"))
    again.close()
    assert again._process.wait(60) == 130


def test_stopping_before_the_command_can_listen_counts_as_stopped(tmp_path: Path) -> None:
    generation = Generation(f"{sys.executable} -c 'import time; time.sleep(60)'", Request("a chair"), tmp_path)
    generation.stop()
    generation.stop()
    assert wait(generation, ended)[-1].state == "stopped"
    generation.stop()  # nothing is left to stop
    generation.close()


def test_a_failure_is_the_commands_own_line(tmp_path: Path) -> None:
    generation = Generation(STUB, Request("broken chair", 0, 3), tmp_path)
    assert wait(generation, ended)[-1] == Status("failed", "the run failed: the scene stayed empty", 1.0)
    generation.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [("--faces many", "mesh.faces: got 'many', allowed: a whole number"), ("--fases 3", "unknown option --fases")],
)
def test_a_wrong_option_is_the_commands_own_line(tmp_path: Path, options: str, says: str) -> None:
    generation = Generation(STUB, Request("a chair", 0, 3, options), tmp_path)
    status = wait(generation, ended)[-1]
    assert status.state == "failed" and status.text.startswith(says) and "\n" not in status.text
    assert not generation.run.exists()
    generation.close()


def test_a_run_at_work_elsewhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "a-chair-s0").mkdir()
    with take_lock(tmp_path / "a-chair-s0" / ".lock"):
        generation = Generation(STUB, Request("a chair", 0, 3), tmp_path)
        assert wait(generation, ended)[-1].text.startswith("another process is at work in")
    generation.close()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import sys; sys.stderr.write('some\\nbar 3%\\rwhat broke\\n'); sys.exit(7)",
            "ended with status 7: what broke",
        ),
        ("import os; os.kill(os.getpid(), 9)", "the command was ended by SIGKILL"),
        ("pass", "the command ended without an asset in"),
    ],
)
def test_a_command_that_is_not_ours_is_told_as_it_ended(tmp_path: Path, code: str, says: str) -> None:
    generation = Generation(shlex.join([sys.executable, "-c", code]), Request("a chair"), tmp_path)
    status = wait(generation, ended)[-1]
    assert status.state == "failed" and says in status.text
    generation.close()


@pytest.mark.parametrize("command", ["", "  ", "no-such-program-here", "/no/such/nerf-bridge generate", "'open quote"])
def test_a_command_that_is_not_there_names_the_preferences(tmp_path: Path, command: str) -> None:
    with pytest.raises(AddonError, match="give its full path in the add-on's preferences"):
        Generation(command, Request("a chair"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_path_with_spaces_is_one_word(tmp_path: Path) -> None:
    program = tmp_path / "my programs" / "nerf-bridge"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    assert command_words(f" {program} ") == [str(program)]


@pytest.mark.parametrize(
    ("request_", "says"), [(Request("  \n"), "the prompt is empty"), (Request("x", options="'open"), "the options")]
)
def test_a_request_that_cannot_be_met_is_refused(tmp_path: Path, request_: Request, says: str) -> None:
    with pytest.raises(AddonError, match=says):
        Generation(STUB, request_, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AddonError, match="cannot start .*file/runs: Not a directory"):
        Generation(STUB, Request("a chair"), tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    "prompt", ["a chair", "--help", "-a chair", "a \"quoted\" 'chair'; rm -rf $HOME", "ein Stühlchen"]
)
def test_the_real_command_line_understands_the_words(tmp_path: Path, prompt: str) -> None:
    words = generate_words(["nerf-bridge"], Request(prompt, 4, 30, "--faces 900 --config quick"), tmp_path / "r")
    arguments = cli._parse(words[1:])
    assert (arguments.prompt, arguments.out, arguments.problems) == (prompt, tmp_path / "r", [])
    assert (arguments.config, vars(arguments)["setting mesh.faces"]) == ("quick", "900")
    assert (vars(arguments)["setting seed"], vars(arguments)["setting steps"]) == ("4", "30")


def test_without_steps_the_command_decides(tmp_path: Path) -> None:
    assert "--steps" not in generate_words(["nerf-bridge"], Request("a chair"), tmp_path)


LONG = "a very long prompt about a chair with many words in it that go on and on"


@pytest.mark.parametrize("prompt", ["a chair", "Ein Stühlchen", "стул", "椅子 chair", "!?", "x" * 80, LONG, "a--b  c"])
def test_a_run_is_named_as_the_command_names_it(prompt: str) -> None:
    assert run_name(prompt, 7) == default_run_path(prompt, 7).name
