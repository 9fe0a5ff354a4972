"""A generation in a process of its own: its command, its progress, how it ends. Needs no Blender."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from .errors import AddonError
from .events import end_of_lines, read_progress

ERROR_PREFIX = "nerf-bridge: error: "
INTERRUPTED = 130
SLUG_CHARACTERS = 48
STDERR_BYTES = 1 << 14


@dataclass(frozen=True)
class Request:
    """What to make.

    Attributes:
        prompt: the words.
        seed: 0 or more.
        steps: optimisation steps; 0: as many as the command thinks right.
        options: further options of `nerf-bridge generate`, as typed in a shell.
    """

    prompt: str
    seed: int = 0
    steps: int = 0
    options: str = ""


@dataclass(frozen=True)
class Status:
    """Where a generation stands.

    Attributes:
        state: `stopped` is what the user asked for: the same request goes on later.
        text: one line for the user.
        fraction: of the optimisation steps, 0 to 1.
    """

    state: Literal["running", "done", "stopped", "failed"]
    text: str
    fraction: float


def run_name(prompt: str, seed: int) -> str:
    """The name that `nerf-bridge generate` gives a run directory, so that the same request finds the same run."""
    letters = unicodedata.normalize("NFKD", prompt)
    name = re.sub(r"[^a-z0-9]+", "-", letters.encode("ascii", "ignore").decode().lower()).strip("-")
    complete = not any(letter.isalnum() and not letter.isascii() for letter in letters)
    if not (name and complete and len(name) <= SLUG_CHARACTERS):
        words = name[: SLUG_CHARACTERS + 1].rpartition("-")[0] if len(name) > SLUG_CHARACTERS else name
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:6]
        name = f"{words or name[:SLUG_CHARACTERS] or 'prompt'}-{digest}"
    return f"{name}-s{seed}"


def command_words(command: str) -> list[str]:
    """The words that start the program, from the preferences' text: a path, or words as in a shell.

    Raises:
        AddonError: it is empty, or there is no such program.
    """
    text = os.path.expanduser(command.strip())
    remedy = "give its full path in the add-on's preferences, for example /home/me/.venv/bin/nerf-bridge"
    try:
        words = [text] if os.path.isfile(text) else shlex.split(text)
    except ValueError as error:
        raise AddonError(f"cannot make sense of the command {command!r} ({error}): {remedy}") from None
    if not words or shutil.which(words[0]) is None:
        raise AddonError(f"there is no program {words[0] if words else ''!r}: {remedy}")
    return words


def generate_words(command: list[str], request: Request, run: Path) -> list[str]:
    """The whole command of a generation whose run directory is `run`.

    Raises:
        AddonError: the prompt is empty or the options cannot be split into words.
    """
    prompt = " ".join(request.prompt.split())
    if not prompt:
        raise AddonError("the prompt is empty: say what to make, for example: a green armchair")
    try:
        options = shlex.split(request.options)
    except ValueError as error:
        raise AddonError(f"cannot make sense of the options {request.options!r} ({error})") from None
    steps = ["--steps", str(request.steps)] if request.steps else []
    return [*command, "generate", *options, f"--out={run}", "--seed", str(request.seed), *steps, "--", prompt]


class Generation:
    """A running `nerf-bridge generate`; the process goes on while Blender is used.

    Args:
        command: the program, as `command_words` takes it.
        request: what to make.
        folder: where run directories lie; made when absent.

    Attributes:
        run: the run directory.

    Raises:
        AddonError: the request cannot be met as it stands, or the program could not be started.
    """

    def __init__(self, command: str, request: Request, folder: Path) -> None:
        if os.name == "nt":
            raise AddonError("nerf_bridge does not run on Windows: make the run on Linux or macOS and import it here")
        self.run = folder / run_name(" ".join(request.prompt.split()), request.seed)
        words = generate_words(command_words(command), request, self.run)
        self._stops = 0
        self._events = self.run / "events.jsonl"
        self._start = end_of_lines(self._events)
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=os.environ | {"TQDM_MININTERVAL": "10"},
                start_new_session=True,  # so that stopping reaches the processes that it starts, too
            )
        except OSError as error:
            self._stderr.close()
            raise AddonError(f"cannot start {error.filename or words[0]}: {error.strerror or error}") from None

    def poll(self) -> Status:
        """Where it stands; returns at once."""
        code = self._process.poll()
        progress = read_progress(self._events, self._start)
        fraction = progress.fraction if progress else 0.0
        if code is None:
            what = str(progress) if progress else "starting"
            return Status("running", f"stopping after {what}" if self._stops else what, fraction)
        if code == 0 and (self.run / "asset.glb").is_file():
            return Status("done", f"made {self.run.name}", 1.0)
        if code == INTERRUPTED or (self._stops and code != 0):
            return Status("stopped", "stopped; generate again with the same settings to go on", fraction)
        return Status("failed", self._reason(code), fraction)

    def stop(self) -> None:
        """Ask it to save its state and stop, as Ctrl-C does; asked again, it stops without finishing the step."""
        if self._process.poll() is not None:
            return
        number = signal.SIGTERM if self._stops else signal.SIGINT
        self._stops += 1
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(self._process.pid, number)

    def latest_picture(self) -> Path | None:
        """The last picture made on the way, four sides in a row; None before the first."""
        return max((self.run / "previews").glob("step-*.png"), default=None)

    def close(self) -> None:
        """Stop it, unless that is asked for already, without waiting for its end; and let go of it."""
        if not self._stops:
            self.stop()
        self._stderr.close()

    def _reason(self, code: int) -> str:
        """Why it failed, in one line: the last one that it wrote."""
        file = self._stderr.fileno()
        start = max(0, os.fstat(file).st_size - STDERR_BYTES)
        lines = re.split(r"[\r\n]+", os.pread(file, STDERR_BYTES, start).decode("utf-8", "replace"))
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if ERROR_PREFIX in last:
            return last.rpartition(ERROR_PREFIX)[2]
        if code == 0:
            return f"the command ended without an asset in {self.run}: is it nerf-bridge?"
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return f"the command {ended}" + (f": {last}" if last else "")
