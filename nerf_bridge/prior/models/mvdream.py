"""MVDream: four views of an object denoised together, each told its camera (Shi et al. 2023)."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nerf_bridge.errors import UserError, one_line
from nerf_bridge.prior.models.folder import ModelFolder
from nerf_bridge.prior.models.mvdream_unet import MVDreamUNet, read_config
from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition
from nerf_bridge.scene.cameras import Cameras

VIEWS = 4


class MVDream:
    """The U-Net with cameras in groups of four; without cameras it takes each image as a plain picture."""

    knows_cameras, view_group = True, VIEWS

    def __init__(self, network: MVDreamUNet):
        self.network = network

    def __call__(
        self, noised: Tensor, time: Tensor, embeddings: PromptEmbeddings, condition: ViewCondition | None
    ) -> Tensor:
        dtype = self.network.dtype
        tokens = embeddings.tokens.to(dtype)
        if condition is None:
            return self.network(noised.to(dtype), time, tokens, None, 1)
        assert len(noised) % VIEWS == 0, "the views come in groups of four"
        camera = camera_numbers(condition.cameras)
        if condition.camera_known is not None:
            camera = camera * condition.camera_known[:, None]
        return self.network(noised.to(dtype), time, tokens, camera.to(dtype), VIEWS)


def camera_numbers(cameras: Cameras) -> Tensor:
    """Camera-to-world matrices as MVDream was taught them, [b, 16]: at distance 1, the object's front facing +x.

    Ours faces -y, so that the world is turned by 90 degrees about z.
    """
    x, y, z, last = cameras.c2w.unbind(1)
    turned = torch.stack([-y, x, z], 1)
    place = torch.nn.functional.normalize(turned[:, :, 3:], dim=1)
    return torch.cat([torch.cat([turned[:, :, :3], place], 2), last[:, None]], 1).flatten(1)


def load_mvdream_unet(folder: ModelFolder, dtype: torch.dtype) -> MVDreamUNet:
    """The U-Net in `folder`, in main memory, frozen. None of the code that comes with the weights is run.

    Raises:
        UserError: its files are missing, damaged, or of another network.
    """
    variant = folder.variant("unet")
    path = folder.file(f"unet/diffusion_pytorch_model{'' if variant is None else f'.{variant}'}.safetensors")
    try:
        with torch.device("meta"):
            network = MVDreamUNet(read_config(folder.config("unet")))
        network.load_state_dict(load_file(path), assign=True)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 300)
        raise UserError(f"prior {folder.name}: {path} is no MVDream U-Net: {reason}") from None
    return network.to(dtype).eval().requires_grad_(False)
