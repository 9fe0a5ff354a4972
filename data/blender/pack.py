"""Packs the Blender add-on into a zip file that Blender installs: python pack.py [FOLDER]."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

ADDON = Path(__file__).resolve().parent / "nerf_bridge_addon"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows, so that the same files give the same bytes


def pack(folder: Path) -> Path:
    """Write `nerf_bridge_blender-<version>.zip` into `folder`, whole or not at all, and return its path.

    Raises:
        OSError: it cannot be written.
    """
    manifest = tomllib.loads((ADDON / "blender_manifest.toml").read_text(encoding="utf-8"))
    target = folder / f"nerf_bridge_blender-{manifest['version']}.zip"
    aside = target.with_name(f".{target.name}.tmp")
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted([*ADDON.glob("*.py"), *ADDON.glob("*.toml")]):
                archive.writestr(zipfile.ZipInfo(path.name, EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return target


def main(words: list[str]) -> int:
    """Pack into the folder that `words` name, else into the current one; return the exit status."""
    folder = Path(*words[:1])
    try:
        sys.stdout.write(f"{pack(folder)}\n")
    except OSError as error:
        sys.stderr.write(f"cannot pack the add-on into {folder}: {error.strerror or error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
