"""The rungs: each does the same step, with less."""

import itertools

import pytest
import torch
from prior.models.tiny_models import load
from tiny_run import CountingOracle, tiny_config

from nerf_bridge.config import build_config
from nerf_bridge.draws import Draws, draw_views
from nerf_bridge.errors import RunError
from nerf_bridge.guidance import encode_words, size_at
from nerf_bridge.memory.descent import place
from nerf_bridge.memory.ladder import (
    PRESETS,
    RUNGS,
    Rung,
    find_preset,
    is_out_of_memory,
    parts_of,
    preset_for,
    rung_below,
    within_preset,
)
from nerf_bridge.optimize import render_views, training_step
from nerf_bridge.prior.embedded import EmbeddedPrior
from nerf_bridge.prior.models.fast_network import FastNetwork
from nerf_bridge.prior.protocol import kept_together
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.prior.unet import TOGETHER, UNet, UNetConfig
from nerf_bridge.run.state import Progress, build_optimiser
from nerf_bridge.scene.scene import build_scene

CPU = torch.device("cpu")
EXACT = range(1, len(RUNGS) - 1)


def test_each_rung_does_what_the_one_above_does_and_one_thing_more():
    saving = [(r.one_group, -(r.samples_at_once or 1 << 62), r.recompute_encoder, r.one_prompt, r.stream_network,
               r.image_divisor) for r in RUNGS]  # fmt: skip
    for above, below in itertools.pairwise(saving):
        assert above != below and all(more >= less for less, more in zip(above, below, strict=True))
    assert RUNGS[0] == Rung("whole", "everything at once")
    assert len({rung.name for rung in RUNGS}) == len(RUNGS)


def test_presets_are_the_settings_names_from_large_to_small():
    allowed = build_config({"prompt": "a"}).model_fields["memory"].annotation.__args__
    assert allowed == ("auto", *(preset.name for preset in PRESETS))
    assert find_preset("auto") is None
    assert [p.rung for p in PRESETS] == sorted(p.rung for p in PRESETS)
    assert [preset_for(int(gb * 1e9)) for gb in (140, 80, 79, 25, 11.9, 8, 6)] == [
        *map(find_preset, ("80gb", "80gb", "80gb", "24gb", "12gb", "8gb")),
        None,
    ]


@pytest.mark.parametrize(
    ("memory", "sizes"),
    [("auto", [64, 512]), ("80gb", [64, 512]), ("24gb", [64, 512]), ("12gb", [64, 384]), ("8gb", [64, 256])],
)
def test_a_preset_bounds_the_views(memory, sizes):
    config = build_config({"prompt": "a", "memory": memory, "render.size": 512, "render.early_size": 64})
    within = within_preset(config)
    assert [size_at(step, 10, within.render) for step in (0, 9)] == sizes
    assert config.render.size == 512 and within.steps == config.steps


def test_a_preset_leaves_smaller_views_alone():
    config = build_config({"prompt": "a", "memory": "8gb"})
    assert within_preset(config) == config


