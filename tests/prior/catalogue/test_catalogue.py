"""Aliases, mirrors, the lock file, offline use, and one clear line for whatever the hub answers."""

import errno
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from httpx2 import ConnectError
from huggingface_hub import constants, errors
from prior.catalogue.fake_hub import answer

from nerf_bridge import cli
from nerf_bridge.config import ModelConfig
from nerf_bridge.errors import UserError
from nerf_bridge.prior import check_prior_name, load_prior
from nerf_bridge.prior.catalogue.entries import ENTRIES, find_entry
from nerf_bridge.prior.catalogue.find import find_language_model, find_model
from nerf_bridge.prior.catalogue.hub import find_cached
from nerf_bridge.prior.catalogue.lock import LOCK_NAME, LockedModel, lock_path, read_lock

ALIAS = "sd21-base"
MIRRORS = find_entry(ALIAS).mirrors


def run(*words):
    return cli.main(["priors", *words])


def weights(folder):
    return folder.path / "unet" / "diffusion_pytorch_model.safetensors"


def test_the_first_pull_records_what_came_and_later_ones_ask_nobody(published):
    first = find_model(ALIAS, False, False)
    locked = read_lock(lock_path())[ALIAS]
    assert (locked.repository, locked.revision) == (MIRRORS[0], published.revision(MIRRORS[0]))
    assert set(locked.sha256) == {path.relative_to(first.path).as_posix() for path in first.path.rglob("*.*")}
    assert first.licence == "CreativeML OpenRAIL++-M" and locked.revision in first.source
    published.asked.clear()
    published.offline = ConnectError("no route")
    again = find_model(ALIAS, False, True)
    assert again == first and published.asked == []


def test_a_pulled_model_is_a_prior(published):
    prior = load_prior(ALIAS)
    assert prior.info().name == ALIAS and prior.encode_image(torch.rand(1, 3, 16, 16)).shape == (1, 4, 8, 8)
    assert prior.info().sha256 == read_lock(lock_path())[ALIAS].sha256


def test_the_hubs_own_cache_is_read_without_asking(hub, tiny_model, tmp_path, monkeypatch):
    """The real function of huggingface_hub on a cache laid out as it lays it out."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    revision = "0123456789" * 4
    model = tmp_path / "hf" / "models--sd2-community--stable-diffusion-2-1-base"
    folder = shutil.copytree(tiny_model("sd-epsilon"), model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    locked = LockedModel(MIRRORS[0], revision, {"model_index.json": "any"})
    assert find_cached(locked) == folder
    assert find_cached(replace(locked, revision="f" * 40)) is None
    assert find_cached(replace(locked, repository="no/body")) is None


def test_mirrors_are_tried_in_order(hub, tiny_model):
    hub.errors[MIRRORS[1]] = answer(errors.DisabledRepoError, 403)
    hub.publish(MIRRORS[2], tiny_model("sd-epsilon"))
    assert MIRRORS[2] in find_model(ALIAS, False, False).source
    assert list(dict.fromkeys(hub.asked)) == list(MIRRORS)


def test_another_mirror_must_have_the_recorded_files(published, tiny_model, tmp_path):
    shutil.rmtree(find_model(ALIAS, False, False).path)
    published.errors[MIRRORS[0]] = answer(errors.RepositoryNotFoundError, 404)
    published.publish(MIRRORS[1], tiny_model("sd-epsilon"))
    assert MIRRORS[1] in find_model(ALIAS, False, False).source
    published.asked.clear()
    assert MIRRORS[1] in find_model(ALIAS, False, False).source and published.asked == []
    shutil.rmtree(tmp_path / "hub" / "snapshots")
    published.errors[MIRRORS[1]] = answer(errors.RepositoryNotFoundError, 404)
    published.publish(MIRRORS[2], tiny_model("sd-v"))
    with pytest.raises(UserError, match="scheduler_config.json has sha256 .* recorded .* at the first pull"):
        find_model(ALIAS, False, False)


def test_another_mirror_without_a_recorded_file_is_told(published, tiny_model, tmp_path):
    shutil.rmtree(find_model(ALIAS, False, False).path)
    published.errors[MIRRORS[0]] = answer(errors.RepositoryNotFoundError, 404)
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "other")
    (folder / "unet" / "config.json").unlink()
    published.publish(MIRRORS[1], folder)
    with pytest.raises(UserError, match=f"{MIRRORS[1]} lacks unet/config.json, recorded at the first pull"):
        find_model(ALIAS, False, False)


def test_files_that_were_never_recorded_are_not_read(hub, tiny_model, tmp_path):
    """The hub's cache is shared: another program may put other weights beside the recorded ones."""
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "half")
    name = "diffusion_pytorch_model"
    for part in ("unet", "vae"):
        (folder / part / f"{name}.safetensors").rename(folder / part / f"{name}.fp16.safetensors")
    hub.publish(MIRRORS[0], folder)
    for part in ("unet", "vae"):
        (find_model(ALIAS, False, False).path / part / f"{name}.safetensors").write_bytes(b"not recorded")
    assert load_prior(ALIAS).image_size == 16


