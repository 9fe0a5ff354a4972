"""The prior that comes with the package: its weight files, its conditions, and its answer in noise."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from nerf_bridge.errors import UserError
from nerf_bridge.paths import data_path
from nerf_bridge.prior import embedded, load_prior
from nerf_bridge.prior.embedded import EmbeddedPrior, load_embedded, load_weights, save_weights
from nerf_bridge.prior.protocol import PromptEmbeddings, ViewCondition
from nerf_bridge.prior.text import TEXT_WEIGHTS_SHA256
from nerf_bridge.prior.unet import TOGETHER, UNet, UNetConfig, schedule
from nerf_bridge.scene.cameras import orbit_cameras

TINY = UNetConfig(image_size=16, channels=(64, 64), blocks=1, embedding=64, text_length=8)
CPU = torch.device("cpu")


def tiny_network(seed=0):
    """A small network in which every input shows in the output."""
    torch.manual_seed(seed)
    network = UNet(TINY)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(embedded, "fastest_dtype", lambda device: torch.float32)


@pytest.fixture
def prior():
    return EmbeddedPrior(tiny_network(), torch.nn.Identity(), CPU, {})


@pytest.fixture
def folder(tmp_path):
    save_weights(tiny_network(), tmp_path / "weights", {"log": []})
    return tmp_path / "weights"


def words(n):
    generator = torch.Generator().manual_seed(3)
    return PromptEmbeddings(torch.randn(n, 8, 384, generator=generator), torch.ones(n, 8, dtype=torch.bool))


def views(azimuths, background=0.5, known=None):
    azimuth = torch.tensor(azimuths)
    same = torch.ones_like(azimuth)
    cameras = orbit_cameras(azimuth, 0.2 * same, 3.0 * same, 0.7 * same)
    return ViewCondition(cameras, torch.full((len(azimuths), 3), background), known)


def conditioned(prior, told, condition):
    """What the network is told."""
    return prior._condition(told.tokens, told.mask, () if condition is None else embedded._view_tensors(condition))


def noised(n):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def test_weights_come_back_as_they_were_saved(tmp_path):
    network = tiny_network()
    save_weights(network, tmp_path / "new" / "weights", {"models": 3})
    stored = load_weights(tmp_path / "new" / "weights")
    loaded, sha256 = stored.network, stored.sha256
    assert loaded.config == TINY and stored.designs == 0
    original = network.state_dict()
    assert loaded.state_dict().keys() == original.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, original[name].half().float()), name
    index = json.loads((tmp_path / "new" / "weights" / "index.json").read_text())
    assert index["training"] == {"models": 3} and index["sha256"] == sha256
    for name, digest in sha256.items():
        assert hashlib.sha256((tmp_path / "new" / "weights" / name).read_bytes()).hexdigest() == digest


def test_views_of_one_object_are_denoised_together_where_it_was_trained_for(tmp_path):
    """Four of a prompt, also where a batch holds them for two prompts; never views of different things, nor three."""
    save_weights(tiny_network(), tmp_path, {}, together=TOGETHER)
    stored = load_weights(tmp_path)
    assert stored.together == TOGETHER
    prior = EmbeddedPrior(stored.network, torch.nn.Identity(), CPU, {}, together=stored.together)
    images, t, told = noised(8), torch.full((8,), 0.6), words(2).select([0] * 4 + [1] * 4)
    apart = views([0.0, 1.0, 2.0, 3.0])
    together = replace(apart, together=4)
    each = [prior.predict_noise(images[i : i + 1], t[:1], told.row(i), apart.repeat(2).select([i])) for i in range(8)]
    assert torch.allclose(prior.predict_noise(images, t, told, apart.repeat(2)), torch.cat(each), atol=1e-5)
    found = prior.predict_noise(images, t, told, together.repeat(2))
    assert (found - torch.cat(each)).abs().amax((1, 2, 3)).min() > 1e-4
    half = prior.predict_noise(images[4:], t[4:], told.select([4, 5, 6, 7]), together)
    assert torch.allclose(found[4:], half, atol=1e-5)
    three = prior.predict_noise(images[:3], t[:3], told.select([0] * 3), replace(apart.select([0, 1, 2]), together=3))
    assert torch.allclose(three, torch.cat(each[:3]), atol=1e-5)


def test_eight_views_make_two_sets_that_go_around():
    assert embedded._sets_around(8, 4, CPU).tolist() == list(range(8))
    assert embedded._sets_around(16, 8, CPU).tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    prior = EmbeddedPrior(tiny_network(), torch.nn.Identity(), CPU, {}, together=TOGETHER)
    images, t, told = noised(8), torch.linspace(0.5, 0.9, 8), words(1).select([0] * 8)
    eight = replace(views([0.1 * i for i in range(8)]), together=8)
    found = prior.predict_noise(images, t, told, eight)
    for rows in ([0, 2, 4, 6], [1, 3, 5, 7]):
        four = prior.predict_noise(images[rows], t[rows], told.select(rows), replace(eight.select(rows), together=4))
        assert torch.allclose(found[rows], four, atol=1e-5)


def test_weights_that_know_sets_of_another_size_are_refused(tmp_path):
    save_weights(tiny_network(), tmp_path, {}, together=3)
    with pytest.raises(UserError, match="views together: 3, known are 1 and 4"):
        load_weights(tmp_path)


def test_weights_from_before_the_designs_path_are_as_they_were(tmp_path):
    network = tiny_network()
    save_weights(network, tmp_path, {})
    (name,) = json.loads((tmp_path / "index.json").read_text())["sha256"]
    kept = {key: value for key, value in load_file(tmp_path / name).items() if key != embedded.YOUNGEST}
    data = save(kept)
    (tmp_path / name).write_bytes(data)
    index = json.loads((tmp_path / "index.json").read_text())
    index["sha256"][name] = hashlib.sha256(data).hexdigest()
    (tmp_path / "index.json").write_text(json.dumps(index))
    loaded = load_weights(tmp_path).network
    assert not loaded.embed.design.weight.any()
    assert torch.equal(loaded.conv_in.weight, network.conv_in.weight.half().float())


def test_large_weights_are_split_into_files_below_the_limit(tmp_path, monkeypatch):
    limit = 2**16 + 200_000
    monkeypatch.setattr(embedded, "LARGEST_SHARD_BYTES", limit)
    network = tiny_network()
    save_weights(network, tmp_path, {})
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and all(shard.stat().st_size <= limit for shard in shards)
    names = [name for shard in shards for name in load_file(shard)]
    assert sorted(names) == sorted(network.state_dict())
    stored = load_weights(tmp_path)
    assert len(stored.sha256) == len(shards)
    assert torch.equal(stored.network.conv_in.weight, network.conv_in.weight.half().float())


def test_the_shipped_weights_load_and_are_small():
    stored = load_weights(data_path("prior/weights"))
    network, sha256 = stored.network, stored.sha256
    assert network.config.image_size == 64
    sizes = [(data_path("prior/weights") / name).stat().st_size for name in sha256]
    assert max(sizes) <= 15 * 2**20 and sum(sizes) <= 48 * 2**20
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
    assert bool(network.conv_out.weight.any())


def refused(folder):
    with pytest.raises(UserError) as caught:
        load_embedded("cpu", folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and "reinstall the package" in message
    return message


def rewrite(folder, change):
    """Change index.json as a JSON object."""
    path = folder / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index)))


def test_missing_files_are_refused_by_name(folder):
    shard = next(folder.glob("*.safetensors"))
    shard.rename(folder / "elsewhere")
    assert shard.name in refused(folder)
    shutil.rmtree(folder)
    assert "index.json" in refused(folder)


def test_a_damaged_weight_file_is_refused_by_name(folder):
    shard = next(folder.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    message = refused(folder)
    assert shard.name in message and "damaged" in message
    shard.write_bytes(data[: len(data) // 2])
    assert shard.name in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: [],
        lambda index: {"network": index["network"]},
        lambda index: {"sha256": index["sha256"]},
        lambda index: index | {"network": index["network"] | {"depth": 3}},
        lambda index: index | {"network": index["network"] | {"channels": 64}},
        lambda index: index | {"network": index["network"] | {"embedding": 128}},
    ],
    ids=["no object", "no hashes", "no sizes", "an unknown size", "wrong channels", "another size"],
)
def test_an_index_of_something_else_is_refused(folder, change):
    rewrite(folder, change)
    refused(folder)


def test_a_torn_index_is_refused(folder):
    text = (folder / "index.json").read_text()
    for torn in ("", text[: len(text) // 2]):
        (folder / "index.json").write_text(torn)
        refused(folder)
    (folder / "index.json").write_bytes(b"\xff\xfe{")
    refused(folder)


def test_files_of_another_network_are_refused_though_their_hashes_are_right(folder):
    (shard,) = folder.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["conv_in.bias"] = tensors.pop("conv_in.weight")
    save_file(tensors, shard)
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    rewrite(folder, lambda index: index | {"sha256": {shard.name: digest}})
    refused(folder)
    shard.write_bytes(b"no safetensors")
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    rewrite(folder, lambda index: index | {"sha256": {shard.name: digest}})
    refused(folder)


def test_it_says_where_it_comes_from(folder):
    prior = load_embedded("cpu", folder)
    info = prior.info()
    assert info.name == prior.name == "embedded" and "Apache-2.0" in info.licence
    index = json.loads((folder / "index.json").read_text())
    assert info.sha256 == index["sha256"] | {"text encoder": TEXT_WEIGHTS_SHA256}


def test_found_by_its_name_it_answers_in_noise(folder, monkeypatch):
    monkeypatch.setattr(embedded, "data_path", lambda name: folder)
    prior = load_prior("embedded", "cpu")
    told = prior.encode_prompts(["a green armchair", ""])
    assert told.tokens.shape == (2, 8, 384) and told.mask[0].any() and not told.mask[1].any()
    answer = prior.predict_noise(noised(2), torch.tensor([0.3, 0.9]), told, views([0.1, 2.0]))
    assert answer.shape == (2, 3, 16, 16) and answer.dtype == torch.float32 and bool(torch.isfinite(answer).all())


class Knowing(torch.nn.Module):
    """Predicts the exact v of one image."""

    def __init__(self, image):
        super().__init__()
        self.config, self.image = TINY, image
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, told):
        alpha, sigma = (level[:, None, None, None] for level in schedule(t))
        return alpha * (x - alpha * self.image) / sigma - sigma * self.image


def test_an_exact_v_gives_the_exact_noise():
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    prior = EmbeddedPrior(Knowing(image), torch.nn.Identity(), CPU, {})
    noise, t = noised(4), torch.tensor([0.05, 0.4, 0.7, 0.98])
    alpha, sigma = (level[:, None, None, None] for level in prior.alpha_sigma(t))
    answer = prior.predict_noise(alpha * image + sigma * noise, t, words(4), None)
    assert torch.allclose(answer, noise, atol=1e-4)


def test_the_answer_is_the_networks_v_as_noise(prior):
    t, condition, told = torch.tensor([0.2, 0.8]), views([0.3, 2.0]), words(2)
    x = noised(2)
    v = prior.network(x, t, conditioned(prior, told, condition))
    for i in range(2):
        angle = 0.5 * math.pi * float(t[i])
        expected = math.cos(angle) * v[i] + math.sin(angle) * x[i]
        assert torch.allclose(prior.predict_noise(x, t, told, condition)[i], expected, atol=1e-5)
    assert not prior.predict_noise(x, t, told, condition).requires_grad


def test_camera_and_background_are_told_for_each_image(prior):
    x, t, told = noised(1).repeat(3, 1, 1, 1), torch.full((3,), 0.8), words(1).repeat(3)
    one, same, other = prior.predict_noise(x, t, told, views([0.3, 0.3, 2.0]))
    assert torch.allclose(one, same, atol=1e-4)
    assert (one - other).abs().max() > 1e-3
    white = prior.predict_noise(x, t, told, views([0.3, 0.3, 2.0], background=1.0))[0]
    assert (one - white).abs().max() > 1e-3


def test_a_hidden_camera_tells_nothing_of_itself(prior):
    x, t, told = noised(2), torch.full((2,), 0.8), words(2)
    first, second = (views(angles, known=torch.tensor([False, True])) for angles in ([0.3, 1.0], [2.0, 1.0]))
    hidden = prior.predict_noise(x, t, told, first)
    assert torch.equal(hidden, prior.predict_noise(x, t, told, second))
    shown = prior.predict_noise(x, t, told, views([0.3, 1.0]))
    assert (hidden[0] - shown[0]).abs().max() > 1e-3
    assert torch.allclose(hidden[1], shown[1], atol=1e-6)


def test_without_a_condition_neither_camera_nor_background_is_told(prior):
    told = conditioned(prior, words(2), None)
    assert told.camera.shape == (2, 13) and told.rays.shape == (2, 6, 8, 8)
    assert not told.camera.any() and not told.rays.any()
    hidden = conditioned(prior, words(2), views([0.3, 1.0], known=torch.tensor([False, False])))
    assert not hidden.rays.any() and not hidden.camera[:, :9].any() and hidden.camera[:, 12].all()


def test_pixels_and_images(prior):
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    x = prior.encode_image(images)
    assert torch.allclose(x, 2 * images - 1)
    assert torch.allclose(prior.decode_image(x), images, atol=1e-6)
    x.sum().backward()
    assert torch.equal(images.grad, torch.full_like(images, 2.0))
    assert prior.decode_image(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("size", [8, 24, 64])
def test_images_of_another_size_are_brought_to_the_priors(prior, size):
    images = torch.full((1, 3, size, size), 0.25)
    images[:, :, :, size // 2 :] = 0.75
    images.requires_grad_()
    x = prior.encode_image(images)
    assert x.shape == (1, 3, 16, 16)
    assert torch.allclose(x[..., 0], torch.tensor(-0.5)) and torch.allclose(x[..., -1], torch.tensor(0.5))
    x.square().sum().backward()
    assert bool(images.grad.any())


@pytest.mark.parametrize("times", [2, 4])
def test_each_pixel_of_a_larger_image_is_the_mean_of_its_part(prior, times):
    fine = torch.rand(2, 3, 16 * times, 16 * times, dtype=torch.float64)
    means = fine.unflatten(3, (16, times)).unflatten(2, (16, times)).mean((3, 5))
    assert torch.allclose(prior.encode_image(fine), 2 * means - 1, atol=1e-12)


def test_the_fastest_precision(monkeypatch):
    monkeypatch.undo()
    assert embedded.fastest_dtype(torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert embedded.fastest_dtype(CPU) == torch.float32


@pytest.mark.cuda
@pytest.mark.parametrize("together", [1, TOGETHER])
def test_on_a_gpu_the_replayed_answer_is_the_plain_one(together):
    prior = EmbeddedPrior(tiny_network(), torch.nn.Identity(), torch.device("cuda"), {}, together=together)
    told = PromptEmbeddings(words(4).tokens.cuda(), words(4).mask.cuda())
    for seed, azimuths in enumerate(([0.3, 2.0, 1.1, 5.0], [1.0, 1.5, 3.0, 2.5], [0.0, 3.0, 0.2, 1.7])):
        generator = torch.Generator().manual_seed(seed)
        x, t = torch.randn(4, 3, 16, 16, generator=generator).cuda(), torch.rand(4, generator=generator).cuda()
        there = views(azimuths)
        condition = ViewCondition(there.cameras.to("cuda"), there.background.cuda(), together=4)
        given = (x, t, told.tokens, told.mask)
        with torch.no_grad():
            plain = prior._predict(together, *given, *embedded._view_tensors(condition))
            blind = prior._predict(1, *given)
        assert torch.allclose(prior.predict_noise(x, t, told, condition), plain, atol=1e-4)
        assert torch.allclose(prior.predict_noise(x, t, told, None), blind, atol=1e-4)
    assert sum(len(replayed._captured) for replayed in prior._replayed.values()) == 2
