"""Every family loaded from disk, against diffusers' own pipelines and the formulas written out."""

import json

import diffusers
import pytest
import torch
from prior.models import tiny_models
from prior.models.tiny_models import FAMILIES

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.errors import UserError
from nerf_bridge.guidance import distillation_loss, encode_words, guidance_gradient
from nerf_bridge.prior.protocol import ViewCondition
from nerf_bridge.scene.cameras import turntable_cameras

IN_DIFFUSERS = [family for family in FAMILIES if family != "mvdream"]
WORDS = ["a green chair", "", "a table, foggy", "sharp"]


@pytest.fixture
def loaded(tiny_model, tmp_path):
    def load(family, **options):
        return tiny_models.load(
            tiny_model(family), tmp_path / "cache", **({"dtype": torch.float64, "image_size": 16} | options)
        )

    return load


@pytest.fixture(scope="module")
def pipelines(tiny_model):
    """diffusers' own pipelines, in float64."""
    made = {}

    def pipeline_of(family):
        if family not in made:
            name = json.loads((tiny_model(family) / "model_index.json").read_text())["_class_name"]
            extra = {"safety_checker": None} if family in ("sd-epsilon", "sd-v", "if") else {}
            made[family] = getattr(diffusers, name).from_pretrained(
                tiny_model(family), torch_dtype=torch.float64, **extra
            )
        return made[family]

    return pipeline_of


def batch(prior, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = prior.encode_image(torch.rand(n, 3, 16, 16, generator=generator, dtype=torch.float64))
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x, noise, torch.linspace(0.1, 0.9, n, dtype=torch.float64)


def views(n):
    return ViewCondition(turntable_cameras(n, 0.3, 3.0, 0.7), torch.ones(n, 3))


def words_by_diffusers(family, pipeline, prompts):
    """(tokens, pooled) as the published pipeline encodes them; the empty prompt as it stands for no prompt."""
    tokens, pooled = [], []
    for prompt in prompts:
        if family in ("sd-epsilon", "sd-v", "if"):
            said = pipeline.encode_prompt(
                prompt, do_classifier_free_guidance=False, device="cpu", num_images_per_prompt=1
            )
            tokens.append(said[0])
        elif family == "flux":
            said = pipeline.encode_prompt(prompt, None, device="cpu", max_sequence_length=256)
            tokens.append(said[0])
            pooled.append(said[1])
        elif prompt:
            said = pipeline.encode_prompt(prompt, prompt_2=None, **({"prompt_3": None} if family == "sd3" else {}))
            tokens.append(said[0])
            pooled.append(said[2])
        else:
            said = pipeline.encode_prompt("any", prompt_2=None, **({"prompt_3": None} if family == "sd3" else {}))
            tokens.append(said[1])
            pooled.append(said[3])
    return torch.cat(tokens).detach(), torch.cat(pooled).detach() if pooled else None


def noise_by_hand(family, pipeline, noised, t, tokens, pooled):
    """Epsilon of one sample after another, from the network's plain answer, by way of the clean image."""
    rows = []
    for i in range(len(noised)):
        x_t, time, words = noised[i : i + 1], t[i].item(), tokens[i : i + 1]
        vector = None if pooled is None else pooled[i : i + 1]
        if family in ("sd3", "flux"):
            velocity = flow_answer(family, pipeline, x_t, time, words, vector)
            clean = x_t - time * velocity
            rows.append((x_t - (1 - time) * clean) / time)
            continue
        step = int(time * 1000)
        added = None
        if family == "sdxl":
            added = {"text_embeds": vector, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]], dtype=torch.float64)}
        answer = pipeline.unet(x_t, step, encoder_hidden_states=words, added_cond_kwargs=added).sample
        if family == "if":
            answer, _ = answer.split(3, dim=1)
        if family == "sd-v":
            alpha_bar = pipeline.scheduler.alphas_cumprod[step].double()
            clean = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * answer
            answer = (x_t - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        rows.append(answer)
    return torch.cat(rows).detach()


def flow_answer(family, pipeline, x_t, time, words, pooled):
    if family == "sd3":
        timestep = torch.tensor([1000 * time], dtype=torch.float64)
        return pipeline.transformer(x_t, words, pooled, timestep, return_dict=False)[0]
    packed = pipeline._pack_latents(x_t, 1, 4, 8, 8)
    places = pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float64)
    answer = pipeline.transformer(
        hidden_states=packed,
        timestep=torch.tensor([time], dtype=torch.float64),
        pooled_projections=pooled,
        encoder_hidden_states=words,
        txt_ids=torch.zeros(words.shape[1], 3, dtype=torch.float64),
        img_ids=places,
    ).sample
    return pipeline._unpack_latents(answer, 16, 16, 2)