def test_half_precision_is_fetched_where_there_is_a_choice(hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "both")
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        shutil.copy(folder / f"{name}.safetensors", folder / f"{name}.fp16.safetensors")
    shutil.copy(folder / f"{name}.safetensors", folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    hub.publish(MIRRORS[0], folder)
    names = [name for name in find_model(ALIAS, False, False).sha256 if name.endswith(".safetensors")]
    assert len(names) == 3 and all(".fp16." in name for name in names)


def test_a_changed_file_is_refused_ever_after(published):
    path = weights(find_model(ALIAS, False, False))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError) as caught:
        load_prior(ALIAS)
    assert re.fullmatch(
        r"prior sd21-base: \S+diffusion_pytorch_model.safetensors has sha256 \w{12}..., but \S+my.lock.json recorded "
        r"\w{12}... at the first pull; delete \S+diffusion_pytorch_model.safetensors and fetch it again: nerf-bridge "
        r"priors pull sd21-base",
        str(caught.value),
    )


def test_the_damaged_file_itself_is_to_be_deleted_and_not_a_link_to_it(published, tmp_path):
    """The hub's cache holds links; what such a link points to would be linked again, damaged as it is."""
    path = weights(find_model(ALIAS, False, False))
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)
    assert load_prior(ALIAS).image_size == 16
    blob.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"delete {blob} and fetch it again: nerf-bridge priors pull sd21-base"):
        load_prior(ALIAS)


def test_a_missing_file_is_named(published):
    weights(find_model(ALIAS, False, False)).unlink()
    with pytest.raises(UserError, match="diffusion_pytorch_model.safetensors is missing; fetch it again: nerf-bridge"):
        load_prior(ALIAS)


def test_a_download_that_is_not_what_the_hub_states_is_not_recorded(published, monkeypatch):
    monkeypatch.setattr("prior.catalogue.fake_hub._lfs", lambda path: type("Lfs", (), {"sha256": "other"}))
    with pytest.raises(UserError, match="did not come whole from .*: the hash is not the one that the hub states"):
        find_model(ALIAS, False, False)
    assert read_lock(lock_path()) == {}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answer(errors.GatedRepoError, 403), "is gated; read and accept its terms at https://.*`hf auth login`"),
        (answer(errors.RepositoryNotFoundError, 404), "is gone from the hub, or private"),
        (answer(errors.DisabledRepoError, 403), "has been disabled by the hub"),
        (answer(errors.HfHubHTTPError, 500, "500 Server Error"), "the hub answered: 500 Server Error"),
        (ConnectError("no route"), "cannot be reached; check the network, or set HF_ENDPOINT"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE forbids to ask the hub; unset it"),
    ],
)
def test_each_failure_has_its_reason_and_the_next_thing_to_try(error, says, hub, capsys):
    hub.errors = dict.fromkeys(MIRRORS, error)
    assert run("pull", ALIAS) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == len(MIRRORS) + 1
    for mirror, line in zip(MIRRORS, lines, strict=False):
        assert re.search(f"prior sd21-base: {mirror}.*{says}", line), line
    assert "next, try a copy of your own: --prior FOLDER" in lines[-1]
    assert read_lock(lock_path()) == {}


def test_a_full_disk_is_no_fault_of_the_mirror(published, capsys):
    published.errors[MIRRORS[0]] = OSError(errno.ENOSPC, "No space left on device")
    assert run("pull", ALIAS) == 2
    assert (
        "prior sd21-base: cannot write the model: No space left on device; make room there" in capsys.readouterr().err
    )
    assert published.asked == [MIRRORS[0]]


def test_offline_names_what_to_do(hub):
    with pytest.raises(UserError, match="not on this disk, and model.offline forbids to ask the hub; .*--prior FOLDER"):
        load_prior(ALIAS, settings=ModelConfig(offline=True))
    assert hub.asked == []


@pytest.mark.parametrize("alias", [entry.alias for entry in ENTRIES if entry.commercial == "no"])
def test_licences_without_commercial_use_need_an_explicit_choice(alias, hub):
    with pytest.raises(UserError, match=f"prior {alias} is under the licence .*, which forbids commercial use; .*true"):
        load_prior(alias)
    assert hub.asked == []
    with pytest.raises(UserError, match="is gone from the hub"):
        load_prior(alias, settings=ModelConfig(non_commercial=True))


