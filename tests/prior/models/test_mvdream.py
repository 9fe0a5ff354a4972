"""MVDream's U-Net against diffusers' U-Net where the two are the same, and by what groups and cameras must do."""

import json
import math
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from prior.models import tiny_models

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.mvdream import camera_numbers
from nerf_bridge.prior.models.mvdream_unet import MVDreamUNet, read_config
from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition
from nerf_bridge.scene.cameras import orbit_cameras, turntable_cameras

SETTINGS = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2],
    "attention_resolutions": [2, 1],
    "num_head_channels": 16,
    "context_dim": 24,
    "camera_dim": 16,
}


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MVDreamUNet(read_config(SETTINGS)).double().eval().requires_grad_(False)


@pytest.fixture
def prior(tiny_model, tmp_path):
    return tiny_models.load(tiny_model("mvdream"), tmp_path / "cache", torch.float64)


def inputs(n, seed=0, length=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 8, 8, generator=generator, dtype=torch.float64)
    tokens = torch.randn(n, length, 24, generator=generator, dtype=torch.float64)
    camera = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    return x, torch.full((n,), 321), tokens, camera


def test_of_one_view_without_camera_it_is_stable_diffusion(network):
    """The weights go through diffusers' own reader of the original format, so that the names are checked too."""
    state = {
        f"model.diffusion_model.{name}": value
        for name, value in network.state_dict().items()
        if not name.startswith("camera_embed")
    }
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": (2, 4, 4),
        "use_linear_projection": True,
    }
    reference = UNet2DConditionModel(**config).double().eval()
    reference.load_state_dict(convert_ldm_unet_checkpoint(state, config | {"class_embed_type": None}))
    x, time, tokens, _ = inputs(3)
    expected = reference(x, time, encoder_hidden_states=tokens).sample
    assert torch.allclose(network(x, time, tokens, None, 1), expected, atol=1e-6)


def test_the_published_sizes_make_the_published_network():
    published = SETTINGS | {
        "image_size": 32,
        "model_channels": 320,
        "channel_mult": [1, 2, 4, 4],
        "attention_resolutions": [4, 2, 1],
        "num_head_channels": 64,
        "context_dim": 1024,
    }
    with torch.device("meta"):
        network = MVDreamUNet(read_config(published))
    numbers = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert sum(numbers.values()) - numbers["camera_embed"] == 865_910_724  # the U-Net of Stable Diffusion 2.1
    assert numbers["camera_embed"] == 16 * 1280 + 1280 + 1280 * 1280 + 1280


def test_views_see_each_other_within_their_group_alone(network):
    x, time, tokens, camera = inputs(8)
    before = network(x, time, tokens, camera, 4)
    changed = x.clone()
    changed[1] += 1
    moved = (network(changed, time, tokens, camera, 4) - before).abs().amax((1, 2, 3))
    assert (moved[:4] > 1e-6).all() and (moved[4:] == 0).all()


def test_the_order_within_a_group_does_not_matter(network):
    x, time, tokens, camera = inputs(4)
    order = [2, 0, 3, 1]
    whole = network(x, time, tokens, camera, 4)
    assert torch.allclose(network(x[order], time, tokens[order], camera[order], 4), whole[order], atol=1e-10)


def test_cameras_matter_and_can_be_hidden(prior):
    x, t = torch.randn(4, 4, 8, 8, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    words = prior.encode_prompts(["a chair"]).repeat(4)
    seen = ViewCondition(turntable_cameras(4, 0.2, 3.0, 0.7), torch.ones(4, 3))
    lower = ViewCondition(turntable_cameras(4, -0.2, 3.0, 0.7), torch.ones(4, 3))
    one, other = (prior.predict_noise(x, t, words, view) for view in (seen, lower))
    assert (one - other).abs().max() > 1e-6
    hidden = torch.ones(4, dtype=torch.bool)
    one, other = (prior.predict_noise(x, t, words, view.hiding(hidden)) for view in (seen, lower))
    assert torch.equal(one, other)


def test_groups_and_prompts_may_be_batched(prior):
    """Target and source of two groups in one call, as the guidance asks, are what four calls answer."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64).repeat_interleave(4)
    seen = ViewCondition(turntable_cameras(8, 0.2, 3.0, 0.7), torch.ones(8, 3))
    words = [prior.encode_prompts([prompt]).repeat(8) for prompt in ("a chair", "a chair, foggy")]
    whole = prior.predict_noise(x.repeat(2, 1, 1, 1), t.repeat(2), PromptEmbeddings.cat(words), seen.repeat(2))
    for i, said in enumerate(words):
        for first in (0, 4):
            group = list(range(first, first + 4))
            view = ViewCondition(seen.cameras[group], seen.background[group])
            alone = prior.predict_noise(x[group], t[group], said.select(group), view)
            assert torch.allclose(whole[8 * i + first : 8 * i + first + 4], alone, atol=1e-9)


def test_cameras_are_at_distance_one_with_the_front_at_plus_x():
    azimuth = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    cameras = orbit_cameras(azimuth, torch.tensor([0.0, 0.5]), torch.tensor([3.0, 2.0]), torch.tensor([0.7, 0.7]))
    front, side = camera_numbers(cameras).view(2, 4, 4)
    assert torch.allclose(front[:3, 3], torch.tensor([1.0, 0, 0]), atol=1e-6)
    assert torch.allclose(front[:3, 2], torch.tensor([1.0, 0, 0]), atol=1e-6)  # backward: it looks along -x
    assert torch.allclose(front[:3, 1], torch.tensor([0.0, 0, 1]), atol=1e-6)
    assert torch.allclose(side[:3, 3], torch.tensor([0.0, math.cos(0.5), math.sin(0.5)]), atol=1e-6)
    assert torch.allclose(torch.linalg.det(side[:3, :3]), torch.tensor(1.0), atol=1e-5)
    assert side[3].tolist() == [0, 0, 0, 1]


def test_the_code_beside_the_weights_is_not_run(tiny_model, prior):
    assert "must not run" in (tiny_model("mvdream") / "unet" / "mv_unet.py").read_text()
    assert type(prior.denoiser.network) is MVDreamUNet


@pytest.mark.parametrize(("change", "says"), [({"ip_dim": 16}, "ImageDream"), ({"camera_dim": 12}, "expected 16")])
def test_other_networks_are_refused(change, says, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("mvdream"), tmp_path / "other")
    settings = json.loads((folder / "unet" / "config.json").read_text()) | change
    (folder / "unet" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"is no MVDream U-Net: .*{says}"):
        tiny_models.load(folder, tmp_path / "cache")
