"""Puts the add-on's folder on the path, so that the modules of it that need no Blender can be tested alone."""

from __future__ import annotations

import sys

from nerf_bridge.paths import data_path

sys.path.insert(0, str(data_path("blender")))