def test_a_folder_of_ones_own_carries_its_lock(published, tmp_path):
    assert run("pull", ALIAS, "--to", str(tmp_path / "stick")) == 0
    assert read_lock(tmp_path / "stick" / LOCK_NAME) == read_lock(lock_path())
    published.offline = ConnectError("no route")
    prior = load_prior(str(tmp_path / "stick"), settings=ModelConfig(offline=True))
    assert prior.info().licence == "CreativeML OpenRAIL++-M" and MIRRORS[0] in prior.info().source
    path = tmp_path / "stick" / "vae" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="stick/vae/config.json has sha256 .*stick/priors.lock.json recorded"):
        load_prior(str(tmp_path / "stick"))


@pytest.mark.parametrize("name", ["vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_the_remedy_for_a_folder_is_no_alias(name, published, tmp_path):
    folder = tmp_path / "a stick"
    assert run("pull", ALIAS, "--to", str(folder)) == 0
    (folder / name).unlink()
    with pytest.raises(UserError) as caught:
        load_prior(str(folder))
    assert str(caught.value) == (
        f"prior {folder}: {folder / name} is missing; copy the folder again, whole, or fetch it again: nerf-bridge "
        f"priors pull {ALIAS} --to '{folder}'"
    )
    assert run("pull", ALIAS, "--to", str(folder)) == 0
    assert load_prior(str(folder)).image_size == 16


def test_a_plain_folder_is_hashed_and_used(tiny_model):
    prior = load_prior(str(tiny_model("sd-epsilon")))
    assert "unet/diffusion_pytorch_model.safetensors" in prior.info().sha256
    assert prior.info().licence.startswith("not known")


def test_pickles_and_code_are_not_fetched(hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("mvdream"), tmp_path / "model")
    for name in ("unet/diffusion_pytorch_model.bin", "model.ckpt", "safety_checker/model.safetensors", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"unwanted")
    hub.publish(find_entry("mvdream").mirrors[0], folder)
    names = {path.name for path in find_model("mvdream", False, False).path.rglob("*") if path.is_file()}
    assert "mv_unet.py" not in names and not {name for name in names if name.endswith((".bin", ".ckpt", ".md"))}
    assert not (find_model("mvdream", False, False).path / "safety_checker").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "is not in diffusers' format"),
        (
            lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "w.bin"),
            "has no safetensors in unet/ .it has config.json, w.bin.; only safetensors are read",
        ),
    ],
)
def test_repositories_that_cannot_be_used_say_why(change, says, hub, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd-epsilon"), tmp_path / "model")
    change(folder)
    hub.publish(MIRRORS[0], folder)
    with pytest.raises(UserError, match=f"{MIRRORS[0]} {says}"):
        find_model(ALIAS, False, False)


@pytest.mark.parametrize("contents", ["{", "[]", '{"version": 9, "models": {}}', '{"version": 1, "models": {"a": {}}}'])
def test_a_damaged_lock_file_is_told(contents, published):
    lock_path().parent.mkdir()
    lock_path().write_text(contents)
    with pytest.raises(UserError, match="cannot read the lock file .*my.lock.json: .*; restore or delete it"):
        find_model(ALIAS, False, False)
    assert lock_path().read_text() == contents


def test_a_lock_file_that_cannot_be_written_is_told(published, tmp_path):
    (tmp_path / "settings").write_text("a file, and no folder")
    with pytest.raises(UserError, match="the lock file"):
        find_model(ALIAS, False, False)


def test_list_shows_licence_gating_and_state(published, capsys):
    assert run("list") == 0
    before = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in before[1 : len(ENTRIES) + 2]]
    assert names == ["embedded", *(entry.alias for entry in ENTRIES)]
    line = next(line for line in before if line.startswith("flux-dev"))
    assert "FLUX.1 dev non-commercial" in line and line.split()[-4:] == ["yes", "23.8", "GB", "no"]
    assert run("pull", ALIAS) == 0 and run("list") == 0
    after = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{ALIAS} "))
    assert after.endswith(f"{MIRRORS[0]} at {published.revision(MIRRORS[0])[:8]}")


