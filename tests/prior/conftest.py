"""Tiny models of every family, built once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny pipeline of a family; not to be changed."""
    from prior.models import tiny_models  # imports diffusers' pipelines: only where they are used

    root = tmp_path_factory.mktemp("models")
    built: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in built:
            built[family] = tiny_models.build(family, root / family)
        return built[family]

    return folder_of
