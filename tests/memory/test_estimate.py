"""The estimate beside real sizes: tiny pipelines on the CPU, and the big architectures on the meta device."""

import itertools
import json
import shutil
import sys
from dataclasses import fields, is_dataclass

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from memory.tensor_meter import TensorMeter
from prior.models.tiny_models import FAMILIES, load
from tiny_run import tiny_config

from nerf_bridge.config import GuidanceConfig, ModelConfig, build_config
from nerf_bridge.draws import draw_views
from nerf_bridge.errors import UserError
from nerf_bridge.guidance import encode_words, guidance_gradient
from nerf_bridge.memory import estimate
from nerf_bridge.memory.estimate import (
    NO_MODEL,
    PARAMETER_BYTES,
    EncoderShape,
    ModelSizes,
    NetworkWork,
    encoder_numbers,
    field_bytes,
    needs_on,
    render_bytes,
    transformer_numbers,
    unet_numbers,
)
from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.memory.model_sizes import embedded_sizes, read_sizes
from nerf_bridge.ops.backend import resolve_backend
from nerf_bridge.optimize import render_views, update_occupancy
from nerf_bridge.paths import data_path
from nerf_bridge.prior import ViewCondition, find_prior, load_prior, models
from nerf_bridge.prior.models import group_norm
from nerf_bridge.prior.models.frozen_encoder import FrozenEncoder
from nerf_bridge.prior.models.vae_weights import encoder_of
from nerf_bridge.scene.cameras import turntable_cameras
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")
WHOLE, RECOMPUTE, STREAM = RUNGS[0], RUNGS[2], RUNGS[4]
SD_VAE = (128, 256, 512, 512)


def sizes_of(folder, settings=None, cuda=False):
    settings = settings or ModelConfig()
    return read_sizes(find_prior(str(folder), settings), settings, cuda)


def held(module):
    return sum(value.nbytes for value in _own(module))


def _own(module):
    """Weights and buffers that are in the file, tied ones once."""
    return {value.data_ptr(): value for value in module.state_dict().values()}.values()


def constants(encoder):
    """Bytes of an encoder's tensors."""
    found = {}

    def look(part):
        if isinstance(part, torch.Tensor):
            found[part.data_ptr()] = part.nbytes
        elif is_dataclass(part):
            look([getattr(part, field.name) for field in fields(part)])
        elif isinstance(part, tuple | list):
            for each in part:
                look(each)

    look(encoder)
    return sum(found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_that_are_loaded(family, tiny_model, tmp_path):
    sizes = sizes_of(tiny_model(family))
    prior = load(tiny_model(family), tmp_path)
    assert sizes.network == held(prior.denoiser.network)
    if family == "if":
        assert sizes.codec == 0
    else:
        prior.place(WHOLE)
        assert sizes.codec == pytest.approx(held(prior.codec.vae) + constants(prior.codec.encoder.encoder), rel=0.1)
    assert sizes.largest_layer == max(value.nbytes for value in _own(prior.denoiser.network))
    assert sizes.view_group == prior.view_group
    if family != "if":
        assert sizes.encoder.size == prior.image_size or family == "flux"
    loaded = []
    real = type(prior.words.models.folder).load

    def watched(folder, part, *rest):
        module = real(folder, part, *rest)
        loaded.append(held(module))
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(prior.words.models.folder), "load", watched)
        prior.encode_prompts(["a chair"])
    assert sizes.words == max(loaded)


def test_precision_is_that_of_the_loading(tiny_model):
    full, half = (sizes_of(tiny_model("sdxl"), cuda=cuda) for cuda in (False, True))
    assert half.network * 2 == full.network and half.words * 2 == full.words
    assert full.codec / 2 < half.codec < full.codec, "SDXL's decoder stays in float32, its encoder does not"
    assert sizes_of(tiny_model("sdxl"), ModelConfig(dtype="bfloat16"), True).codec * 2 == full.codec
    assert sizes_of(tiny_model("sd-v"), cuda=True).codec * 2 == sizes_of(tiny_model("sd-v")).codec
    on_cpu = sizes_of(tiny_model("sd-v"), ModelConfig(dtype="float16"))
    assert sizes_of(tiny_model("sd-v")).codec / 2 < on_cpu.codec < sizes_of(tiny_model("sd-v")).codec
    assert on_cpu.encoder.itemsize == 4, "on a CPU the encoder computes in float32"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "if"])