def test_parts_are_all_views_or_whole_groups():
    assert parts_of(8, 4, RUNGS[0]) == [slice(0, 8)]
    assert parts_of(8, 4, RUNGS[1]) == [slice(0, 4), slice(4, 8)]
    assert parts_of(3, 1, RUNGS[-1]) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_below_the_last_rung_it_says_what_was_tried():
    assert [rung_below(i, "full") for i in range(len(RUNGS) - 1)] == list(range(1, len(RUNGS)))
    with pytest.raises(
        RunError, match=r"\(tried: .*one group of views.*half the size.*\): CUDA is full; go on with a smaller --memory"
    ):
        rung_below(len(RUNGS) - 1, "CUDA is full")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("adam failed on cuda with status 2: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (RuntimeError("adam failed on cuda with status 1: invalid argument"), False),
        (RunError("out of memory below the last rung of the memory ladder"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def gradients(config, prior, rung, step=5):
    """Every gradient of a step on `rung`, at the same state, and what it says of the step."""
    scene = build_scene(config, "torch", CPU)
    optimiser = build_optimiser(scene, config)
    draws = Draws(config, encode_words(prior, config.prompt, config.guidance), prior.view_group, CPU)
    place(prior, rung)
    health = training_step(scene, optimiser, prior, draws, config, Progress(step, rung=rung))
    named = {**dict(scene.field.named_parameters()), **dict(scene.environment.named_parameters())}
    return {name: value.grad for name, value in named.items() if value.grad is not None}, health


@pytest.mark.parametrize("family", ["sd-epsilon", "mvdream", "sd3"])
def test_every_exact_rung_gives_the_same_gradient(family, tiny_model, tmp_path):
    """Also where the rays are cut into many parts, and for a learned background, light and both stages' prompts."""
    config = tiny_config(
        camera__views=4, render__background="learned", render__shading="lambertian", optim__weight_smooth=0.1,
        guidance__bridge_from=0.9, optim__ramp_from=0.0,
    )  # fmt: skip

    def of(rung):
        return gradients(config, load(tiny_model(family), tmp_path / "words", image_size=16), rung)

    whole, said = of(0)
    assert all(bool(grad.abs().sum() > 0) for grad in whole.values())
    for rung in EXACT:
        sparing, says = of(rung)
        assert sparing.keys() == whole.keys()
        for name, grad in whole.items():
            assert (sparing[name] - grad).abs().max() <= 2e-5 * grad.abs().max(), (RUNGS[rung].name, name)
        assert says.opacity == pytest.approx(said.opacity, rel=1e-5)


@pytest.mark.parametrize(("views", "parts"), [(4, 1), (8, 1), (3, 3)])
def test_views_that_are_denoised_together_stay_together_on_every_rung(views, parts):
    """Also where a step has two sets; three are no set, and go one by one."""
    config = tiny_config(camera__views=views)
    torch.manual_seed(0)
    network = UNet(UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=8))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    words = TextEncoder(text_encoder_folder(), 8)
    prior = EmbeddedPrior(network, words, CPU, {}, together=TOGETHER)
    prior.dtype = torch.float32
    prior.network.float()
    assert len(parts_of(views, kept_together(prior, views), RUNGS[1])) == parts
    whole, sparing = (gradients(config, prior, rung)[0] for rung in (0, 1))
    assert whole.keys() == sparing.keys() and any(bool(grad.any()) for grad in whole.values())
    for name, grad in whole.items():
        assert float((sparing[name] - grad).abs().max()) <= 2e-5 * float(grad.abs().max()), name


def test_rays_in_parts_are_rendered_the_same_and_keep_less():
    config = tiny_config(camera__views=2, render__size=32, render__shading="lambertian")
    scene = build_scene(config, "torch", CPU)

    def grads(samples_at_once):
        kept = []
        scene.field.zero_grad()
        rendering, _ = render_views(scene, draw_views(config, 3, 1, scene.device), samples_at_once=samples_at_once)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            render_views(scene, draw_views(config, 3, 1, scene.device), samples_at_once=samples_at_once)
        (rendering.color.sum() + rendering.thickness.sum()).backward()
        return rendering, scene.field.table.grad.clone(), sum(kept)

    whole, table, much = grads(None)
    parts, same, little = grads(2000)
    for name in ("color", "opacity", "depth", "thickness"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-6)
    assert parts.n_samples == whole.n_samples
    assert (same - table).abs().max() <= 1e-5 * table.abs().max()
    assert little < much / 10


def test_the_last_rung_shows_the_prior_smaller_images(tiny_model, tmp_path):
    prior = load(tiny_model("sd-epsilon"), tmp_path, image_size=16)
    place(prior, len(RUNGS) - 1)
    assert prior.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 4, 4, 4)
    odd = load(tiny_model("sd-epsilon"), tmp_path, image_size=2)
    place(odd, len(RUNGS) - 1)
    assert odd.encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 4, 1, 1)


def test_what_was_recorded_is_forgotten_on_another_rung_and_a_streamed_network_is_plain(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    prior = load(tiny_model("sd-epsilon"), tmp_path, image_size=16)
    place(prior, 0)
    plain = prior.denoiser.network
    fast = prior.denoiser.network = FastNetwork(plain, "auto", backend="eager")
    fast.recordings["call"] = prior.codec.encoder.recordings["images"] = "recorded"
    place(prior, 0)
    assert fast.recordings and prior.codec.encoder.recordings
    place(prior, 1)
    assert prior.denoiser.network is fast
    assert not fast.recordings and not prior.codec.encoder.recordings
    place(prior, 4)
    assert prior.denoiser.network is plain


def test_a_prior_without_rungs_is_left_alone():
    prior = CountingOracle()
    place(prior, len(RUNGS) - 1)
    assert vars(prior).keys() == vars(CountingOracle()).keys()
