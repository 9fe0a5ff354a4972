"""The evaluator's network: pictures and captions to one space, where a picture lies next to what it shows.

A judge of its own, apart from the prior: a residual classifier with batch norm, no attention and no camera, trained
with other views, augmentations and loss (Radford et al. 2021, with every noun of the library as a negative), and never
on generated pictures. It shares only the frozen text encoder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from nerf_bridge.errors import UserError, one_line
from nerf_bridge.run.files import replacing, write_json

WEIGHTS_FILE = "evaluator.safetensors"
TRAIN_COMMAND = "python -m nerf_bridge.evaluate.train --library library.npz --out data/evaluate/weights --minutes 10"


@dataclass(frozen=True)
class EvaluatorConfig:
    """Sizes of the network; `channels` and `blocks` from half of the image size downwards."""

    image_size: int = 64
    channels: tuple[int, ...] = (48, 96, 136, 192)
    blocks: tuple[int, ...] = (1, 2, 2, 1)
    embedding: int = 128
    text_width: int = 384
    text_hidden: int = 192
    text_length: int = 24


@dataclass(frozen=True)
class Noun:
    """A word of the library with its article as it stands before the word alone ("" where it takes none)."""

    word: str
    article: str

    @property
    def caption(self) -> str:
        """For example "an armchair"."""
        return f"{self.article} {self.word}".strip()


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm in front, around a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(functional.relu(self.norm_1(x)))
        return x + self.conv_2(functional.relu(self.norm_2(h)))


class ImageTower(nn.Module):
    """Images [b, 3, s, s] in -1..1 to features [b, channels[-1]]: the mean over the coarsest map."""

    def __init__(self, config: EvaluatorConfig):
        super().__init__()
        self.stem = nn.Conv2d(3, config.channels[0], 4, stride=2, padding=1)
        stages: list[nn.Module] = []
        previous = config.channels[0]
        for i, (width, depth) in enumerate(zip(config.channels, config.blocks, strict=True)):
            if i:
                stages.append(nn.Conv2d(previous, width, 2, stride=2))
            stages += [Block(width) for _ in range(depth)]
            previous = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(previous)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return functional.relu(self.norm(x)).mean((2, 3))


class Evaluator(nn.Module):
    """Both towers; everything that they embed has length one."""

    def __init__(self, config: EvaluatorConfig):
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config)
        self.image_head = nn.Sequential(
            nn.BatchNorm1d(config.channels[-1]), nn.Linear(config.channels[-1], config.embedding)
        )
        hidden = config.text_hidden
        self.caption_tower = nn.Sequential(
            nn.Linear(config.text_width, hidden), nn.GELU(), nn.Linear(hidden, config.embedding)
        )
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.text_mean: Tensor
        self.text_spread: Tensor
        self.register_buffer("text_mean", torch.zeros(config.text_width))
        self.register_buffer("text_spread", torch.ones(config.text_width))
        for parameter in self.image_tower.parameters():
            if parameter.ndim == 4:  # laid out as the fast kernels want it
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def centre_captions(self, pooled: Tensor) -> None:
        """Learn what captions have in common from mean token vectors [n, text_width]; it is taken away from each."""
        self.text_mean.copy_(pooled.mean(0))
        self.text_spread.copy_(pooled.std(0).clamp(min=0.05))

    def features(self, images: Tensor) -> Tensor:
        """What the Frechet distance is taken of: [b, channels[-1]] of images [b, 3, s, s] in 0..1."""
        return self.image_tower(2 * images - 1)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [b, embedding] of images [b, 3, s, s] in 0..1."""
        return functional.normalize(self.image_head(self.features(images)), dim=-1)

    def embed_captions(self, pooled: Tensor) -> Tensor:
        """Unit vectors [..., embedding] of captions as mean token vectors [..., text_width] (see `pool_tokens`)."""
        return functional.normalize(self.caption_tower((pooled - self.text_mean) / self.text_spread), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by before the softmax: the inverse temperature, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)


def pool_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean [n, width] of the vectors of words: tokens [n, length, width], mask [n, length]."""
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def save_evaluator(network: Evaluator, nouns: list[Noun], folder: Path, training: dict) -> None:
    """Write half-precision weights, and index.json with sizes, hash, nouns and how the `training` went."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _halved(value.detach().cpu()).contiguous() for name, value in network.state_dict().items()}
    with replacing(folder / WEIGHTS_FILE) as aside:
        save_file(weights, aside)
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    words = [[noun.word, noun.article] for noun in nouns]
    index = {"network": asdict(network.config), "sha256": digest, "nouns": words, "training": training}
    write_json(folder / "index.json", index)


def _halved(value: Tensor) -> Tensor:
    """Floating point in half precision; counters as they are."""
    return value.half() if value.is_floating_point() else value


def load_evaluator(folder: Path) -> tuple[Evaluator, list[Noun], str]:
    """The network in float32, the nouns that it tells apart, and the SHA-256 of its weights.

    Raises:
        UserError: there are no weights in `folder`, or they are damaged.
    """
    if not (folder / "index.json").is_file():
        raise UserError(
            f"the evaluator's weights are not in {folder}: name their folder with --evaluator, or train them "
            f"({TRAIN_COMMAND})"
        )
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest() != index["sha256"]:
            raise UserError(f"the evaluator's weight file {folder / WEIGHTS_FILE} is damaged: fetch or train it again")
        sizes = index["network"] | {name: tuple(index["network"][name]) for name in ("channels", "blocks")}
        network = Evaluator(EvaluatorConfig(**sizes))
        weights = load_file(folder / WEIGHTS_FILE)
        network.load_state_dict(weights)  # takes half precision into its own float32
        nouns = [Noun(word, article) for word, article in index["nouns"]]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 300)
        raise UserError(f"cannot load the evaluator's weights from {folder}: {reason}") from None
    return network.eval().requires_grad_(False), nouns, index["sha256"]
