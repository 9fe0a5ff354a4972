"""Encoded prompts kept on the disk, so that resumed runs and batches never load the text encoders again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nerf_bridge.ops.build import cache_dir
from nerf_bridge.prior.models.text import ENCODING, READ_TO_ENCODE, EncodeWords, TextModels
from nerf_bridge.prior.protocol import PromptEmbeddings
from nerf_bridge.run.files import replacing

logger = logging.getLogger(__name__)


def prompt_folder() -> Path:
    """Where encoded prompts are kept: beside the kernels that are built at first use."""
    return cache_dir() / "prompts"


class CachedWords:
    """Encodes prompts once for each model: what was said before comes out of `folder`.

    Attributes:
        device: where the embeddings come.
        encodings: times that the text encoders were loaded.
    """

    def __init__(self, models: TextModels, encode: EncodeWords, folder: Path, device: torch.device):
        self.models = models
        self.encode = encode
        self.folder = folder
        self.device = device
        self.encodings = 0

    def __call__(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """One row for each of `prompts`. Raises UserError when the text encoders are needed and not there."""
        rows = {prompt: self._read(prompt) for prompt in dict.fromkeys(prompts)}
        new = [prompt for prompt, row in rows.items() if row is None]
        if new:
            self.encodings += 1
            encoded = self.encode(self.models, new)
            for i, prompt in enumerate(new):
                said = encoded.select([i])
                rows[prompt] = said.to(self.device)
                self._write(prompt, said)
        found = [row for prompt in prompts if (row := rows[prompt]) is not None]
        return PromptEmbeddings.cat(found)

    def _path(self, prompt: str) -> Path:
        """A name that changes with the prompt, and with all that decides how it is encoded."""
        models = self.models
        files = {name: digest for name, digest in models.folder.sha256.items() if name.startswith(READ_TO_ENCODE)}
        loras = [(lora.sha256, lora.scale) for lora in models.loras]
        parts = [ENCODING, models.folder.pipeline_class(), files, loras, str(models.dtype), prompt]
        key = json.dumps(parts, sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def _read(self, prompt: str) -> PromptEmbeddings | None:
        path = self._path(prompt)
        try:
            held = load_file(path, device=str(self.device))
            return PromptEmbeddings(held["tokens"], held["mask"], held.get("pooled"))
        except FileNotFoundError:
            return None
        except (OSError, KeyError, SafetensorError) as error:
            logger.warning("the cached prompt %s is damaged (%s) and made again", path, error)
            return None

    def _write(self, prompt: str, row: PromptEmbeddings) -> None:
        """Keep a row; a cache that cannot be written costs time and nothing else."""
        tensors = {"tokens": row.tokens, "mask": row.mask}
        if row.pooled is not None:
            tensors["pooled"] = row.pooled
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(prompt)) as aside:
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
        except (OSError, SafetensorError) as error:
            logger.warning("cannot keep encoded prompts in %s: %s", self.folder, error)