@pytest.mark.parametrize("rung", [WHOLE, RECOMPUTE], ids=lambda rung: rung.name)
def test_the_encoder_of_tiny_pipelines(family, rung, tiny_model, tmp_path):
    """Enough, and not much more than that, for what really was alive at once, forward and backward, for two views."""
    settings = ModelConfig(image_size=64)
    config = tiny_config(camera__views=2)
    prior = load(tiny_model(family), tmp_path, image_size=64)
    prior.place(rung)
    meter = TensorMeter()
    n = estimate.views_at_once(rung, config, prior.view_group)
    images = torch.rand(n, 3, 64, 64, requires_grad=True)
    with meter:
        prior.encode_image(images).sum().backward()
    said = estimate.encoder_bytes(rung, config, sizes_of(tiny_model(family), settings), cuda=False)
    assert 0.8 * meter.peak <= said <= 2.5 * meter.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_of_tiny_pipelines(family, tiny_model, tmp_path):
    """Of the same order: next to tiny levels the words and times are no longer small."""
    prior = load(tiny_model(family), tmp_path, image_size=32)
    n = 2 * prior.view_group
    x = prior.encode_image(torch.rand(n, 3, 32, 32))
    words = prior.encode_prompts(["a chair"]).repeat(n)
    views = ViewCondition(turntable_cameras(n, 0.3, 3.0, 0.7), torch.ones(n, 3))
    meter = TensorMeter()
    with meter:
        prior.predict_noise(x, torch.full((n,), 0.5), words, views)
    said = n * 4 * sizes_of(tiny_model(family), ModelConfig(image_size=32)).work.numbers
    assert 0.2 * meter.peak <= said <= 5 * meter.peak


@pytest.fixture
def lean_attention(monkeypatch):
    """Attention as the GPU's kernels do it, without a matrix of scores; its answer is not looked at."""
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda query, key, value, *_, **__: query * 1.0
    )


class KernelsOnMeta:
    """What the GPU's group norm allocates, and nothing of what it computes."""

    @staticmethod
    def moments(x, bias, groups, skip):
        return x if skip is None else torch.empty_like(x), torch.empty(len(x), groups, 2, device="meta")

    @staticmethod
    def normalise(x, bias, stats, norm, silu):
        return torch.empty_like(x)

    @staticmethod
    def backward(grad, x, bias, stats, norm, silu, skip):
        return torch.empty_like(x)


@pytest.mark.parametrize(
    ("cuda", "recompute", "size", "units"),
    [
        (True, False, 512, 9.4),
        (True, True, 512, 7.1),
        (True, False, 1024, 8.8),
        (False, False, 512, 14.1),
        (False, True, 512, 13.1),
    ],
)
def test_the_big_encoder(cuda, recompute, size, units, monkeypatch):
    """Stable Diffusion's; a unit is one of the first level's tensors, at 512 pixels 64 MiB in half precision."""
    if cuda:
        monkeypatch.setattr(group_norm, "_kernels_fit", lambda x, groups: True)
        monkeypatch.setitem(sys.modules, "nerf_bridge.prior.models.group_norm_triton", KernelsOnMeta)
        monkeypatch.setattr(models, "group_norm_triton", KernelsOnMeta, raising=False)
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=SD_VAE, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
        ).requires_grad_(False)  # fmt: skip
    encoder = FrozenEncoder(encoder_of(vae, torch.float32)[0], graphs=False)
    encoder.spare(recompute)
    image = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    meter = TensorMeter()
    with meter:
        encoder(image).sum().backward()
    unit = size * size * 128
    assert meter.peak / (4 * unit) == pytest.approx(units, abs=0.1)
    assert encoder_numbers(SD_VAE, 2, size, recompute, cuda) / unit == pytest.approx(units, rel=0.04)


