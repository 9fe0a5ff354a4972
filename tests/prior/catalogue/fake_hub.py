"""A hub of folders on the disk behind the calls of huggingface_hub that the package makes, with its real errors."""

from __future__ import annotations

import hashlib
import inspect
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from httpx2 import Request, Response
from huggingface_hub import errors


def answer(error: type[Exception], status: int, message: str = "") -> Exception:
    """An error of huggingface_hub as it is raised for a response of the hub."""
    response = Response(status, request=Request("GET", "https://huggingface.co/api/models/x/y"))
    return error(message or f"{status} Client Error", response=response)


class FakeHub:
    """Repositories by name, each a folder; `errors` holds what asking for one raises.

    Attributes:
        asked: repositories that were asked for over the network, in order.
        offline: an error for everything that needs the network; None: there is one.
    """

    def __init__(self, cache: Path):
        self.cache = cache
        self.repositories: dict[str, Path] = {}
        self.errors: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.offline: Exception | None = None

    def publish(self, repository: str, folder: Path) -> str:
        """Make a copy of `folder` the repository's newest state; returns its revision."""
        self.repositories[repository] = shutil.copytree(folder, self.cache / "published" / repository.replace("/", "-"))
        return self.revision(repository)

    def revision(self, repository: str) -> str:
        """A name for the state of a repository."""
        names = sorted(path for path in self.repositories[repository].rglob("*") if path.is_file())
        return hashlib.sha1(b"".join(path.read_bytes() for path in names)).hexdigest()

    def model_info(self, _, repo_id: str, *, revision: str | None = None, files_metadata: bool = False):
        assert files_metadata
        self._ask(repo_id)
        if revision is not None and revision != self.revision(repo_id):
            raise answer(errors.RevisionNotFoundError, 404)
        folder = self.repositories[repo_id]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [SimpleNamespace(rfilename=path.relative_to(folder).as_posix(), lfs=_lfs(path)) for path in files]
        return SimpleNamespace(sha=self.revision(repo_id), siblings=siblings)

    def snapshot_download(
        self, repo_id: str, *, revision: str, allow_patterns, local_files_only=False, local_dir=None
    ) -> str:
        snapshot = Path(local_dir or self.cache / "snapshots" / f"{repo_id.replace('/', '-')}-{revision}")
        if local_files_only:
            if not snapshot.is_dir():
                raise errors.LocalEntryNotFoundError("not in the cache")
            return str(snapshot)
        self._ask(repo_id)
        folder = self.repositories[repo_id]
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, snapshot / name)
        return str(snapshot)

    def _ask(self, repository: str) -> None:
        self.asked.append(repository)
        if self.offline is not None:
            raise self.offline
        if repository in self.errors:
            raise self.errors[repository]
        if repository not in self.repositories:
            raise answer(errors.RepositoryNotFoundError, 404)


def install(hub: FakeHub, patch: pytest.MonkeyPatch) -> None:
    """Put `hub` behind huggingface_hub; calls that the real functions would not take fail."""
    real_info, real_download = huggingface_hub.HfApi.model_info, huggingface_hub.snapshot_download

    def model_info(*arguments, **options):
        inspect.signature(real_info).bind(*arguments, **options)
        return hub.model_info(*arguments, **options)

    def snapshot_download(*arguments, **options):
        inspect.signature(real_download).bind(*arguments, **options)
        return hub.snapshot_download(*arguments, **options)

    patch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    patch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def _lfs(path: Path) -> SimpleNamespace | None:
    """What the hub states of big files: their hash."""
    if path.suffix != ".safetensors":
        return None
    return SimpleNamespace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
