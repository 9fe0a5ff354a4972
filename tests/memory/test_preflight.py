"""Before the models are loaded: the rung that fits what is free, one line, and a refusal in time."""

import logging
from dataclasses import replace

import pytest
import torch
from diffusers import hooks
from prior.models import tiny_models
from tiny_run import CountingOracle, options, shorten_turntable

from nerf_bridge import cli, pipeline
from nerf_bridge.config import build_config
from nerf_bridge.errors import UserError
from nerf_bridge.memory import available, preflight
from nerf_bridge.memory.estimate import (
    GIB,
    EncoderShape,
    ModelSizes,
    NetworkWork,
    transformer_numbers,
    unet_numbers,
)
from nerf_bridge.memory.ladder import RUNGS
from nerf_bridge.memory.preflight import choose, plan_memory
from nerf_bridge.paths import config_path
from nerf_bridge.prior import Prior
from nerf_bridge.prior.models import prompt_cache
from nerf_bridge.settings import load_yaml

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SD_VAE, ENCODER_NUMBERS, DECODER_NUMBERS = (128, 256, 512, 512), 34_163_664, 49_490_199
T5_NUMBERS = 4_762_310_656
SD21_WORK = unet_numbers((320, 640, 1280, 1280), (True, True, True, False), 64)


def model(numbers, words, layer, work, size, decoder=2):
    """A big prior in half precision, from published numbers of parameters."""
    codec = 2 * 2 * ENCODER_NUMBERS + decoder * DECODER_NUMBERS
    return ModelSizes(
        2 * numbers, codec, 2 * words, 2 * layer, NetworkWork(work, 2), EncoderShape(SD_VAE, 2, size, 2), 1
    )


SD21 = model(865_910_724, 340_387_840, 33_200_000, SD21_WORK, 512)
SDXL = model(2_567_463_684, 694_659_840, 33_200_000, unet_numbers((320, 640, 1280), (False, True, True), 128), 1024, 4)
FLUX = model(11_891_178_560, T5_NUMBERS, 15_360 * 3072, transformer_numbers(4096 + 512, 3072), 1024)


def published(memory="auto", **changes):
    return build_config({"prompt": "a", "memory": memory} | load_yaml(config_path("published-3d.yaml")) | changes)


def planned(sizes, memory="auto", free=None, device=CUDA):
    config = published(memory)
    plan = choose(config, sizes, device, free)
    return RUNGS[plan.rung].name, plan.words_device.type


@pytest.mark.parametrize(
    ("sizes", "plans"),
    [
        (SD21, {"80gb": "whole", "24gb": "views", "12gb": "recompute", "8gb": "recompute"}),
        (SDXL, {"80gb": "whole", "24gb": "views", "12gb": "recompute", "8gb": "stream"}),
        (FLUX, {"80gb": "whole", "24gb": "stream", "12gb": "stream", "8gb": "stream"}),
    ],
    ids=["sd21", "sdxl", "flux"],
)
def test_presets_for_512_pixels_of_the_initial_blob(sizes, plans):
    assert {name: planned(sizes, name)[0] for name in plans} == plans


def test_the_presets_stay_below_their_sizes():
    for memory, size in (("24gb", 24), ("12gb", 12), ("8gb", 8)):
        plan = choose(published(memory), SD21, CUDA, None)
        assert plan.needs.step < 0.95e9 * size


def test_auto_takes_the_highest_rung_that_fits_what_is_free():
    names = [planned(SD21, free=int(gib * GIB))[0] for gib in (140, 11, 3.6, 2, 1.3)]
    assert names == ["whole", "recompute", "prompts", "stream", "half"]
    assert planned(SD21, "8gb", free=3 * GIB)[0] == "stream", "less is free than the preset is made for"


def test_text_encoders_without_room_run_on_the_cpu():
    assert planned(FLUX, "24gb") == ("stream", "cuda")
    assert planned(FLUX, "8gb") == ("stream", "cpu")
    assert planned(SD21, "8gb")[1] == "cuda"