def test_verify_hashes_again(published, capsys):
    assert run("verify") == 0 and "no model was pulled yet" in capsys.readouterr().out
    folder = find_model(ALIAS, False, False)
    assert run("verify") == 0 and f"files as recorded from {MIRRORS[0]}" in capsys.readouterr().out
    weights(folder).write_bytes(b"other")
    assert run("verify", ALIAS) == 2 and "has sha256" in capsys.readouterr().err
    assert run("verify", "sdxl") == 2 and "sdxl is not on this disk; fetch it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lst"], "unknown action 'lst' .known: list, pull, verify.; did you mean list"),
        (["pull"], "say which model to pull: sd15, "),
        (["pull", "sd1.5"], "unknown model 'sd1.5' .*did you mean 'sd15'"),
        (["pull", "bret"], "unknown model 'bret' .known: sd15, .*, bert.; did you mean 'bert'"),
        (["pull", "embedded"], "prior embedded comes with the package: nothing to pull or verify; leave it"),
        (["verify", "embedded"], "prior embedded comes with the package: nothing to pull or verify; leave it"),
        (["pull", "if-m"], "which forbids commercial use; to use it so, say --non-commercial$"),
        (["pull", "sd15", "sdxl", "--to", "x"], "--to takes one model at a time, got sd15, sdxl"),
    ],
)
def test_wrong_words_are_told(words, says, capsys):
    assert run(*words) == 2
    assert re.search(says, capsys.readouterr().err, re.MULTILINE)


def test_helpers_are_no_priors_but_are_pulled_and_checked_alike(hub, tmp_path):
    (tmp_path / "bert").mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "pytorch_model.bin", "README.md"):
        (tmp_path / "bert" / name).write_text("{}")
    hub.publish(find_entry("bert").mirrors[0], tmp_path / "bert")
    folder = find_language_model("bert", False)
    assert {path.name for path in folder.path.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    (folder.path / "vocab.txt").write_text("other")
    with pytest.raises(UserError, match="vocab.txt has sha256"):
        find_language_model("bert", True)
    with pytest.raises(UserError, match="unknown prior 'bert'"):
        check_prior_name("bert")


@pytest.mark.parametrize("name", ["embedded", "sd15", "flux-dev"])
def test_known_names(name):
    check_prior_name(name)


def test_every_alias_is_one_of_a_kind_and_names_a_repository():
    assert len({entry.alias for entry in ENTRIES}) == len(ENTRIES)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", mirror) for entry in ENTRIES for mirror in entry.mirrors)


def test_no_hash_or_revision_is_written_into_the_package():
    from nerf_bridge.prior.catalogue import entries

    text = json.dumps([vars(entry) for entry in entries.ENTRIES])
    assert not re.search(r"[0-9a-f]{32}", text)


def test_a_folder_that_was_pulled_is_listed_and_verified(published, tmp_path, capsys):
    folder = tmp_path / "stick"
    assert run("pull", ALIAS, "--to", str(folder)) == 0 and run("list") == 0
    assert "recorded, not cached" in capsys.readouterr().out
    assert run("verify") == 0 and f"{ALIAS}: recorded, not cached" in capsys.readouterr().out
    assert run("verify", str(folder)) == 0 and f"{folder}: " in capsys.readouterr().out
    (folder / "vae" / "config.json").write_text("{}")
    assert run("verify", str(folder)) == 2 and "vae/config.json has sha256" in capsys.readouterr().err
    (tmp_path / "plain").mkdir()
    assert run("verify", str(tmp_path / "plain")) == 2 and f"there is no {LOCK_NAME} in it" in capsys.readouterr().err


def test_verify_tells_of_every_model(published, tiny_model, capsys, caplog):
    published.publish(find_entry("sd15").mirrors[0], tiny_model("sd-epsilon"))
    broken, whole = find_model(ALIAS, False, False), find_model("sd15", False, False)
    weights(broken).write_bytes(b"other")
    with caplog.at_level("INFO"):
        assert run("verify") == 2
    assert "sd21-base: " in capsys.readouterr().err and whole.path != broken.path
    assert any(record.getMessage().startswith("sd15: ") for record in caplog.records)


def test_a_folder_of_a_model_without_commercial_use_needs_the_choice_too(hub, tiny_model, tmp_path):
    hub.publish(find_entry("if-m").mirrors[0], tiny_model("if"))
    assert run("pull", "if-m", "--non-commercial", "--to", str(tmp_path / "stick")) == 0
    with pytest.raises(UserError, match="if-m is under the licence .*; to use it so, say --model.non_commercial true"):
        load_prior(str(tmp_path / "stick"))
    assert load_prior(str(tmp_path / "stick"), settings=ModelConfig(non_commercial=True)).image_size == 16


def test_a_refused_download_is_not_told_as_no_network(published, monkeypatch, capsys):
    def refused(*_, **__):
        raise errors.LocalEntryNotFoundError("not in the cache") from answer(errors.GatedRepoError, 403)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    assert run("pull", ALIAS) == 2
    assert f"{MIRRORS[0]} is gated; read and accept its terms" in capsys.readouterr().err
