"""Settings: defaults, precedence, and one line for each wrong one, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from nerf_bridge.config import GenerateConfig, build_config, check_prompt
from nerf_bridge.errors import UserError
from nerf_bridge.guidance.schedule import ramp_at, size_at, stage_at, t_max_at
from nerf_bridge.image_config import build_image_config
from nerf_bridge.paths import config_path
from nerf_bridge.settings import allowed, closest, load_yaml, merged, nested, walk


def problems(**settings: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        build_config({"prompt": "a chair"} | settings)
    return str(caught.value).split("\n")


def test_defaults_make_a_config() -> None:
    config = build_config({"prompt": "a chair"})
    assert config.prompt == "a chair"
    assert config.guidance.method == "bridge"
    assert config.mesh.threshold is None


def test_text_from_the_command_line_is_read_as_numbers() -> None:
    config = build_config({"prompt": "a", "steps": "30", "guidance.scale": "1e1", "mesh.threshold": "None"})
    assert (config.steps, config.guidance.scale, config.mesh.threshold) == (30, 10.0, None)


def test_every_setting_has_a_description_and_a_range() -> None:
    for path, info in walk(GenerateConfig):
        assert info.description, path
        assert allowed(info), path


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("steps", "many", "steps: got 'many', allowed: a whole number from 1 to 1000000"),
        ("steps", 2.5, "steps: got 2.5, allowed: a whole number from 1 to 1000000"),
        ("steps", True, "steps: got True, allowed: a whole number from 1 to 1000000"),
        ("seed", -1, "seed: got -1, allowed: a whole number from 0 to 2147483647"),
        ("prior", 7, "prior: got 7, allowed: text"),
        ("guidance.scale", 2000, "guidance.scale: got 2000, allowed: a number from 0 to 1000"),
        ("guidance.scale", float("nan"), "guidance.scale: got nan, allowed: a number from 0 to 1000"),
        ("guidance.scale", None, "guidance.scale: got None, allowed: a number from 0 to 1000"),
        ("occupancy.decay", 1, "occupancy.decay: got 1, allowed: a number above 0 and below 1"),
        ("mesh.threshold", 0, "mesh.threshold: got 0, allowed: a number above 0 or none"),
        ("device", "gpu", "device: got 'gpu', allowed: one of auto, cpu, cuda"),
        ("guidance.method", "brigde", "did you mean bridge?"),
        ("mesh", 5, "mesh: got 5, allowed: a group of settings"),
        ("guidance.scal", 8, "unknown setting guidance.scal: did you mean guidance.scale?"),
        ("guidanse", {"scale": 8}, "unknown setting guidanse: did you mean guidance?"),
        ("guidance_scale", 8, "unknown setting guidance_scale: did you mean guidance.scale?"),
        ("faces", 800, "unknown setting faces: did you mean mesh.faces?"),
        ("zzz", 1, "unknown setting zzz; --help lists them all"),
        ("camera", {"distance_min": 5}, "camera.distance_min (5.0) is above distance_max (3.2)"),
        ("guidance", {"t_min": 0.9, "t_min_end": None}, "guidance.t_min must be below t_max_start and t_max_end"),
        ("guidance", {"t_min": 0.6, "t_min_end": 0.5}, "guidance.t_min must be below t_max_start, and t_min_end below"),
        (
            "guidance",
            {"method": "csd", "perp_neg": True, "solver_steps": 2},
            "guidance.solver_steps above 1 goes with perp_neg for sds and bridge only: set it to 1 for csd",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(path: str, value: object, said: str) -> None:
    lines = problems(**{path: value})
    assert len(lines) == 1
    assert said in lines[0]


def test_all_problems_are_told_at_once() -> None:
    wrong = {"steps": 0, "guidance": {"scal": 1, "scale": -1}, "camera": {"views": 0}, "optim.lr_grid": "x"}
    lines = problems(prompt=" ", **wrong)
    assert [line.split(":")[0] for line in lines] == [
        "the prompt is empty",
        "steps",
        "camera.views",
        "guidance.scale",
        "unknown setting guidance.scal",
        "optim.lr_grid",
    ]


def test_both_orders_of_a_section_are_checked_at_once() -> None:
    assert len(problems(camera={"elevation_min_deg": 60, "distance_min": 5})) == 2


def test_a_huge_wrong_value_makes_a_short_line() -> None:
    assert len(problems(steps="9" * 100_000)[0]) < 200


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \t", "empty"),
        ("x" * 501, "501 characters; at most 500"),
        (5, "must be text, got 5"),
        ("a\nchair", "one line"),
        ("a\x00chair", "one line"),
        ("a \udc80", "one line"),
    ],
)
def test_bad_prompts(prompt: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_prompt(prompt)
    assert said in problems(prompt=prompt)[0]


def test_prompts_of_every_language_are_taken() -> None:
    for prompt in ("ein grüner Sessel", "緑の椅子", "a 🪑 chair", "x" * 500):
        assert build_config({"prompt": prompt}).prompt == prompt


def test_a_missing_prompt_is_an_empty_one() -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        build_config({})


def test_the_hash_tells_settings_apart() -> None:
    one = build_config({"prompt": "a"})
    assert one.hash() == build_config({"prompt": "a", "mesh": {}}).hash()
    assert one.hash() != build_config({"prompt": "a", "mesh.faces": 800}).hash()


def test_a_config_survives_being_written_out() -> None:
    config = build_config({"prompt": "a", "guidance.view_words": "off"})
    assert build_config(config.model_dump()) == config


def test_nested_and_merged() -> None:
    assert nested({"mesh.faces": 1, "mesh": {"texture": 2}, "steps": 3}) == {
        "mesh": {"faces": 1, "texture": 2},
        "steps": 3,
    }
    base = {"mesh": {"faces": 1, "texture": 2}}
    assert merged(base, {"mesh": {"faces": 5}}) == {"mesh": {"faces": 5, "texture": 2}}
    assert base == {"mesh": {"faces": 1, "texture": 2}}


def test_closest_prefers_the_same_last_name() -> None:
    names = ["guidance.scale", "guidance.bridge_scale", "mesh.faces"]
    assert closest("scale", names) == "guidance.scale"
    assert closest("mesh-faces", names) == "mesh.faces"
    assert closest("optim.face", names) == "mesh.faces"
    assert closest("xyz", names) is None


def test_yaml_words_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("guidance:\n  view_words: on\noptim.lr_grid: 1e-3\nmesh:\n  threshold: null\n", encoding="utf-8")
    config = build_config({"prompt": "a"} | nested(load_yaml(path)))
    assert (config.guidance.view_words, config.optim.lr_grid) == ("on", 0.001)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert load_yaml(path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"steps: [1",
        b"- 1\n- 2\n",
        b"steps",
        b"\xff\xfe\x00",
        b"a: 2024-99-99",
        b"a: !!python/object:os.system x",
        b"[" * 5000,
    ],
)
def test_unreadable_yaml_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read settings from .*broken.yaml") as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        load_yaml(tmp_path)


def test_every_preset_is_valid_and_says_only_what_differs() -> None:
    presets = sorted(config_path().glob("*.yaml"))
    assert presets
    for preset in presets:
        build = build_image_config if preset.stem.endswith("-2d") else build_config
        defaults = build({"prompt": "a"}).model_dump()
        config = build({"prompt": "a"} | nested(load_yaml(preset)))
        for path in _leaves(load_yaml(preset)):
            assert _at(config.model_dump(), path) != _at(defaults, path), f"{preset.name}: {path} is the default"


def test_published_3d_is_the_public_codes_setting() -> None:
    config = build_config({"prompt": "a"} | load_yaml(config_path("published-3d.yaml")))
    steps, guidance, field, optim = config.steps, config.guidance, config.field, config.optim
    assert [stage_at(step, steps, guidance.bridge_from) for step in (19_999, 20_000)] == [1, 2]
    assert [size_at(step, steps, config.render) for step in (4_999, 5_000)] == [64, 512]
    assert [t_max_at(step, steps, guidance) for step in (0, 4_999, 5_000, 24_999)] == [0.98, 0.98, 0.5, 0.5]
    assert [ramp_at(step, steps, optim.ramp_from, optim.ramp_until) for step in (9_999, 10_000)] == [0, 1]
    assert (guidance.scale, guidance.bridge_scale, guidance.weighting, guidance.bridge_weighting) == (
        100,
        1,
        "sigma2",
        "one",
    )
    assert (field.n_levels, field.n_features, field.log2_table_size) == (16, 2, 19)
    assert (field.base_resolution, field.finest_resolution) == (16, 4096)
    assert (field.blob_scale, field.blob_radius, field.density_activation) == (10, 0.5, "softplus")
    camera = config.camera
    assert (camera.distance_min, camera.distance_max, camera.fovy_min_deg, camera.fovy_max_deg) == (1.0, 1.5, 40, 70)
    assert (camera.elevation_min_deg, camera.elevation_max_deg) == (-10, 45)
    assert (optim.weight_opacity * 4096, optim.weight_entropy * 4096) == (10, 1000)
    assert (optim.lr_grid, optim.lr_decoder, optim.lr_final) == (0.01, 0.001, 1)


def test_published_2d_is_the_public_codes_setting() -> None:
    config = build_image_config({"prompt": "a"} | load_yaml(config_path("published-2d.yaml")))
    guidance = config.guidance
    assert (config.prior, config.start, config.lr, config.eps) == ("sd21-base", "noise", 0.01, 1e-15)
    assert [stage_at(step, config.steps, guidance.bridge_from) for step in (499, 500)] == [1, 2]
    assert (guidance.scale, guidance.bridge_scale, guidance.weighting) == (40, 40, "sigma2")
    assert {t_max_at(step, config.steps, guidance) for step in range(config.steps)} == {0.98} and guidance.t_min == 0.02


def _leaves(settings: dict, prefix: str = "") -> list[str]:
    return [
        leaf
        for name, value in settings.items()
        for leaf in (_leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


def _at(settings: dict, path: str) -> object:
    value: object = settings
    for part in path.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value