NETWORKS = {
    "sd21": ((320, 640, 1280, 1280), (True, True, True, False), 64, 26.0),
    "sdxl": ((320, 640, 1280), (False, True, True), 128, 15.8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_big_u_nets(name, lean_attention):
    channels, attention, size, units = NETWORKS[name]
    cross, plain = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
    extra = (
        {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
        if name == "sd21"
        else {"attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "transformer_layers_per_block": (1, 1, 2)}
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=size, block_out_channels=channels, use_linear_projection=True, **extra,
            down_block_types=[(cross if attends else plain)[0] for attends in attention],
            up_block_types=[(cross if attends else plain)[1] for attends in reversed(attention)],
        )  # fmt: skip
        arguments = (torch.empty(2, 4, size, size), torch.empty(2), torch.empty(2, 77, extra["cross_attention_dim"]))
    meter = TensorMeter()
    with torch.no_grad(), meter:
        unet(*arguments)
    unit = size * size * channels[0]
    assert meter.peak / (2 * 4 * unit) == pytest.approx(units, abs=0.1)
    assert unet_numbers(channels, attention, size) == pytest.approx(meter.peak / (2 * 4), rel=0.02)


def test_the_big_transformers(lean_attention):
    """Of two layers: the work is that of one layer, whatever their number."""
    same = {"num_layers": 2, "joint_attention_dim": 4096, "num_attention_heads": 24}
    with torch.device("meta"):
        sd3 = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, attention_head_dim=64, caption_projection_dim=1536,
            pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192, **same,
        )  # fmt: skip
        flux = FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_single_layers=2, attention_head_dim=128, pooled_projection_dim=768, **same
        )
        times = torch.empty(1)
        given = {
            sd3: {"hidden_states": torch.empty(1, 16, 128, 128), "encoder_hidden_states": torch.empty(1, 333, 4096)}
            | {"pooled_projections": torch.empty(1, 2048)},
            flux: {"hidden_states": torch.empty(1, 4096, 64), "encoder_hidden_states": torch.empty(1, 512, 4096)}
            | {"pooled_projections": torch.empty(1, 768), "txt_ids": torch.empty(512, 3)}
            | {"img_ids": torch.empty(4096, 3)},
        }
    for network, (tokens, width) in {sd3: (4096 + 333, 1536), flux: (4096 + 512, 3072)}.items():
        meter = TensorMeter()
        with torch.no_grad(), meter:
            network(timestep=times, **given[network])
        assert meter.peak / 4 <= transformer_numbers(tokens, width) <= 1.5 * meter.peak / 4


@pytest.mark.compiler
@pytest.mark.parametrize("rung", [WHOLE, RECOMPUTE], ids=lambda rung: rung.name)
def test_a_render_forward_and_backward(rung, monkeypatch):
    """Samples and rays as the CPU's kernels hold them; the number of samples is the real one."""
    config = build_config({"prompt": "a", "camera.views": 2, "render.size": 64, "field.log2_table_size": 12})
    backend = resolve_backend("cpu", CPU)
    scene = build_scene(config, backend, CPU)
    update_occupancy(scene, config, 0)
    meter = TensorMeter()
    if rung.samples_at_once is None:
        rung_size, part = None, slice(None)
    else:
        rung_size, part = 20_000, slice(0, 1)
    with meter:
        rendering, _ = render_views(scene, draw_views(config, 0, 1, scene.device), part=part, samples_at_once=rung_size)
        (rendering.color.sum() + rendering.thickness.sum()).backward()
    rays = rendering.color.shape[0] * 64**2
    per_ray = rendering.n_samples / rays
    monkeypatch.setattr(estimate, "SAMPLES_SHARE", per_ray / config.render.samples_across)
    lowered = rung if rung_size is None else type(rung)("", "", True, rung_size)
    said = render_bytes(lowered, config, 1, cuda=False)
    most = 2.0 if rung_size is None else 6.0  # the bound of a part holds for rays through the box's longest diagonal
    assert 0.8 * meter.peak <= said + 3 * 4 * scene.field.table.numel() <= most * meter.peak


@pytest.mark.parametrize("preset", ["default", "published-3d"])
def test_the_samples_of_the_first_views_stay_below_the_share(preset):
    from nerf_bridge.paths import config_path
    from nerf_bridge.settings import load_yaml, merged

    settings = {} if preset == "default" else load_yaml(config_path(f"{preset}.yaml"))
    small = {"camera": {"views": 4}, "render": {"size": 24, "early_size": None}, "field": {"log2_table_size": 12}}
    config = build_config(merged(settings, small) | {"prompt": "a"})
    scene = build_scene(config, resolve_backend("auto", CPU), CPU)
    update_occupancy(scene, config, 0)
    seen = [render_views(scene, draw_views(config, step, 1, CPU))[0].n_samples for step in range(4)]
    share = sum(seen) / (len(seen) * 4 * 24**2 * config.render.samples_across)
    assert 0.15 < share < estimate.SAMPLES_SHARE


def test_the_field_is_its_table_with_all_that_adam_keeps():
    config = build_config({"prompt": "a"})
    scene = build_scene(config, "torch", CPU)
    assert field_bytes(config.field) == PARAMETER_BYTES * scene.field.table.numel()


def test_the_embedded_prior():
    sizes = embedded_sizes(data_path("prior/weights"), cuda=False)
    prior = load_prior("embedded")
    assert sizes.network == pytest.approx(
        4 * sum(p.numel() for p in prior.network.parameters()) + held(prior.text_encoder), rel=0.05
    )
    words = prior.encode_prompts(["a chair"] * 2)
    meter = TensorMeter()
    with meter:
        views = ViewCondition(turntable_cameras(2, 0.3, 3.0, 0.7), torch.ones(2, 3))
        prior.predict_noise(torch.rand(2, 3, 64, 64), torch.full((2,), 0.5), words, views)
    number = torch.finfo(prior.dtype).bits // 8
    assert meter.peak / (2 * number) == pytest.approx(sizes.work.numbers, rel=0.25)


BIG = ModelSizes(
    1000 << 20, 100 << 20, 200 << 20, 50 << 20, NetworkWork(10 << 20, 2), EncoderShape(SD_VAE, 2, 512, 2), 1
)


def test_each_rung_needs_no_more_than_the_one_above():
    config = build_config({"prompt": "a", "camera.views": 4, "render.size": 512, "render.shading": "mixed"})
    steps = [needs_on(rung, config, BIG, True).step for rung in RUNGS]
    assert all(below < above for above, below in itertools.pairwise(steps))


@pytest.mark.parametrize(
    ("changes", "samples"),
    [
        ({"render.size": 64}, 3.1 * 196608),  # half of 64^3 samples, with a quarter to spare
        ({"render.size": 512, "render.early_size": 64}, 3.1 * 196608),
        ({"render.size": 64, "render.early_size": 512}, 3.1 * 196608),  # views are never larger than size
        ({"render.size": 64, "render.shading": "mixed"}, 6 * 196608),
        ({"render.size": 128, "render.samples_across": 256, "render.shading": "mixed"}, 2 << 22),
        ({"render.size": 512}, 0),
    ],
)
def test_the_graphs_of_the_views_hold_memory_on_the_first_rung_of_a_gpu(changes, samples):
    base = {"prompt": "a", "camera.views": 1, "render.early_size": None, "render.samples_across": 64}
    config = build_config(base | changes)
    said = estimate.graph_bytes(WHOLE, config, cuda=True)
    assert said == pytest.approx(samples * estimate.sample_bytes(config, cuda=True), rel=1e-5)
    plain = render_bytes(WHOLE, config, 1, cuda=True)
    assert needs_on(WHOLE, config, NO_MODEL, cuda=True).render == int(estimate.SLACK * (plain + said))
    assert estimate.graph_bytes(WHOLE, config, cuda=False) == estimate.graph_bytes(RUNGS[1], config, cuda=True) == 0


def test_the_text_encoders_are_gone_before_the_rest_comes():
    config = build_config({"prompt": "a"})
    small, large = (needs_on(WHOLE, config, ModelSizes(10, 10, words, 1, *_rest()), True) for words in (5, 10**12))
    assert small.total == small.step == large.step and large.total == 10**12 + large.rest


def _rest():
    return NetworkWork(1, 2), EncoderShape((), 0, 0, 4), 1


def test_streamed_weights_leave_two_layers_on_the_gpu():
    config = build_config({"prompt": "a"})
    assert (
        estimate.network_bytes(STREAM, config, BIG, cuda=True)
        < 125 << 20
        < 1000 << 20
        < estimate.network_bytes(WHOLE, config, BIG, cuda=True)
    )
    assert needs_on(WHOLE, config, NO_MODEL, True).network == 0


def test_more_prompts_and_views_need_more():
    all_guided = {"prompt": "a", "guidance.guided_steps": None, "guidance.bridge_from": 1.0}
    one, four, perp = (
        build_config(all_guided | {"camera.views": n, "guidance.perp_neg": perp})
        for n, perp in ((1, False), (4, False), (1, True))
    )
    work = [estimate.network_bytes(WHOLE, config, BIG, cuda=True) - BIG.network for config in (one, four, perp)]
    assert work[1] == pytest.approx(4 * work[0]) and work[2] == pytest.approx(2 * work[0])


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({"solver_steps": 1}, 2 + 2),  # a recording, and the compiled one beside it
        ({}, 2 + 2 + 1),  # and one of the source's path
        ({"bridge_from": 1.0, "guided_steps": None}, 2 + 2),
        ({"method": "sds", "guided_steps": None}, 2 + 2),
        ({"method": "sds"}, 2 + 2 + 1),  # and one of the unguided calls
        ({"perp_neg": True}, 4 + 4 + 1),
        ({"perp_neg": True, "solver_steps": 1}, 4 + 4 + 2),  # stage two does without the wrong views
        ({"method": "nfsd"}, 3 + 3),
    ],
)
def test_every_kind_of_call_has_a_recording(changes, images):
    changes = {f"guidance.{name}": value for name, value in changes.items()}
    config, plain = (
        build_config({"prompt": "a", "camera.views": 3, "model.compile": compile} | changes)
        for compile in ("auto", "off")
    )
    work = estimate.SLACK * BIG.work.numbers * BIG.work.itemsize

    def in_images(rung, settings, cuda):
        return (estimate.network_bytes(rung, settings, BIG, cuda) - BIG.network) / work

    assert in_images(WHOLE, config, True) == pytest.approx(3 * images)
    assert in_images(RUNGS[1], config, True) == pytest.approx(images), "one view at a time"
    assert in_images(RUNGS[3], config, True) == pytest.approx(2), "one prompt at a time: one kind of call"
    most = max(estimate.prompts_at_once(config.guidance))
    assert in_images(WHOLE, config, False) == in_images(WHOLE, plain, True) == pytest.approx(3 * most)


