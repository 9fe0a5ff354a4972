"""What a GLB of nerf_bridge says of its own making. Needs no Blender."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from .errors import AddonError

HEADER = struct.Struct("<4sIIII")
"""Magic, version, length of the file; length and type of the first chunk (glTF 2.0, section 4)."""
JSON_CHUNK = 0x4E4F534A


def read_metadata(path: Path) -> dict[str, Any]:
    """Prompt, seed, prior and licence, as far as the file names them.

    Raises:
        AddonError: the file cannot be read or is no GLB.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER.size)
            magic, version, _, length, kind = HEADER.unpack(start)
            document = json.loads(file.read(length))
    except OSError as error:
        raise AddonError(f"cannot read {path}: {error.strerror or error}") from None
    except (struct.error, ValueError):
        raise AddonError(f"{path} is not a GLB file: choose the asset.glb of a run") from None
    if magic != b"glTF" or version != 2 or kind != JSON_CHUNK or not isinstance(document, dict):
        raise AddonError(f"{path} is not a GLB file of version 2: choose the asset.glb of a run")
    asset = document.get("asset")
    if not isinstance(asset, dict):
        raise AddonError(f"{path} is not a glTF file (its entry `asset` is no object): choose the asset.glb of a run")
    extras = asset.get("extras")
    return extras if isinstance(extras, dict) else {}
