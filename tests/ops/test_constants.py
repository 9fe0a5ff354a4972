"""Numbers that stand in the kernels' headers and in Python are the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from nerf_bridge.ops import backend, build, composite, decoder, field_composite, grid_mlp, hash_encoding, march
from nerf_bridge.ops.hash_encoding import HashGridSpec

INCLUDE = build.source_dir() / "include"
SHAPES = [(width, n_inputs) for width in grid_mlp.WIDTHS for n_inputs in (2, 6, 16, 18, 32, 34, 64)]
LAYOUT_PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "mlp_shape.h"
#include "widths.h"
int main(int, char** of) {
  const Shape shape = shape_of(0, atoi(of[2]) / 2, 2, 1);
  return with_width(atoi(of[1]), [&](auto w) {
    using At = Layout<decltype(w)::value>;
    printf("%d %d", 2 * At(shape, true).end, 2 * At(shape, false).end);
  });
}
"""


def constants(header: str) -> dict[str, float]:
    """The numbers that a header gives names to."""
    found = {}
    for line in re.findall(r"^constexpr \w+ ([^;]+);", (INCLUDE / header).read_text(encoding="utf-8"), re.MULTILINE):
        for name, value in re.findall(r"(\w+) = ([^,;]+)", line):
            left, _, right = value.partition("<<")
            if re.fullmatch(r"[0-9.e+-]+", left.strip()):
                found[name] = float(left) * 2 ** int(right or 0)
    return found


def cases(path: Path, function: str) -> tuple[int, ...]:
    """The numbers that a switch knows."""
    body = path.read_text(encoding="utf-8").partition(f"int {function}(")[2].partition("default:")[0]
    return tuple(map(int, re.findall(r"case (\d+):", body)))


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        ("march.h", "BRICK", march.BRICK),
        ("march.h", "MAX_STEPS", march.MAX_STEPS),
        ("march.h", "MASK_BITS", march.MASK_BITS),
        ("composite.h", "MAX_CHANNELS", composite.MAX_CHANNELS),
        ("field_composite.h", "RAW", field_composite.RAW),
        ("field_composite.h", "EARLY_STOP", field_composite.EARLY_STOP),
        ("field_composite.h", "MIN_OPACITY", field_composite.MIN_OPACITY),
        ("field_composite.h", "MAX_EXPONENT", field_composite.MAX_EXPONENT),
        ("mlp_shape.h", "ROWS", grid_mlp.TILE_ROWS),
        ("mlp_shape.h", "PAD", grid_mlp.PAD),
        ("mlp_shape.h", "MAX_INPUTS", grid_mlp.MAX_INPUTS),
        ("mlp_shape.h", "MAX_OUTPUTS", grid_mlp.MAX_OUTPUTS),
        ("warp.h", "LANES", grid_mlp.MASK_BITS),
        ("warp.h", "LANES", march.MASK_BITS),
        ("common.h", "NB_UNKNOWN_OPTION", 1),
        ("common.h", "NB_OUT_OF_RANGE", 2),
    ],
)
def test_names_have_the_same_value(header, name, value):
    assert constants(header)[name] == value


def test_every_status_of_the_kernels_has_its_words():
    statuses = {value for name, value in constants("common.h").items() if name.startswith("NB_")} - {0}
    assert statuses == set(backend._CPU_STATUS)


def test_the_same_widths_and_features():
    assert cases(INCLUDE / "widths.h", "with_width") == grid_mlp.WIDTHS == decoder.WIDTHS
    assert cases(INCLUDE / "hash_encoding.h", "with_features") == tuple(range(1, hash_encoding.MAX_FEATURES + 1))
    assert cases(build.source_dir() / "hash_half_cuda.cu", "with_even_features") == grid_mlp.FEATURES


def test_the_hash_has_the_same_primes():
    text = (INCLUDE / "hash_encoding.h").read_text(encoding="utf-8")
    assert {f"{prime}u" for prime in hash_encoding._PRIMES[1:]} == set(re.findall(r"\d{9,}u", text))


@pytest.mark.compiler
def test_the_network_takes_the_shared_memory_that_it_is_said_to(tmp_path: Path):
    (tmp_path / "layout.cpp").write_text(LAYOUT_PROGRAM)
    command = [build.find_compiler("cpu"), "-std=c++17", f"-I{INCLUDE}", "layout.cpp", "-o", "layout"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for width, n_inputs in SHAPES:
        sizes = [str(tmp_path / "layout"), str(width), str(n_inputs)]
        done = subprocess.run(sizes, check=True, capture_output=True, text=True)
        said = [grid_mlp.shared_bytes(n_inputs, width, backward) for backward in (True, False)]
        assert [*map(int, done.stdout.split())] == said, (width, n_inputs)


@pytest.mark.parametrize(
    ("capability", "most_shared", "width", "fits"),
    [
        (80, 163 << 10, 128, True),
        (86, 99 << 10, 128, False),  # 64 inputs: 109 KiB
        (86, 99 << 10, 64, True),
        (75, 64 << 10, 16, False),  # no tensor-core products of the kind
    ],
)
def test_a_gpu_must_be_new_and_large_enough(monkeypatch, capability, most_shared, width, fits):
    asked = []
    monkeypatch.setattr(grid_mlp, "_gpu", lambda device: (asked.append(device), (capability, most_shared, 100))[1])
    device = torch.device("cuda", 3)
    assert grid_mlp.can_run(HashGridSpec(8, 8, 14, 4, 64), width, 4, "cuda", device) is fits
    assert asked == [device]  # that of the tensors, not the current one
    assert not grid_mlp.can_run(HashGridSpec(8, 8, 14, 4, 64), width, 4, "torch", device)