@pytest.mark.parametrize(
    ("method", "solver_steps", "perp_neg", "guided_steps"),
    [
        *itertools.product(["sds", "bridge"], [1, 2], [False, True], [None, 1]),
        *itertools.product(["csd", "nfsd"], [1, 2], [False], [1]),
    ],
)
def test_the_kinds_of_calls_are_those_that_the_guidance_makes(
    method, solver_steps, perp_neg, guided_steps, tiny_model, tmp_path
):
    settings = GuidanceConfig(
        method=method, solver_steps=solver_steps, perp_neg=perp_neg, guided_steps=guided_steps, view_words="on"
    )
    prior = load(tiny_model("sd-epsilon"), tmp_path, image_size=16)
    words, views = encode_words(prior, "a chair", settings), 3
    condition = ViewCondition(turntable_cameras(views, 0.3, 3.0, 0.7), torch.ones(views, 3))
    x, t = torch.randn(views, 4, 2, 2), torch.full((views,), 0.5)
    answer, calls = prior.predict_noise, set()

    def watched(noised, *rest):
        calls.add(len(noised))
        return answer(noised, *rest)

    prior.predict_noise = watched
    for stage in (1, 2):
        guidance_gradient(prior, x, t, torch.randn_like(x), words, condition, settings, stage)
    assert calls == {views * n for n in estimate.prompts_at_once(settings)}


@pytest.mark.parametrize("spoil", ["header", "config"])
def test_a_damaged_model_is_told(spoil, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-v"), tmp_path / "model")
    if spoil == "header":
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10")
    else:
        path = folder / "vae" / "config.json"
        path.write_text(json.dumps({"block_out_channels": None}))
    with pytest.raises(UserError, match="cannot read the weights in .*unet|cannot tell its sizes"):
        sizes_of(folder)
