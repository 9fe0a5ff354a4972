"""The commands that time the kernels: what they time is the same function, and what they write holds together."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    bench_inputs,
    gradient_errors,
    kernel_cases,
    kernel_times,
    kernels,
    nerfacc_versions,
    render_cases,
    report,
    resources,
    timing,
    torch_twins,
)
from nerf_bridge.ops.composite import composite_torch
from nerf_bridge.ops.hash_encoding import HashGridSpec, hash_encode_torch, level_rows
from nerf_bridge.scene.field import HashGridField
from nerf_bridge.scene.rays import camera_rays

CPU = torch.device("cpu")
ROWS = [
    {"case": "a", "metric": "forward", "value": 1.0, "unit": "ms", "p10": 0.9, "p90": 1.1, "floor": 0.5}
    | {"peer": name, "peer_value": value}
    for name, value in (("torch eager", 4.0), ("torch.compile", 2.5))
] + [
    {"case": "a", "metric": "samples", "value": 1234567, "unit": "count"},
    {"case": "b & c", "metric": "both", "value": 2000.0, "unit": "ms"},
    {"case": "ceiling", "metric": "copy", "value": 3.0, "unit": "TB/s"},
]
RESULTS = {"device": "a GPU", "commit": "abc", "date": "2026-01-01", "versions": {"torch": "2"}, "rows": ROWS}
PTXAS = """
ptxas info    : Compiling entry function '_ZN3fooILi2EEvPf' for 'sm_90'
ptxas info    : Function properties for _ZN3fooILi2EEvPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes stack frame, 2048 bytes smem
ptxas info    : Compiling entry function 'bar' for 'sm_90'
ptxas info    : Function properties for bar
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_the_shell_is_a_tenth_of_the_cells_and_makes_the_samples_of_the_tables():
    assert float(bench_inputs.shell_occupancy(CPU).float().mean()) == pytest.approx(0.1, abs=1e-3)
    rays = camera_rays(bench_inputs.random_cameras(4, CPU), 64, 64)
    assert torch.allclose(rays.origins.norm(dim=1), torch.tensor(1.5), atol=1e-5)
    samples = bench_inputs.shell_samples(rays, "torch")
    assert samples.n == pytest.approx(1.04e6, rel=0.02)
    assert torch.allclose(bench_inputs.middles(rays, samples), samples.points, atol=1e-5)


def test_visible_samples_are_counted_ray_by_ray():
    rays = camera_rays(bench_inputs.random_cameras(1, CPU), 8, 8)
    samples = bench_inputs.shell_samples(rays, "torch")
    assert bench_inputs.n_visible(torch.zeros(samples.n), samples) == samples.n
    per_ray = samples.packed_info[:, 1]
    assert bench_inputs.n_visible(torch.full((samples.n,), 1e6), samples) == int((per_ray > 0).sum())


def test_the_compared_torch_network_is_the_packages_function():
    network = torch_twins.random_network(CPU)
    points = torch.rand(300, 3) * 1.2 - 0.1
    encoded = torch_twins.encode_levels(points, network.levels, network.table)
    assert torch.allclose(encoded, hash_encode_torch(points, network.table, bench_inputs.GRID), atol=1e-7)
    expected = kernel_cases.exact_network(points, network, "torch")
    assert torch.allclose(torch_twins.network_torch(points, network), expected, atol=1e-6)


def test_the_compared_torch_field_is_the_packages_field():
    field = HashGridField(bench_inputs.BALL, seed=0, backend="torch")
    points = torch.nn.functional.normalize(torch.randn(50, 3), dim=1) * torch.linspace(0.6, 0.75, 50)[:, None]
    for got, expected in zip(torch_twins.TorchField(field, compiled=False)(points), field(points), strict=True):
        assert torch.allclose(got, expected, rtol=1e-4)


def test_stages_are_timed_each_and_together():
    calls = []
    stages = [lambda: calls.append("a"), lambda: calls.append("b")]
    first, second, both = timing.time_stages(stages, timing.Clock(CPU, 1e-4, False))
    warm_ups = len(calls) / 2 - first.repetitions
    assert calls[:4] == ["a", "b"] * 2 and timing.WARM_UPS <= warm_ups <= timing.MOST_WARM_UPS
    assert timing.FEWEST_REPETITIONS <= first.repetitions <= timing.MOST_REPETITIONS
    assert max(first.median, second.median) <= both.p90 and both.p10 <= both.median <= both.p90


