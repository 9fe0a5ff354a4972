"""The state that a run resumes from: tensors in a safetensors file, the rest in JSON, always a matching pair.

`state.json` is the one file that counts: it names the safetensors file that belongs to it, with its size and hash. The
tensors are written first, under a name made of their hash; then `state.json` is replaced; then older tensors are
removed. A process killed anywhere in between leaves the old pair or the new one. Nothing in the files depends on when
or where they were written, so that the same state gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from nerf_bridge.errors import UserError
from nerf_bridge.run.files import sync, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
STATE_FILE = "state.json"
TENSOR_FILES = "tensors-*.safetensors"


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
    """Write a checkpoint in place of the one in `directory`.

    Args:
        directory: the checkpoint folder; made when absent.
        tensors: tensors by name, any shape, dtype and device.
        state: plain JSON values by name (step, configuration hash, ...).

    Raises:
        OSError: writing failed (a full disk, for example); the checkpoint before this one is still good.
        TypeError, ValueError: `state` is no plain JSON, or holds a value that is not finite.
    """
    import safetensors.torch  # here, because torch takes seconds to load and has_checkpoint must not wait for it

    directory.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({name: tensors[name].detach().cpu().clone().contiguous() for name in sorted(tensors)})
    digest = hashlib.sha256(data).hexdigest()
    file = directory / f"tensors-{digest[:16]}.safetensors"
    write_bytes(file, data)
    contents = {
        "format": FORMAT,
        "tensors": {"file": file.name, "bytes": len(data), "sha256": digest},
        "state": dict(state),
        "state_sha256": _state_hash(dict(state)),
    }
    write_json(directory / STATE_FILE, contents)
    sync(directory)
    for older in directory.glob(TENSOR_FILES):
        if older != file:
            older.unlink(missing_ok=True)


def has_checkpoint(directory: Path) -> bool:
    """Whether `directory` holds a checkpoint, good or damaged."""
    return (directory / STATE_FILE).is_file()


def load_checkpoint(directory: Path) -> tuple[dict[str, Tensor], dict] | None:
    """Read the checkpoint in `directory`.

    Returns:
        The tensors by name (on the CPU) and the state; None when there is no checkpoint.

    Raises:
        UserError: the checkpoint is damaged; the message names the file and what to do.
    """
    import safetensors.torch  # here for the same reason as in save_checkpoint

    if not has_checkpoint(directory):
        return None
    contents = _read_contents(directory)
    entry = contents["tensors"]
    file = directory / entry["file"]
    data = _read(directory, file)
    if len(data) != entry["bytes"]:
        raise _damaged(directory, file, f"it has {len(data)} bytes and should have {entry['bytes']}")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _damaged(directory, file, "its contents do not match the hash in state.json")
    try:
        return safetensors.torch.load(data), contents["state"]
    except SafetensorError as error:
        raise _damaged(directory, file, " ".join(str(error).split())) from None


def _read_contents(directory: Path) -> dict:
    file = directory / STATE_FILE
    data = _read(directory, file)
    try:
        contents = json.loads(data)
        well_formed = (
            isinstance(contents["state"], dict)
            and Path(contents["tensors"]["file"]).name == contents["tensors"]["file"]
            and isinstance(contents["tensors"]["bytes"], int)
            and isinstance(contents["tensors"]["sha256"], str)
        )
    except (ValueError, KeyError, TypeError):
        raise _damaged(directory, file, f"its {len(data)} bytes are no complete JSON of a checkpoint") from None
    if not well_formed or contents.get("state_sha256") != _state_hash(contents["state"]):
        raise _damaged(directory, file, "its contents do not match their hash")
    if contents.get("format") != FORMAT:
        raise _damaged(
            directory, file, f"it has format {contents.get('format')} and this version reads format {FORMAT}"
        )
    return contents


def _state_hash(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read(directory: Path, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise _damaged(directory, file, "the file is missing") from None
    except OSError as error:
        raise _damaged(directory, file, error.strerror or str(error)) from None


def _damaged(directory: Path, file: Path, reason: str) -> UserError:
    return UserError(f"the checkpoint {file} cannot be used: {reason}; delete the directory {directory} to start over")
