"""Text to 3D by score distillation with SDS-Bridge: a prompt goes in, a textured mesh comes out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nerf_bridge.config import GenerateConfig
    from nerf_bridge.mesh.export import export_mesh
    from nerf_bridge.pipeline import generate
    from nerf_bridge.prior import load_prior

__version__ = "0.1.0"
__all__ = ["GenerateConfig", "__version__", "export_mesh", "generate", "load_prior"]

# Imported when they are asked for, so that `import nerf_bridge` and `--help` need not wait for torch.
_HOME = {
    "GenerateConfig": "nerf_bridge.config",
    "export_mesh": "nerf_bridge.mesh.export",
    "generate": "nerf_bridge.pipeline",
    "load_prior": "nerf_bridge.prior",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nerf_bridge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