def test_what_fits_nowhere_is_refused_with_the_parts_and_a_remedy():
    with pytest.raises(UserError) as caught:
        planned(FLUX, free=GIB)
    line = str(caught.value)
    assert line.startswith(
        "memory: the run needs about 1.8 GiB even on the last rung of the memory ladder (network 0.3"
    )
    assert "1.0 GiB may be taken; close other programs on the GPU, use a smaller model.image_size" in line
    assert "\n" not in line


def test_a_refusal_for_a_presets_size_does_not_ask_to_close_programs():
    huge = replace(FLUX, largest_layer=20 * GIB)
    with pytest.raises(UserError, match=r"and 7\.1 GiB may be taken; use a larger --memory than 8gb, use a smaller"):
        planned(huge, "8gb", free=60 * GIB)
    with pytest.raises(UserError, match=r"and 6\.0 GiB may be taken; close other programs on the GPU, use"):
        planned(huge, "8gb", free=6 * GIB)


@pytest.mark.parametrize(
    ("memory", "free", "than"),
    [("auto", 1.25, "more memory than is free: about 1.8"), ("8gb", 60, "than --memory 8gb is made for: about 9.8")],
)
def test_what_nearly_fits_is_tried_on_the_last_rung_with_a_warning(memory, free, than, caplog):
    """The estimate is no measurement: within 1.5 times of what may be taken it decides nothing."""
    sizes = FLUX if memory == "auto" else replace(FLUX, largest_layer=int(4.12 * GIB))
    with caplog.at_level(logging.WARNING, "nerf_bridge"):
        assert planned(sizes, memory, free=int(free * GIB))[0] == RUNGS[-1].name
    assert than in caplog.text
    with pytest.raises(UserError, match="even on the last rung"):
        planned(FLUX, free=int(1.15 * GIB))


def test_on_a_cpu_it_warns_instead(caplog):
    with caplog.at_level(logging.WARNING, "nerf_bridge"):
        assert planned(FLUX, free=GIB, device=CPU)[0] == RUNGS[-1].name
    assert "may take more memory than is free" in caplog.text


def test_where_nothing_is_known_of_the_free_memory_it_starts_at_the_top():
    assert planned(FLUX, free=None)[0] == "whole"


def test_the_line_says_what_is_needed_and_free_and_done():
    plan = choose(published("8gb"), SD21, CUDA, int(6.6 * GIB))
    assert plan.line("8gb") == f"needs about 4.1 GiB of 6.6 GiB free: memory 8gb, {RUNGS[2].does}"
    words = choose(published(), FLUX, CUDA, 10 * GIB)
    assert words.line("auto").startswith(
        "needs about 9.3 GiB while prompts are encoded of 10.0 GiB free: memory auto, "
    )
    assert (
        choose(published(), SD21, CUDA, None).line("auto").startswith("needs about 11.9 GiB: memory auto, everything")
    )
    assert plan.record()["rung"] == "recompute"
    assert (plan.record()["free_gib"], plan.record()["budget_gib"]) == (6.6, 6.6)


def test_what_is_free_and_what_a_preset_may_take_are_told_apart():
    plan = choose(published("8gb"), SD21, CUDA, 20 * GIB)
    said = "needs about 4.1 GiB of the 7.1 GiB that it may take (20.0 GiB free): memory 8gb, "
    assert plan.line("8gb").startswith(said)
    assert (plan.record()["free_gib"], plan.record()["budget_gib"]) == (20.0, 7.078)
    unknown = choose(published("8gb"), SD21, CUDA, None)
    assert unknown.line("8gb").startswith("needs about 4.1 GiB of the 7.1 GiB that it may take: memory 8gb")
    assert unknown.record()["free_gib"] is None and choose(published(), SD21, CUDA, None).record()["budget_gib"] is None


def test_a_prior_that_is_given_is_not_looked_for():
    config = build_config({"prompt": "a", "prior": "/no/such/folder"})
    assert plan_memory(config, CPU, None, known=False).needs.network == 0


def test_free_memory_of_the_machine(monkeypatch, tmp_path):
    assert available.main_memory() > 0 and available.free_bytes(CPU) > 0
    monkeypatch.setattr(available, "Path", lambda _: tmp_path / "none")
    assert available.main_memory() is None