@pytest.mark.parametrize("family", IN_DIFFUSERS)
def test_words_are_those_of_the_published_pipeline(family, loaded, pipelines):
    encoded = loaded(family).encode_prompts(WORDS)
    tokens, pooled = words_by_diffusers(family, pipelines(family), WORDS)
    assert torch.allclose(encoded.tokens, tokens, atol=1e-9)
    assert encoded.mask.all()
    assert (encoded.pooled is None) == (pooled is None)
    assert pooled is None or torch.allclose(encoded.pooled, pooled, atol=1e-9)


@pytest.mark.parametrize("family", IN_DIFFUSERS)
def test_noise_is_that_of_the_plain_network(family, loaded, pipelines):
    prior = loaded(family)
    x, noise, t = batch(prior)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in prior.alpha_sigma(t))
    noised = alpha * x + sigma * noise
    actual = prior.predict_noise(noised, t, prior.encode_prompts(WORDS), views(4))
    expected = noise_by_hand(
        family, pipelines(family), noised, t, *words_by_diffusers(family, pipelines(family), WORDS)
    )
    assert actual.dtype == torch.float64 and not actual.requires_grad
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", IN_DIFFUSERS)
def test_guidance_is_the_published_formula(family, loaded, pipelines):
    prior, pipeline = loaded(family), pipelines(family)
    settings = GuidanceConfig(
        solver_steps=1, scale=7.5, bridge_scale=3.0, view_words="off", source_words="foggy", negative_prompt="ugly"
    )
    prompts = {"text": "chair", "null": "", "negative": "ugly"}
    prompts |= {"target": f"chair, {settings.target_words}", "source": "chair, foggy"}
    x, noise, _ = batch(prior, n=2)
    t = torch.tensor([0.15, 0.7], dtype=torch.float64)
    alpha, sigma = levels_by_hand(family, pipeline, t)
    eps = {}
    for role, prompt in prompts.items():
        words = words_by_diffusers(family, pipeline, [prompt] * 2)
        eps[role] = noise_by_hand(family, pipeline, alpha * x + sigma * noise, t, *words)
    delta = torch.where(t.view(-1, 1, 1, 1) < 0.2, eps["null"], eps["null"] - eps["negative"])
    formulas = {
        ("sds", 1): eps["null"] + 7.5 * (eps["text"] - eps["null"]) - noise,
        ("csd", 1): 7.5 * (eps["text"] - eps["null"]),
        ("nfsd", 1): 7.5 * (eps["text"] - eps["null"]) + delta,
        ("bridge", 2): 3.0 * (eps["target"] - eps["source"]),
    }
    words = encode_words(prior, "chair", settings)
    for (method, stage), formula in formulas.items():
        chosen = settings.model_copy(update={"method": method})
        actual = guidance_gradient(prior, x, t, noise, words, None, chosen, stage)
        expected = sigma**2 / (alpha**2 + sigma**2) * formula
        assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max(), method


