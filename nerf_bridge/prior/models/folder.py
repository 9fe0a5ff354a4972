"""A model's folder in diffusers' format: its parts, their settings and their weights, read and nothing run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nerf_bridge.errors import UserError, one_line

INDEX = "model_index.json"
WEIGHTS = ("diffusion_pytorch_model", "model")  # how diffusers and transformers call them


@dataclass(frozen=True)
class ModelFolder:
    """A model on the disk and where it came from.

    Attributes:
        name: the alias or path that the user gave.
        path: the folder that holds model_index.json.
        licence: its licence, in words.
        source: repository and revision, or the folder.
        sha256: file name relative to the folder, to hexadecimal digest. Other files are not read.
        remedy: what the user can do when a file is missing or damaged.
    """

    name: str
    path: Path
    licence: str
    source: str
    sha256: dict[str, str]
    remedy: str

    def pipeline_class(self) -> str:
        """The pipeline that model_index.json names."""
        return str(self.read_json(INDEX).get("_class_name"))

    def has(self, part: str) -> bool:
        """Whether the model has a part of that name."""
        return bool((self.read_json(INDEX).get(part) or [None])[0])

    def config(self, part: str) -> dict[str, Any]:
        """The part's config.json."""
        return self.read_json(f"{part}/config.json")

    def file(self, name: str) -> Path:
        """Where a file of the folder is. Raises UserError when it is missing, or there but without a hash."""
        path = self.path / name
        if not path.is_file():
            raise UserError(f"prior {self.name}: {path} is missing; {self.remedy}")
        if name not in self.sha256:
            raise UserError(
                f"prior {self.name}: {path} was never recorded, and is not read; delete the model's entry in the lock "
                f"file, then {self.remedy}"
            )
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder. Raises UserError naming the file when it is missing or no JSON object."""
        path = self.file(name)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"prior {self.name}: cannot read {path}: {one_line(error)}; {self.remedy}") from None
        except ValueError as error:
            raise UserError(f"prior {self.name}: {path} is no JSON: {one_line(error)}; {self.remedy}") from None
        if not isinstance(value, dict):
            raise UserError(f"prior {self.name}: {path} holds no JSON object; {self.remedy}")
        return value

    @contextmanager
    def recorded(self, part: str) -> Iterator[Path]:
        """A folder that holds, for a while, links to those files of the part that have a hash, and nothing else.

        For libraries that read what they find: weights in one file before those in shards, added tokens, adapters.

        Args:
            part: a folder below this one; empty for this one itself.

        Raises:
            UserError: there is no place for the links.
        """
        inside = self.path / part
        files = [path for name in self.sha256 if (path := self.path / name).parent == inside]
        try:
            held = tempfile.TemporaryDirectory(prefix="nerf_bridge-")
            for path in files:
                (Path(held.name) / path.name).symlink_to(path.resolve())
        except OSError as error:
            raise UserError(
                f"prior {self.name}: cannot make links to its files: {one_line(error)}; set TMPDIR to a folder where "
                f"that is possible"
            ) from None
        with held as place:
            yield Path(place)

    def unreadable(self, part: str, error: Exception) -> UserError:
        """What to say when a library could not read the part: the JSON of it that is damaged, else the reason."""
        inside = self.path / part
        for name in self.sha256:
            if name.endswith(".json") and (self.path / name).parent == inside:
                try:
                    self.read_json(name)
                except UserError as damaged:
                    return damaged
        return UserError(f"prior {self.name}: cannot load {inside}: {one_line(error, 300)}; {self.remedy}")

    def variant(self, part: str) -> str | None:
        """Which of the part's weights to take: None for the plain ones, "fp16" when there are no others.

        Only files with a hash count: what else lies in the folder was never checked.

        Raises:
            UserError: the part has no safetensors.
        """
        names = [name.removeprefix(f"{part}/") for name in self.sha256 if name.startswith(f"{part}/")]
        if any(_is_weights(name, "") for name in names):
            return None
        if any(_is_weights(name, ".fp16") for name in names):
            return "fp16"
        pickles = [path.name for path in (self.path / part).glob("*.bin")]
        if pickles:
            reason = f"it has only {', '.join(sorted(pickles))}, and a pickle can run code when it is read"
            raise UserError(
                f"prior {self.name}: {self.path / part} has no safetensors: {reason}; convert it to safetensors"
            )
        expected = self.path / part / f"{WEIGHTS[part.startswith('text_encoder')]}.safetensors"
        raise UserError(f"prior {self.name}: {expected} is missing; {self.remedy}")

    def load(self, part: str, model_class: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The part as a frozen module of diffusers or transformers on `device`.

        Args:
            model_class: a class with `from_pretrained`.

        Raises:
            UserError: its files are missing, damaged, or of another model.
        """
        variant = self.variant(part)
        self.config(part)
        try:
            with self.recorded(part) as place:
                model, report = model_class.from_pretrained(
                    place,
                    dtype=dtype,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except UserError:
            raise
        except Exception as error:  # the libraries raise many kinds, and all of them mean that the files do not fit
            raise self.unreadable(part, error) from None
        absent = sorted(report["missing_keys"])
        if absent:
            shown = ", ".join(absent[:3])
            raise UserError(f"prior {self.name}: the weights in {self.path / part} lack {shown}; {self.remedy}")
        return model.to(device).eval().requires_grad_(False)


def _is_weights(name: str, variant: str) -> bool:
    """Whether `name` is a weight file, or the first shard of several, of that variant."""
    starts = [f"{stem}{variant}" for stem in WEIGHTS]
    shards = [f"{start}-00001-of-" for start in starts]
    return name in [f"{start}.safetensors" for start in starts] or any(name.startswith(shard) for shard in shards)