def test_free_memory_of_a_gpu_includes_what_torch_holds_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert available.free_bytes(CUDA) == 6 * GIB


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "prompt_folder", lambda: tmp_path / "prompts")
    shorten_turntable(monkeypatch)


def test_the_line_comes_before_the_models_are_loaded(tiny_model, tmp_path, quick, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: (_ for _ in ()).throw(UserError("loaded now")))
    words = options(prior=tiny_model("flux"), model__image_size=16)
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), *words]) == 2
    said = capfd.readouterr().err
    assert said.index("needs about 0.2 GiB of") < said.index("loaded now")


def test_a_refusal_comes_before_the_models_are_loaded(tiny_model, tmp_path, quick, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "load_prior", lambda *_: pytest.fail("the prior was loaded"))
    monkeypatch.setattr(preflight, "free_bytes", lambda device: 1000)
    real = preflight.choose
    monkeypatch.setattr(preflight, "choose", lambda config, sizes, device, free: real(config, sizes, CUDA, free))
    words = options(prior=tiny_model("sd-v"))
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), *words]) == 2
    assert "even on the last rung of the memory ladder" in capfd.readouterr().err


META = torch.device("meta")


@pytest.mark.parametrize("family", ["flux", "sdxl", "if", "mvdream"])
def test_text_encoders_and_network_are_never_on_the_device_together(family, tiny_model, tmp_path, monkeypatch):
    """The meta device stands for the GPU: the network comes there only after the prompts are encoded."""
    prior = tiny_models.load(tiny_model(family), tmp_path, device=META, words_device=CPU)
    network, there = prior.denoiser.network, []
    encode = prior.words.encode

    def watched(models, prompts):
        there.append({p.device.type for p in network.parameters()})
        return encode(models, prompts)

    monkeypatch.setattr(prior.words, "encode", watched)
    rows = prior.encode_prompts(["a chair", "a table"])
    assert there == [{"cpu"}] and {p.device.type for p in network.parameters()} == {"cpu"}
    assert rows.tokens.device.type == rows.mask.device.type == "meta"
    prior.place(RUNGS[0])
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize("family", ["sd-epsilon", "sdxl", "sd3", "flux"])
def test_text_encoders_on_the_cpu_keep_the_gpus_precision(family, tiny_model, tmp_path):
    """So that they take no more main memory than they would take there, and the words are the same but for rounding."""
    words = tiny_models.load(tiny_model(family), tmp_path).words
    full, half = (
        words.encode(replace(words.models, dtype=dtype), ["a chair", ""]).tokens
        for dtype in (torch.float32, torch.float16)
    )
    assert half.dtype == (torch.bfloat16 if family == "flux" else torch.float16)
    assert (half.float() - full).abs().max() < 0.02 * full.abs().max()


def test_streamed_weights_stay_in_main_memory(tiny_model, tmp_path, monkeypatch):
    brought = []
    monkeypatch.setattr(hooks, "apply_group_offloading", lambda network, **how: brought.append((network, how)))
    prior = tiny_models.load(tiny_model("flux"), tmp_path, device=META, words_device=CPU)
    for rung in (4, 5):
        prior.place(RUNGS[rung])
    ((network, how),) = brought
    assert network is prior.denoiser.network and how["onload_device"] == META and how["offload_device"] == CPU
    assert {p.device.type for p in prior.denoiser.network.parameters()} == {"cpu"}
    assert {p.device.type for p in prior.codec.vae.parameters()} == {"meta"}


def test_a_run_encodes_its_prompts_before_the_network_is_placed(tiny_model, tmp_path, quick, monkeypatch):
    seen = []
    real = pipeline.load_prior

    def watched(*arguments):
        prior = real(*arguments)
        encode = prior.words.encode
        prior.words.encode = lambda models, prompts: seen.append(prior.rung) or encode(models, prompts)
        return prior

    monkeypatch.setattr(pipeline, "load_prior", watched)
    words = options(prior=tiny_model("sd3"), model__image_size=16, steps=1, memory="12gb")
    assert cli.main(["generate", "a chair", "--out", str(tmp_path / "run"), *words]) == 0
    assert seen == [None]


def test_priors_without_big_parts_need_no_place():
    prior: Prior = CountingOracle()
    assert not hasattr(prior, "place")
