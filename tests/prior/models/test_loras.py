"""LoRAs melted into the weights, against weights worked out by hand."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from prior.models import tiny_models
from safetensors.torch import save_file

from nerf_bridge.errors import UserError
from nerf_bridge.prior.models.lora import parse_loras

ATTENTION = {
    "sd-epsilon": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "sdxl": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "sd3": "transformer_blocks.0.attn.to_q",
    "flux": "transformer_blocks.0.attn.to_q",
}
PIPELINES = {
    "sd-epsilon": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}
RANK = 2


def kind(family):
    return "transformer" if family in ("sd3", "flux") else "unet"


def write_lora(path, prefix, name, weight, seed=0):
    """A LoRA in diffusers' format for one matrix; returns its change of `weight`, B A."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((RANK, weight.shape[1]), (weight.shape[0], RANK)))
    save_file({f"{prefix}.{name}.lora_A.weight": a, f"{prefix}.{name}.lora_B.weight": b}, path)
    return b @ a


@pytest.mark.parametrize("family", list(ATTENTION))
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_the_network_gets_the_change(family, scale, tiny_model, tmp_path):
    plain = tiny_models.load(tiny_model(family), tmp_path / "cache").denoiser.network
    weight = plain.get_submodule(ATTENTION[family]).weight
    change = write_lora(tmp_path / "a.safetensors", kind(family), ATTENTION[family], weight)
    loras = parse_loras(f"{tmp_path}/a.safetensors:{scale}")
    changed = tiny_models.load(tiny_model(family), tmp_path / "cache", loras=loras).denoiser.network
    assert set(changed.state_dict()) == set(plain.state_dict())
    for name, value in changed.state_dict().items():
        expected = plain.state_dict()[name]
        if name == f"{ATTENTION[family]}.weight":
            expected = expected + scale * change
        assert torch.allclose(value, expected, atol=1e-5), name
    assert not any(parameter.requires_grad for parameter in changed.parameters())


def test_several_loras_add_up_and_are_recorded(tiny_model, tmp_path):
    name = ATTENTION["sd-epsilon"]
    weight = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "c").denoiser.network.get_submodule(name).weight
    one, two = (write_lora(tmp_path / f"{i}.safetensors", "unet", name, weight, seed=i) for i in (1, 2))
    loras = parse_loras(f"{tmp_path}/1.safetensors, {tmp_path}/2.safetensors:0.25")
    prior = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "c", loras=loras)
    assert torch.allclose(prior.denoiser.network.get_submodule(name).weight, weight + one + 0.25 * two, atol=1e-5)
    assert {"lora 1.safetensors x 1", "lora 2.safetensors x 0.25"} <= set(prior.info().sha256)


@pytest.mark.parametrize("family", ["sd-epsilon", "sdxl"])
def test_the_text_encoder_gets_the_change(family, tiny_model, tmp_path):
    """Against the published pipeline with the same LoRA."""
    pipeline = PIPELINES[family].from_pretrained(tiny_model(family))
    name = next(n for n, _ in pipeline.text_encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    weight = pipeline.text_encoder.get_submodule(name).weight
    change = write_lora(tmp_path / "t.safetensors", "text_encoder", name, weight)
    loras = parse_loras(f"{tmp_path}/t.safetensors:0.5")
    prior = tiny_models.load(tiny_model(family), tmp_path / "cache", loras=loras)
    with torch.no_grad():
        weight += 0.5 * change
    ids = pipeline.tokenizer("a chair", padding="max_length", max_length=77, return_tensors="pt").input_ids
    said = pipeline.text_encoder(ids, output_hidden_states=True)
    expected = said.last_hidden_state if family == "sd-epsilon" else said.hidden_states[-2]
    actual = prior.encode_prompts(["a chair"]).tokens[..., : tiny_models.WIDTH]
    plain = tiny_models.load(tiny_model(family), tmp_path / "cache").encode_prompts(["a chair"]).tokens
    assert torch.allclose(actual, expected, atol=1e-5)
    assert not torch.allclose(plain[..., : tiny_models.WIDTH], actual, atol=1e-3)


@pytest.mark.parametrize("second", ["q_proj", "v_proj"])
def test_several_changes_of_the_text_encoder_add_up(second, tiny_model, tmp_path):
    """In the same layer and in different ones, against the published pipeline with both in its weights."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model("sd-epsilon"))
    first = next(n for n, _ in pipeline.text_encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    for seed, (name, scale) in enumerate([(first, 0.5), (first.replace("q_proj", second), 0.25)]):
        weight = pipeline.text_encoder.get_submodule(name).weight
        change = write_lora(tmp_path / f"{seed}.safetensors", "text_encoder", name, weight, seed)
        with torch.no_grad():
            weight += scale * change
    loras = parse_loras(f"{tmp_path}/0.safetensors:0.5, {tmp_path}/1.safetensors:0.25")
    prior = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "cache", loras=loras)
    ids = pipeline.tokenizer("a chair", padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = pipeline.text_encoder(ids).last_hidden_state
    assert torch.allclose(prior.encode_prompts(["a chair"]).tokens, expected, atol=1e-5)


def test_names_of_other_trainers_are_understood(tiny_model, tmp_path):
    """The kohya format: other names, down and up in place of A and B, and an alpha."""
    prior = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "cache")
    name = ATTENTION["sd-epsilon"]
    weight = prior.denoiser.network.get_submodule(name).weight
    a, b = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
    stem = f"lora_unet_{name.replace('.', '_')}"
    state = {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(1.0)}
    save_file(state, tmp_path / "k.safetensors")
    changed = tiny_models.load(tiny_model("sd-epsilon"), tmp_path / "c", loras=parse_loras(f"{tmp_path}/k.safetensors"))
    expected = weight + (1.0 / RANK) * (b @ a)
    assert torch.allclose(changed.denoiser.network.get_submodule(name).weight, expected, atol=1e-5)


def test_no_loras():
    assert parse_loras("") == () and parse_loras(" , ") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no.safetensors", "cannot read no.safetensors: No such file"),
        ("old.ckpt", "old.ckpt is no .safetensors file"),
        ("a.safetensors:much", "has the scale 'much'; expected FILE or FILE:NUMBER"),
    ],
)
def test_wrong_settings_are_told(text, says):
    with pytest.raises(UserError, match=f"model.loras: .*{says}"):
        parse_loras(text)


def test_a_lora_of_another_family_is_refused(tiny_model, tmp_path):
    save_file({"something.else": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors does not fit this model: .*; use a LoRA trained for it"):
        tiny_models.load(tiny_model("sd-epsilon"), tmp_path, loras=parse_loras(f"{tmp_path}/x.safetensors"))
    prior = tiny_models.load(tiny_model("sd-epsilon"), tmp_path)
    weight = torch.zeros(5, 7)
    write_lora(tmp_path / "y.safetensors", "unet", ATTENTION["sd-epsilon"], weight)
    with pytest.raises(UserError, match="y.safetensors does not fit this model"):
        tiny_models.load(tiny_model("sd-epsilon"), tmp_path, loras=parse_loras(f"{tmp_path}/y.safetensors"))
    assert isinstance(prior.denoiser.network, UNet2DConditionModel)


@pytest.mark.parametrize("family", ["if", "mvdream"])
def test_families_without_loras_say_so(family, tiny_model, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"any")
    with pytest.raises(UserError, match="of a family for which there are no LoRAs"):
        tiny_models.load(tiny_model(family), tmp_path, loras=parse_loras(f"{tmp_path}/a.safetensors"))