class Work:
    """Takes so many seconds by a clock of its own, call after call; the last number again and again."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.calls, self.seconds = 0.0, 0, seconds
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def __call__(self):
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


@pytest.mark.parametrize(
    ("seconds", "repetitions"),
    [
        ([60.0, 0.017], 58),  # the first call compiles
        ([60.0, 0.5, 20.0, 0.017], 58),  # a later one records
        ([6.0, 5.5, 0.04], 25),
        ([60.0, 0.48], 20),  # longer than asked for, to be a median of 20
        ([60.0, 4.0], 3),
        ([0.001], 100),
        ([7.0], 1),
    ],
)
def test_work_is_timed_as_often_as_it_takes_when_it_has_settled(monkeypatch, seconds, repetitions):
    work = Work(monkeypatch, seconds)
    (timed, _) = timing.time_stages([work], timing.Clock(CPU, 1.0, False))
    assert timed.repetitions == repetitions
    assert timed.p10 == pytest.approx(1e3 * seconds[-1]) == timed.median == timed.p90
    assert work.calls - repetitions <= timing.MOST_WARM_UPS


def test_work_that_never_settles_is_timed_all_the_same(monkeypatch):
    work = Work(monkeypatch, [0.5**k for k in range(40)])
    (timed, _) = timing.time_stages([work], timing.Clock(CPU, 1.0, False))
    assert timed.repetitions == timing.MOST_REPETITIONS and work.calls == timed.repetitions + timing.MOST_WARM_UPS


def test_percentiles_are_those_of_the_repetitions():
    assert timing.timing_of([*map(float, range(100, 0, -1))]) == timing.Timing(50.5, 11.0, 91.0, 100)
    assert timing.timing_of([3.0]) == timing.Timing(3.0, 3.0, 3.0, 1)


def test_floors_take_the_larger_of_bytes_and_operations():
    setting = kernel_cases.Setting(CPU, "cpu", 1, True, timing.Ceilings(1e9, 1e12, (1.0, 1.0)))
    assert setting.floor(2e9) == 2e3 and setting.floor(2e9, 5e12) == 5e3


@pytest.mark.compiler
@pytest.mark.slow
def test_the_command_times_every_case_and_writes_the_results(tmp_path, capsys):
    out = tmp_path / "results" / "kernels.json"
    options = ["--device", "cpu", "--quick", "--shrink", "32", "--seconds", "0.001"]
    cases = ["march_4x64", "composite_512", "grid_mlp_2e18", "render_4x64", "adam_grid"]
    assert kernels.main([*options, "--out", str(out), "--cases", *cases]) == 0
    results = json.loads(out.read_text())
    assert results["left_out"] == [] and results["settings"]["shrink"] == 32 and results["versions"]["torch"]
    rows = {(row["case"], row["metric"]): row for row in results["rows"]}
    for case in ("march_4x64", "composite_512", "grid_mlp_2e18, random", "grid_mlp_2e18, rays", "render_4x64"):
        row = rows[case, "forward"]
        assert row["unit"] == "ms" and 0 < row["p10"] <= row["value"] <= row["p90"] and row["floor"] > 0
    assert 0 < rows["render_4x64", "visible"]["value"] < rows["render_4x64", "samples"]["value"]
    assert "composite_512" in capsys.readouterr().out


def test_a_version_that_cannot_run_is_left_out_and_ours_is_kept():
    def fail():
        raise RuntimeError("out of\n memory")

    versions = [kernel_cases.Version("ours", lambda: [torch.zeros(1)]), kernel_cases.Version("peer", fail)]
    versions.append(kernel_cases.Version("huge", fail, needs=1 << 60))
    case = kernel_cases.Case("a", CPU, versions, {"forward": 0.1}, {"rays": 3})
    with kernels.tqdm(disable=True) as bar:
        rows, left_out = kernels.run_case(case, timing.Clock(CPU, 1e-4, False), bar)
    assert [row["metric"] for row in rows] == ["forward", "rays"] and rows[0]["floor"] == 0.1 and "peer" not in rows[0]
    assert left_out == ["a, peer: out of memory", "a, huge: would not fit into memory (1073741824 GiB)"]


def test_the_rows_of_a_peer_hold_its_own_spread():
    def of(value: float) -> dict[str, timing.Timing]:
        memory = timing.Timing(value, value, value, 1)
        return {"forward": timing.Timing(value, 0.9 * value, 1.2 * value, 9), "memory": memory}

    case = kernel_cases.Case("a", CPU, [kernel_cases.Version("ours", list), kernel_cases.Version("peer", list)], {}, {})
    time, memory = kernels.case_rows(case, {"ours": of(1.0), "peer": of(3.0)})
    assert (time["value"], time["p10"], time["p90"]) == (1.0, 0.9, 1.2)
    assert time["repetitions"] == time["peer_repetitions"] == 9 and "repetitions" not in memory
    assert (time["peer_value"], time["peer_p10"], time["peer_p90"]) == (3.0, 2.7, 3.6)
    assert memory["peer_value"] == 3.0 and not {"p10", "p90", "peer_p10", "peer_p90"} & set(memory)
    assert report.cells(RESULTS | {"rows": [time]})[1] == ["a", "forward", "1 ms", "0.9 to 1.2", "", "3 (3x)"]


def small_network() -> torch_twins.Network:
    spec = HashGridSpec(4, 2, 10, 4, 64)
    shapes = ((spec.n_entries, 2), (16, 8), (16,), (bench_inputs.N_OUTPUTS, 16), (bench_inputs.N_OUTPUTS,))
    generator = torch.Generator().manual_seed(0)
    leaves = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return torch_twins.Network(level_rows(spec, CPU), *leaves)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("order", ["random", "rays"])
def test_gradients_are_compared_with_float64_unless_quick(order):
    torch.manual_seed(0)
    setting = kernel_cases.Setting(CPU, "cpu", 16, False, timing.Ceilings(1.0, 1.0, (1.0, 1.0)))
    case = kernel_cases.grid_mlp_case("grid_mlp_2e18", 18, order, setting)
    rows = kernels.check_rows(case.name, case.checks)
    errors = ["table gradient error", "hidden weights gradient error"]
    assert [row["metric"] for row in rows] == [name + away for name in errors for away in ("", ", away from bends")]
    for row in rows:  # float32 on a CPU
        assert row["peer"] == "torch eager" and row["unit"] == "%"
        most = 0.05 if row["metric"].endswith("away from bends") else 20
        assert 1e-6 < row["value"] < most and 1e-6 < row["peer_value"] < most
    assert kernel_cases.grid_mlp_case("grid_mlp_2e18", 18, order, replace(setting, quick=True)).checks == {}
    assert kernel_cases.grid_mlp_case("grid_mlp_2e20", 20, order, setting).checks == {}


def test_a_unit_that_may_be_on_here_and_off_there_is_known():
    network, points = small_network(), torch.rand(200, 3)
    features = torch_twins.encode_levels(points, network.levels, network.table)
    inputs = torch.nn.functional.linear(features, network.hidden_weight, network.hidden_bias)
    with torch.no_grad():
        network.hidden_bias[7] -= inputs[33, 7]
    near = gradient_errors.near_a_bend(points, network)
    assert bool(near[33]) and float(near.float().mean()) < 0.1


def test_a_wrong_gradient_shows():
    network, points = small_network(), torch.rand(50, 3)
    runs = {
        name: lambda scale=scale: scale * torch_twins.network_torch(points, network)
        for name, scale in (("ours", 1.25), ("peer", 1.0))
    }
    for unit, check in gradient_errors.gradient_checks(points, network, runs).values():
        found = check()
        assert unit == "%" and found["ours"] == pytest.approx(25, rel=1e-2) and 0 < found["peer"] < 0.01


def test_figures_beside_the_times_follow_them():
    checks = {"error": ("%", lambda: {"ours": 0.12345, "a": 1.0, "b": 2.0}), "alone": ("%", lambda: {"ours": 3.0})}
    case = kernel_cases.Case("c", CPU, [kernel_cases.Version("ours", lambda: [torch.zeros(1)])], {}, {"n": 1}, checks)
    with kernels.tqdm(disable=True) as bar:
        rows, _ = kernels.run_case(case, timing.Clock(CPU, 1e-4, False), bar)
    own = {"case": "c", "metric": "error", "value": 0.1235, "unit": "%"}
    assert [row["metric"] for row in rows] == ["forward", "n", "error", "error", "alone"]
    assert rows[2:4] == [own | {"peer": "a", "peer_value": 1.0}, own | {"peer": "b", "peer_value": 2.0}]
    assert rows[4] == {"case": "c", "metric": "alone", "value": 3.0, "unit": "%"}


def test_some_versions_may_be_chosen_and_ours_is_always_there():
    names = ("ours", "ours, float32", "torch eager", "torch.compile", "nerfacc")
    case = kernel_cases.Case("a", CPU, [kernel_cases.Version(name, list) for name in names], {}, {})
    assert kernels.chosen(case, None) is case
    for wanted, expected in (
        (["nerfacc"], ["ours", "nerfacc"]),
        (["torch", "x"], ["ours", "torch eager", "torch.compile"]),
    ):
        assert [version.name for version in kernels.chosen(case, wanted).versions] == expected


def test_nerfacc_is_timed_on_the_same_rays_and_samples(monkeypatch):
    """With a stand-in of its documented interface: the same samples and pictures as ours come out."""
    rays = camera_rays(bench_inputs.random_cameras(1, CPU), 4, 4)
    samples = bench_inputs.shell_samples(rays, "torch")
    edges = torch.stack([samples.t_starts, samples.t_ends], 1).flatten()
    is_left = torch.arange(len(edges)) % 2 == 0

    def traverse_grids(rays_o, rays_d, binaries, aabbs, near_planes, far_planes, step_size):
        assert torch.equal(rays_o, rays.origins) and torch.equal(rays_d, rays.directions)
        assert binaries.shape == (1, 128, 128, 128) and aabbs.shape == (1, 6) and step_size == bench_inputs.STEP
        assert float(near_planes.max()) == 0 and float(far_planes.min()) > 10
        intervals = SimpleNamespace(vals=edges, is_left=is_left, is_right=~is_left)
        return intervals, SimpleNamespace(ray_indices=samples.ray_indices), None

    def render_weight_from_density(t_starts, t_ends, sigmas, packed_info):
        given = (sigmas[:, None], t_starts, t_ends, packed_info)
        return composite_torch(sigmas, *given)[3], None, None

    def accumulate_along_rays(weights, values, ray_indices, n_rays):
        values = torch.ones_like(weights)[:, None] if values is None else values
        return torch.zeros(n_rays, values.shape[1]).index_add(0, ray_indices, weights[:, None] * values)

    stand_in = SimpleNamespace(
        traverse_grids=traverse_grids,
        render_weight_from_density=render_weight_from_density,
        accumulate_along_rays=accumulate_along_rays,
    )
    monkeypatch.setattr(nerfacc_versions.peers, "require", lambda name: stand_in)
    starts, ends, ray_indices = nerfacc_versions.March(rays, bench_inputs.shell_occupancy(CPU))()
    assert torch.equal(starts, samples.t_starts) and torch.equal(ends, samples.t_ends)
    assert torch.equal(ray_indices, samples.ray_indices)
    sigmas, colors = torch.rand(samples.n) * 50, torch.rand(samples.n, 3)
    got = nerfacc_versions.Composite(samples, sigmas, colors)()
    packed = (samples.t_starts, samples.t_ends, samples.packed_info)
    color, opacity, depth, _ = composite_torch(sigmas, colors, *packed)
    for one, other in zip(got, (color, opacity[:, None], depth[:, None]), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_points_in_the_order_of_rays_come_with_their_rays():
    setting = kernel_cases.Setting(CPU, "torch", 16, True, timing.Ceilings(1.0, 1.0, (1.0, 1.0)))
    points, packed_info = kernel_cases.grid_points(1000, "rays", setting)
    start, count = packed_info.unbind(1)
    assert points.shape == (1000, 3) and int(count.sum()) == 1000
    assert torch.equal(start, count.cumsum(0) - count)
    assert kernel_cases.grid_points(10, "random", setting)[1] is None


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main([]) == 2
    assert capsys.readouterr().err == (
        "--device cuda: torch sees no CUDA GPU; use --device cpu for a run of smaller sizes\n"
    )


def test_the_report_puts_table_and_plot_into_the_page(tmp_path: Path):
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    results.write_text(json.dumps(RESULTS | {"left_out": ["a, nerfacc: not there"]}))
    page.write_text(f"before\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nafter\n")
    for _ in range(2):  # the second time replaces what the first one wrote
        assert report.main([str(results), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| a | forward | 1 ms | 0.9 to 1.1 | 0.5 | 4 (4x) | 2.5 (2.5x) |" in text
    assert "Sizes: a: 1,234,567 samples." in text and "- a, nerfacc: not there" in text and "(page.svg)" in text
    root = ElementTree.fromstring((tmp_path / "page.svg").read_text())
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a", "b & c", "ours", "torch eager", "2,000", "floor"} <= set(words) and "ceiling" not in words


def test_what_was_not_measured_is_named(tmp_path: Path):
    rows = [{"case": "start, empty cache"}, {"case": "a"}]
    assert report.not_measured(("a", "b", "start", "sta"), rows) == ["b", "sta"]
    results = RESULTS | {"left_out": [], "not_measured": ["b", "c_512"]}
    assert "\n\nNot measured: b, c_512." in report.block(results, "p.svg")
    assert "Not measured: b, c_512\nwritten: x" in report.summary(results, Path("x"))
    assert "Not measured" not in report.block(RESULTS, "p.svg")


def test_render_floors_are_those_of_the_counts():
    """Bytes: 2 of a touched number forward; the same and 4 of every number backward. Operations: once and thrice."""
    bytes_lead = kernel_cases.Setting(CPU, "cpu", 1, True, timing.Ceilings(1e3, 1e30, (1.0, 1.0)))
    expected = {"forward": 20.0, "backward": 20.0 + 400.0, "both": 40.0 + 400.0}
    assert render_cases.render_floors(bytes_lead, 100, 10, 7) == pytest.approx(expected)
    work_leads = kernel_cases.Setting(CPU, "cpu", 1, True, timing.Ceilings(1e30, 1e3, (1.0, 1.0)))
    once = 7 * kernel_cases.NETWORK_FLOP
    expected = {"forward": once, "backward": 3 * once, "both": 4 * once}
    assert render_cases.render_floors(work_leads, 100, 10, 7) == pytest.approx(expected)


def test_longer_times_have_longer_bars():
    root = ElementTree.fromstring(report.svg_plot(RESULTS))
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") == str(report.BAR - 1)]
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert len(widths) == 4 and widths[0] < widths[2] < widths[1] < widths[3]


@pytest.mark.parametrize("text", ["no marks", f"{report.MARKS[1]}\n{report.MARKS[0]}", report.MARKS[0] * 2])
def test_a_page_without_the_marks_is_left_alone(tmp_path: Path, text, capsys):
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    results.write_text(json.dumps(RESULTS))
    page.write_text(text)
    assert report.main([str(results), "--page", str(page)]) == 2
    assert "the page needs the lines" in capsys.readouterr().err and page.read_text() == text
    assert not page.with_suffix(".svg").exists()


def test_what_the_compiler_says_is_read():
    first, second = resources.parse_report("x.cu", PTXAS, asks=True)
    assert first == resources.Kernel("x.cu", "_ZN3fooILi2EEvPf", 40, 2048, True, 20, 16)
    assert (second.registers, second.shared, second.spilled) == (255, 0, 0)


@pytest.mark.parametrize(
    ("registers", "shared", "share"),
    [(32, 0, 1.0), (33, 0, 0.75), (40, 0, 0.75), (64, 0, 0.5), (255, 0, 0.125), (32, 47 * 1024, 0.25), (16, 0, 1.0)]
    + [(127, 56_320, 0.25), (127, 57_344, 0.25), (127, 57_345, 0.1875)],  # 4 blocks of 57 KiB fit, with 1 KiB lost
)
def test_occupancy_is_that_of_the_programming_guide(registers, shared, share):
    assert resources.occupancy(registers, shared) == pytest.approx(share)
    assert math.isclose(resources.occupancy(32, 0, threads=32), 0.5)  # 32 blocks of one warp


def test_the_networks_kernels_have_the_shared_memory_of_their_launch():
    def kernel(name: str, source: str = "mlp_cuda.cu", asks: bool = True) -> resources.Kernel:
        return resources.Kernel(source, name, 127, 0, asks, 0, 0)

    (backward,) = resources.at_launch(kernel("bwd<64, 32>"))
    assert (backward.name, backward.shared) == ("bwd<64, 32>", 56_320)
    forward = resources.at_launch(kernel("fwd<64>"))
    assert [(of.name, of.shared) for of in forward] == [
        ("fwd<64>, 32 inputs", 16_512),
        ("fwd<64>, 64 inputs", 28_800),
    ]
    assert resources.table([backward])[1][2:] == ["127", "56,320", "0", "0", "25%"]
    plain = kernel("survey", "lit_rows_cuda.cu", asks=False)
    assert resources.at_launch(plain) == [plain]
    for unknown in (kernel("fwd<64>", "new_cuda.cu"), kernel("other<64>")):
        with pytest.raises(ValueError, match="how much shared memory .* asks for is not known"):
            resources.at_launch(unknown)


@pytest.mark.nvcc
def test_the_resources_of_a_real_kernel(tmp_path: Path):
    (source,) = [path for path in resources.build.source_files("cuda") if path.name == "march_cuda.cu"]
    text = resources.compile_report(source, resources.build.find_compiler("cuda"))
    names = resources.demangled([kernel.name for kernel in resources.parse_report(source.name, text)])
    assert {"pack", "count", "fill"} <= set(names)


def test_launches_of_a_kernel_are_summed_and_torchs_own_come_last():
    found = [
        ("void (anonymous namespace)::fwd<2>(float const*, long)", 30.0),
        ("void at::native::vectorized_elementwise_kernel<4>(int)", 500.0),
        ("nerf_bridge::count(long)", 100.0),
        ("Memset (Device)", 100.0),
        ("exp2_kernel_vectorized2_kernel", 0.2),
        ("void (anonymous namespace)::fwd<2>(float const*, long)", 50.0),
    ]
    rows = kernel_times.rows_of("march_512", found, 2)
    assert [(row["metric"], row["value"], row["launches"]) for row in rows] == [
        ("nerf_bridge::count", 0.05, 0.5),
        ("fwd<2>", 0.04, 1.0),
        (kernel_times.TORCHS_OWN, 0.3001, 1.5),
    ]


@pytest.mark.compiler
def test_the_kernels_that_no_other_case_runs_have_cases_of_their_own(monkeypatch):
    setting = kernel_cases.Setting(CPU, "cpu", 32, True, timing.Ceilings(1.0, 1.0, (1.0, 1.0)))
    flags, encode = [], kernel_times.hash_encode

    def hash_encode(*arguments):
        flags.append(torch.are_deterministic_algorithms_enabled())
        return encode(*arguments)

    monkeypatch.setattr(kernel_times, "hash_encode", hash_encode)
    exact, repeatable, raster = (maker() for maker in kernel_times.own_makers(setting))
    for case in (exact, repeatable):
        grad_points, grad_table = case.versions[0].forward()
        assert grad_points.shape == (1024, 3) and float(grad_points.abs().max()) > 0
        assert float(grad_table.sum()) == pytest.approx(1024 * 16 * 2, rel=1e-4)  # a point's weights sum to 1 a level
    assert flags == [False, True] and not torch.are_deterministic_algorithms_enabled()
    (face_index,) = raster.versions[0].forward()
    assert raster.counts == {"faces": 20480, "pixels": 64 * 64} and face_index.shape == (64, 64)
    assert 0.2 < float((face_index >= 0).float().mean()) < 0.8


def test_kernel_times_without_a_gpu_say_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert kernel_times.main([]) == 2
    assert capsys.readouterr().err == "kernels are timed on a GPU, and torch sees no CUDA GPU\n"
