"""The prior that comes with the package: loading its weights, and answering what the pipeline asks of a prior."""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.nn import functional

from nerf_bridge.errors import UserError, one_line
from nerf_bridge.paths import data_path
from nerf_bridge.prior.designs import add_designs, design_vectors, split_design
from nerf_bridge.prior.protocol import PriorInfo, PromptEmbeddings, ViewCondition
from nerf_bridge.prior.replay import Replayed
from nerf_bridge.prior.text import TEXT_WEIGHTS_SHA256, TextEncoder, text_encoder_folder
from nerf_bridge.prior.unet import (
    CAMERA_FEATURES,
    RAY_PLANES,
    TOGETHER,
    Condition,
    UNet,
    UNetConfig,
    camera_features,
    channels_last,
    ray_map,
    schedule,
)
from nerf_bridge.run.files import replacing, write_json

LARGEST_SHARD_BYTES = 15 * 2**20
YOUNGEST = "embed.design.weight"  # weights from before it are as with zeros there, which is how a network begins
LICENCE = "Apache-2.0; trained on renders of CC0 and CC BY models and of generated shapes, see data/prior/DATA_CARD.md"


class EmbeddedPrior:
    """A small text- and camera-conditioned pixel diffusion model (64 x 64), and its text encoder.

    Times are continuous in (0, 1) on the cosine schedule; images are noised as pixels in -1..1.

    Attributes:
        designs: how many designs of a noun a prompt may name, see designs.py; 0: it was trained without.
        together: views of an object that it denoises together where there are so many; 1: it was trained without.
    """

    name = "embedded"
    knows_cameras = True
    view_group = 1
    x_limit: float | None = 1.0

    def __init__(
        self,
        network: UNet,
        text_encoder: TextEncoder,
        device: torch.device,
        sha256: dict[str, str],
        designs: int = 0,
        together: int = 1,
    ):
        self.image_size = network.config.image_size
        self.device = device
        self.dtype = fastest_dtype(device)
        self.network = channels_last(network.to(device, self.dtype)).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(device)
        self.sha256 = sha256
        self.designs, self.together = designs, together
        self._replayed = {n: Replayed(functools.partial(self._predict, n)) for n in {1, together}}

    def info(self) -> PriorInfo:
        """Name, licence and hashes."""
        return PriorInfo(self.name, LICENCE, "trained by this project: nerf_bridge/prior/train.py", self.sha256)

    def encode_prompts(self, prompts: list[str]) -> PromptEmbeddings:
        """Token vectors of `prompts`; the empty string is the null prompt.

        Raises:
            UserError: a prompt names a design that there is not.
        """
        if not self.designs:
            return PromptEmbeddings(*self.text_encoder(prompts))
        split = [split_design(prompt) for prompt in prompts]
        tokens, mask = self.text_encoder([prompt for prompt, _ in split])
        design = torch.tensor([design for _, design in split], device=tokens.device)
        vectors = design_vectors(tokens.shape[-1]).to(tokens.device)
        return PromptEmbeddings(*add_designs(tokens, mask, design, vectors))

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w] in 0..1, brought to the prior's size, as pixels in -1..1; differentiable.

        Of images a whole number of times as large each pixel is the mean of its part, as in those that it learned from.
        """
        side, (height, width) = self.image_size, images.shape[2:]
        if height == width and height > side and height % side == 0:
            images = functional.avg_pool2d(images, height // side)
        elif (height, width) != (side, side):
            images = functional.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
        return 2 * images - 1

    def decode_image(self, x: Tensor) -> Tensor:
        """Pixels in -1..1 as images in 0..1."""
        return (0.5 * x + 0.5).clamp(0, 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level of the cosine schedule at `t` [b]."""
        return schedule(t)

    @torch.no_grad()
    def predict_noise(
        self, noised: Tensor, t: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        """Noise in `noised` [b, 3, s, s]: eps = alpha * v + sigma * x_t. Float32, whatever the network computes in.

        On a GPU it is replayed from a CUDA graph, one for each batch size.
        """
        views = () if condition is None else _view_tensors(condition)
        given = (noised, t, embeddings.tokens, embeddings.mask, *views)
        if condition is None or self.together == 1 or condition.together % self.together:
            return self._replayed[1](*given)
        if condition.together == self.together:
            return self._replayed[self.together](*given)
        around = _sets_around(len(noised), condition.together, noised.device)
        found = self._replayed[self.together](*(tensor[around] for tensor in given))
        return torch.empty_like(found).index_copy_(0, around, found)

    def _predict(
        self, together: int, noised: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, *views: Tensor
    ) -> Tensor:
        told = replace(self._condition(tokens, mask, views), in_sets=len(noised) if together > 1 else 0)
        v = self.network(noised.to(self.dtype), t, told).float()
        alpha, sigma = schedule(t.float())
        return alpha[:, None, None, None] * v + sigma[:, None, None, None] * noised

    def _condition(self, tokens: Tensor, mask: Tensor, views: tuple[Tensor, ...]) -> Condition:
        b, side = len(tokens), self.image_size // 2
        if views:
            c2w, azimuth, elevation, distance, fovy, background, known = views
            camera = camera_features(azimuth, elevation, distance, fovy, background, known)
            rays = ray_map(c2w, fovy, side) * known[:, None, None, None]
        else:
            camera = torch.zeros(b, CAMERA_FEATURES, device=self.device)
            rays = torch.zeros(b, RAY_PLANES, side, side, device=self.device)
        return Condition(tokens.to(self.dtype), mask, camera.to(self.dtype), rays.to(self.dtype))


def _sets_around(n: int, together: int, device: torch.device) -> Tensor:
    """An order [n] of n views, `together` in a row of each object, in which each set of TOGETHER goes once around."""
    return torch.arange(n, device=device).view(-1, TOGETHER, together // TOGETHER).transpose(1, 2).flatten()


def _view_tensors(condition: ViewCondition) -> tuple[Tensor, ...]:
    views, known = condition.cameras, condition.camera_known
    known = torch.ones(len(views), dtype=torch.bool, device=views.c2w.device) if known is None else known
    angles = (views.azimuth_rad, views.elevation_rad, views.distance, views.fovy_rad)
    return (views.c2w, *angles, condition.background, known)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_embedded(device: torch.device | str, folder: Path | None = None) -> EmbeddedPrior:
    """The embedded prior on `device`, from `folder` or from the package's data.

    Raises:
        UserError: a weight file is missing, damaged, or not the one that its index names.
    """
    folder = folder or data_path("prior/weights")
    stored = load_weights(folder)
    text_encoder = TextEncoder(text_encoder_folder(), stored.network.config.text_length)
    sha256 = stored.sha256 | {"text encoder": TEXT_WEIGHTS_SHA256}
    return EmbeddedPrior(stored.network, text_encoder, torch.device(device), sha256, stored.designs, stored.together)


@dataclass(frozen=True)
class StoredWeights:
    """What a folder of weights holds.

    Attributes:
        network: in float32.
        sha256: of each file.
        designs: how many designs of a noun it was told in training.
        together: views of an object that it was trained to denoise together, TOGETHER or 1.
    """

    network: UNet
    sha256: dict[str, str]
    designs: int
    together: int


def load_weights(folder: Path) -> StoredWeights:
    """What `folder` holds. Raises UserError as load_embedded does."""
    index_path = folder / "index.json"
    try:
        index = json.loads(index_path.read_text())
        sizes = index["network"] | {"channels": tuple(index["network"]["channels"])}
        weights: dict[str, Tensor] = {}
        for name, digest in index["sha256"].items():
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise UserError(f"the prior's weight file {folder / name} is damaged: reinstall the package")
            weights |= load(data)
        network = UNet(UNetConfig(**sizes))
        weights.setdefault(YOUNGEST, network.state_dict()[YOUNGEST])
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
        designs, together = int(index.get("designs", 0)), int(index.get("together", 1))
        if together not in (1, TOGETHER):
            raise ValueError(f"views together: {together}, known are 1 and {TOGETHER}")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 300)
        raise UserError(f"cannot load the prior's weights from {folder}: {reason}; reinstall the package") from None
    return StoredWeights(network, index["sha256"], designs, together)


def save_weights(network: UNet, folder: Path, training: dict, designs: int = 0, together: int = 1) -> None:
    """Write half-precision safetensors shards of at most 15 MiB, and index.json with sizes, hashes and the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    room = LARGEST_SHARD_BYTES - 2**16
    for name, value in network.state_dict().items():
        half = value.detach().to("cpu", torch.float16).contiguous()
        if room < half.nbytes:
            shards.append({})
            room = LARGEST_SHARD_BYTES - 2**16
        shards[-1][name] = half
        room -= half.nbytes
    sha256 = {}
    with ExitStack() as renamed_at_the_end:  # so that a kill on the way leaves the old weights
        for i, shard in enumerate(shards):
            path = folder / f"unet-{i + 1}-of-{len(shards)}.safetensors"
            aside = renamed_at_the_end.enter_context(replacing(path))
            save_file(shard, aside)
            sha256[path.name] = hashlib.sha256(aside.read_bytes()).hexdigest()
    index = {
        "network": asdict(network.config),
        "designs": designs,
        "together": together,
        "sha256": sha256,
        "training": training,
    }
    write_json(folder / "index.json", index)
