"""A hub that is a folder, for every test of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prior.catalogue.fake_hub import FakeHub, install

from nerf_bridge.prior.catalogue.entries import find_entry


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with nothing on it, and a lock file and a cache of their own."""
    monkeypatch.setenv("NERF_BRIDGE_LOCK", str(tmp_path / "settings" / "my.lock.json"))
    monkeypatch.setenv("NERF_BRIDGE_CACHE", str(tmp_path / "cache"))
    fake = FakeHub(tmp_path / "hub")
    install(fake, monkeypatch)
    return fake


@pytest.fixture
def published(hub: FakeHub, tiny_model: Callable[[str], Path]) -> FakeHub:
    """The first mirror has the model."""
    hub.publish(find_entry("sd21-base").mirrors[0], tiny_model("sd-epsilon"))
    return hub
