"""The packed library comes back as it went in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_library import write_catalogue

from nerf_bridge.errors import UserError
from nerf_bridge.prior.data import card
from nerf_bridge.prior.data.holdout import holdout_json, mark_holdout
from nerf_bridge.prior.data.pack import load_library, main, pack_library
from nerf_bridge.prior.data.primitives import build_primitives


def test_round_trip(tmp_path):
    models = build_primitives(0, n_single=8, n_pairs=8)
    parts = np.resize(np.array([0, 1, 2, 255], np.uint8), len(models[0].faces))
    models[0] = replace(models[0], face_tintable=parts)
    path = tmp_path / "library.npz"
    pack_library(models, path)
    for before, after in zip(models, load_library(path), strict=True):
        same = ("name", "noun", "article", "category", "creator", "licence", "base_colour_word", "holdout")
        assert all(getattr(before, field) == getattr(after, field) for field in same)
        # Vertices are renumbered; the corners of each face stay where they were.
        assert np.abs(before.vertices[before.faces] - after.vertices[after.faces]).max() < 2e-5
        assert np.array_equal(before.face_colors, after.face_colors)
        assert np.array_equal(before.face_tintable, after.face_tintable)
        assert after.vertices.dtype == np.float32 and after.faces.dtype == np.int32


def test_packing_is_deterministic_and_small(tmp_path):
    models = build_primitives(0, n_single=30, n_pairs=30)
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    pack_library(models, first)
    pack_library(models, second)
    a, b = np.load(first), np.load(second)
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    n_faces = sum(len(model.faces) for model in models)
    assert first.stat().st_size < 8 * n_faces + 20_000


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no packed library"):
        load_library(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    pack_library(build_primitives(0, n_single=1, n_pairs=0), tmp_path / "older.npz")
    with np.load(tmp_path / "older.npz") as packed:
        np.savez(tmp_path / "older.npz", **(dict(packed) | {"format": np.array([1])}))
    (tmp_path / "words.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    for name in ("other.npz", "older.npz", "words.npz", "cut.npz"):
        with pytest.raises(UserError, match="not a packed library"):
            load_library(tmp_path / name)


def test_command_packs_a_folder(tmp_path):
    write_catalogue(tmp_path / "test.sh3f")
    main(["--package", str(tmp_path), "--out", str(tmp_path / "library.npz"), "--workers", "1"])
    models = load_library(tmp_path / "library.npz")
    assert models[0].name == "Test#thing" and models[0].noun == "chaise longue €"
    assert sum(model.category == "Primitives" for model in models) == 260


def test_command_refuses_a_missing_package(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--package", str(tmp_path / "none.deb"), "--out", str(tmp_path / "x.npz")])
    assert stop.value.code == 2
    assert "no such file" in capsys.readouterr().err


def test_the_card_s_command_writes_what_is_held_out_too(tmp_path):
    pack_library(build_primitives(0, 5, 5), tmp_path / "library.npz")
    words = ["--library", str(tmp_path / "library.npz"), "--out", str(tmp_path / "card.md")]
    card.main(words)
    assert not (tmp_path / "holdout.json").exists()
    card.main([*words, "--holdout", str(tmp_path / "holdout.json")])
    assert json.loads((tmp_path / "holdout.json").read_text())["models"] == []
    assert "Data card" in (tmp_path / "card.md").read_text()


def test_holdout_list_names_marked_models():
    models = mark_holdout(build_primitives(0, 5, 5))
    held = json.loads(holdout_json([*models[:-1], replace(models[-1], holdout=True)]))
    assert held["models"] == [{"name": models[-1].name, "noun": models[-1].noun}]  # primitives are not marked
    assert {"noun": "sofa", "colour": "yellow"} in held["pairs"]