def levels_by_hand(family, pipeline, t):
    if family in ("sd3", "flux"):
        return (1 - t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
    alpha_bar = pipeline.scheduler.alphas_cumprod[(t * 1000).long()].double().view(-1, 1, 1, 1)
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_the_image_as_autograd_says(family, loaded):
    """The image's gradient is that of sum |x - (x - grad)|^2 / 2b, where nothing but x is differentiated."""
    prior = loaded(family)
    settings = GuidanceConfig(method="csd", view_words="off", solver_steps=1)
    words = encode_words(prior, "chair", settings)
    picture = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, noise, t = batch(prior)
    if family == "mvdream":
        t = t[:1].repeat(4)
    mine, other = (picture.clone().requires_grad_() for _ in range(2))
    x = prior.encode_image(mine)
    condition = views(4) if prior.knows_cameras else None
    grad_x = guidance_gradient(prior, x.detach(), t, noise, words, condition, settings, 1)
    distillation_loss(x, grad_x).backward()
    again = prior.encode_image(other)
    goal = (again - grad_x).detach()
    (0.5 * ((again - goal) ** 2).sum() / 4).backward()
    assert torch.allclose(mine.grad, other.grad, rtol=1e-9, atol=1e-14)
    assert mine.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_samples(family, loaded):
    prior = loaded(family)
    x, _, t = batch(prior, n=4)
    words = prior.encode_prompts(WORDS)
    whole = prior.predict_noise(x, t, words, None)
    alone = [prior.predict_noise(x[[i]], t[[i]], words.select([i]), None) for i in range(4)]
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_and_answers_in_float32(family, dtype, loaded):
    whole, half = loaded(family, dtype=torch.float32), loaded(family, dtype=dtype)
    picture = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = half.encode_image(picture)
    x.sum().backward()
    assert x.dtype == torch.float32 and bool(picture.grad.isfinite().all())
    words, t = whole.encode_prompts(WORDS), torch.full((4,), 0.6)
    condition = views(4) if whole.knows_cameras else None
    expected = whole.predict_noise(x.detach(), t, words, condition)
    actual = half.predict_noise(x.detach(), t, half.encode_prompts(WORDS), condition)
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 0.05 * expected.norm()
    assert half.decode_image(x.detach()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_told_the_time_as_it_is(family, dtype, loaded):
    """Whatever it computes in: in bfloat16, 777.7 would be 776."""
    prior = loaded(family, dtype=dtype)
    told = {}
    names = ("x", "time") if family == "mvdream" else ("sample", "timestep")  # U-Nets take them by place

    def keep(_, placed, named):
        told.update(dict(zip(names, placed, strict=False)) | named)

    prior.denoiser.network.register_forward_pre_hook(keep, with_kwargs=True)
    x, t = torch.zeros(prior.encode_image(torch.zeros(1, 3, 16, 16)).shape), torch.tensor([0.7777])
    prior.predict_noise(x, t, prior.encode_prompts(["a chair"]), None)
    time = told[names[1]]
    expected = {"sd3": 777.7, "flux": 0.7777}.get(family, 777)
    assert time.dtype == (torch.float32 if family in ("sd3", "flux") else torch.int64)
    assert time.tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize(("size", "told"), [(8, 16), (16, 16), (32, 32)])
def test_sdxl_is_told_its_trained_size_for_smaller_images(size, told, loaded):
    """It was trained at 16. The size of a small image would ask for what small images look like."""
    prior = loaded("sdxl", image_size=size)
    added = {}
    prior.denoiser.network.register_forward_pre_hook(
        lambda _, placed, named: added.update(named["added_cond_kwargs"]), with_kwargs=True
    )
    x = prior.encode_image(torch.rand(1, 3, size, size, dtype=torch.float64))
    prior.predict_noise(x, torch.tensor([0.5], dtype=torch.float64), prior.encode_prompts(["a chair"]), None)
    assert added["time_ids"].tolist() == [[told, told, 0, 0, told, told]]


def test_sdxl_keeps_its_autoencoder_out_of_float16(loaded):
    prior = loaded("sdxl", dtype=torch.float16)
    assert prior.denoiser.network.dtype == torch.float16
    assert next(prior.codec.vae.parameters()).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_words_matter(family, loaded):
    prior = loaded(family)
    x, _, t = batch(prior, n=1)
    one, other = (prior.predict_noise(x, t, prior.encode_prompts([prompt]), None) for prompt in ("a chair", "foggy"))
    assert (one - other).abs().max() > 1e-4 * one.abs().max()


def test_deepfloyd_keeps_the_noise_and_drops_the_variance(loaded):
    prior = loaded("if")
    x, _, t = batch(prior, n=1)
    assert prior.denoiser.network.config.out_channels == 6
    assert prior.predict_noise(x, t, prior.encode_prompts(["a chair"]), None).shape == (1, 3, 16, 16)


def test_the_image_size_is_what_the_model_was_trained_at(loaded):
    sizes = {family: loaded(family, image_size=None).image_size for family in FAMILIES}
    assert sizes == dict.fromkeys(FAMILIES, 16) | {"flux": 256}  # FLUX: 128 latents, which no file of it says


@pytest.mark.parametrize(("family", "multiple"), [("sd-epsilon", 2), ("sd3", 4), ("flux", 4), ("if", 2)])
def test_a_size_that_does_not_fit_is_refused(family, multiple, loaded):
    with pytest.raises(UserError, match=f"model.image_size: prior .* takes multiples of {multiple}, got 17"):
        loaded(family, image_size=17)


def test_long_prompts_are_told(loaded, caplog):
    loaded("sd-epsilon").encode_prompts(["word " * 40])
    assert "at most 77 tokens; the end of this is left out: word word" in caplog.text
