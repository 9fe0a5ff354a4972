"""Text to 2D image through the same guidance, with the oracle for a prior."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gaussian_mixture import Component, GaussianMixturePrior
from oracle import OraclePrior
from pydantic import ValidationError

from nerf_bridge.config import GuidanceConfig
from nerf_bridge.device import resolve_device
from nerf_bridge.errors import RunError, UserError
from nerf_bridge.image import ImageConfig, build_image_config, make_image, optimise_image, view_condition

CPU = torch.device("cpu")


def config(**changes):
    settings = {"prompt": "a green chair", "device": "cpu", "steps": 3, "lr": 0.1, "upscale": 2}
    return ImageConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def oracle():
    return OraclePrior(image_size=32, supersample=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sds", "csd", "nfsd", "bridge"])
@pytest.mark.parametrize("view", ["three-quarter", "back"])
def test_the_image_becomes_what_the_prompt_names(oracle, method, view):
    settings = config(steps=120, view=view, guidance=GuidanceConfig(method=method, scale=2.0, bridge_scale=1.0))
    image = optimise_image(settings, oracle, CPU)
    pictures = oracle.render(view_condition(view, CPU))[:, 0]
    distances = (pictures - image).abs().mean((1, 2, 3))
    assert distances.argmin() == 1
    if method in ("sds", "bridge"):
        assert distances[1] < 0.1


def test_png_and_settings_are_written(oracle, tmp_path):
    out = tmp_path / "new" / "chair.png"
    assert make_image(config(), out, oracle) == out
    picture = iio.imread(out)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert (picture[::2, ::2] == picture[1::2, 1::2]).all()
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["settings"]["prompt"] == "a green chair"
    assert record["settings"]["guidance"]["method"] == "bridge"
    assert record["prior"]["name"] == "oracle"
    assert sorted(path.name for path in out.parent.iterdir()) == ["chair.json", "chair.png"]


def test_default_name_comes_from_prompt_and_seed(oracle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make_image(config(seed=3), None, oracle)
    assert str(path) == "images/a-green-chair-s3.png" and path.is_file()


def test_the_same_settings_give_the_same_image_and_another_seed_another(oracle):
    first, again, other = (optimise_image(config(seed=seed), oracle, CPU) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_camera_is_told_when_the_view_is_any(oracle):
    assert view_condition("any", CPU) is None
    assert not torch.equal(
        optimise_image(config(view="any"), oracle, CPU), optimise_image(config(view="front"), oracle, CPU)
    )


def test_a_prior_without_cameras_gets_neither_camera_nor_view_words():
    prior = GaussianMixturePrior([Component("chair", (0.3, 0.6), 0.1)], knows_cameras=False)
    prior.encode_image = lambda images: images[:, :2].double()
    prior.decode_image = lambda x: torch.cat([x, x[:, :1]], 1)
    image = optimise_image(config(steps=200, lr=0.02, guidance=GuidanceConfig(method="sds", scale=1.0)), prior, CPU)
    assert all(condition is None for _, condition in prior.calls)
    assert image.flatten().tolist() == pytest.approx([0.3, 0.6, 0.3], abs=0.1)


@pytest.mark.parametrize("name", ["chair.jpg", "chair"])
def test_only_png_files(oracle, tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.png"):
        make_image(config(), tmp_path / name, oracle)


def test_a_folder_or_a_place_below_a_file_is_refused(oracle, tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        make_image(config(), tmp_path / "a.png", oracle)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        make_image(config(), tmp_path / "file" / "b.png", oracle)


def test_unknown_prior_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="unknown prior 'embeded'"):
        make_image(config(prior="embeded"), tmp_path / "new" / "chair.png")
    assert not (tmp_path / "new").exists()


def test_cuda_asked_for_and_absent_is_refused(oracle, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cuda was asked for"):
        make_image(config(device="cuda"), tmp_path / "chair.png", oracle)
    assert optimise_image(config(), oracle, resolve_device("auto")).shape == (3, 32, 32)


def test_divergence_is_a_clear_failure_and_leaves_no_file(oracle, tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "predict_noise", lambda noised, *rest: torch.full_like(noised, float("nan")))
    with pytest.raises(RunError, match="no longer finite"):
        make_image(config(), tmp_path / "chair.png", oracle)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_failure(oracle, tmp_path, monkeypatch):
    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nerf_bridge.image.save_png", full)
    with pytest.raises(RunError, match="No space left on device"):
        make_image(config(), tmp_path / "chair.png", oracle)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": " "},
        {"steps": 0},
        {"lr": 0},
        {"upscale": 33},
        {"view": "below"},
        {"colour": 1},
        {"guidance": {"scale": -1}},
    ],
)
def test_wrong_settings_are_refused(changes):
    with pytest.raises(ValidationError):
        config(**changes)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(UserError) as error:
        build_image_config({"prompt": "a cat", "steps": 0, "guidance.scale": "much", "veiw": "front"})
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(any(name in line for line in lines) for name in ("steps", "guidance.scale", "view"))
