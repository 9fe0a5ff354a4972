"""What Python passes to the CUDA kernels is what they take: number and kind of every argument, known without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from nerf_bridge.ops import adam, backend, build, composite, field_composite, grid_mlp, hash_encoding, march, rays
from nerf_bridge.ops.hash_encoding import HashGridSpec

MODULES = (adam, composite, field_composite, grid_mlp, hash_encoding, march, rays)
SPEC = HashGridSpec(n_levels=3, n_features=2, log2_table_size=8, base_resolution=2, finest_resolution=16)


def expected_kinds() -> dict[str, list[str]]:
    """The arguments of every C function of the CUDA library, without the stream at the end."""
    found = {}
    for path in build.source_files("cuda"):
        text = path.read_text(encoding="utf-8")
        for name, arguments in re.findall(r"NB_EXPORT int (\w+)_f32\((.*?)\)\s*\{", text, re.DOTALL):
            *kinds, stream = map(kind_in_c, arguments.split(","))
            assert stream == "stream", name
            found[name] = kinds
    return found


INTEGERS_IN_C = {  # what a tensor's numbers may be where the source has a pointer to one of these
    "int64_t*": torch.int64,
    "uint64_t*": torch.int64,
    "Level*": torch.int64,
    "int32_t*": torch.int32,
    "uint32_t*": torch.int32,
    "uint8_t*": torch.bool,
}


def test_the_integers_that_a_kernel_is_given_are_those_that_it_reads():
    for kind in build.KINDS:
        text = "".join(path.read_text(encoding="utf-8") for path in build.source_files(kind))
        for name, arguments in re.findall(r"NB_EXPORT int (\w+?)_(?:f32|##SUFFIX)\((.*?)\)\s*\{", text, re.DOTALL):
            words = set(re.findall(r"\w+\*", arguments))
            read = {dtype for word, dtype in INTEGERS_IN_C.items() if word in words}
            assert not read or name in NOT_BY_TENSORS or read == backend.INTEGERS.get(name, {torch.int64}), name


def kind_in_c(argument: str) -> str:
    return next(kind for word, kind in KINDS_IN_C.items() if word in argument)


NOT_BY_TENSORS = {"render_views"}  # called with numpy's arrays
KINDS_IN_C = {"*": "pointer", "cudaStream_t": "stream", "double": "double", "int64_t": "int"}


def kind_in_python(value: object) -> str:
    if value is None or isinstance(value, torch.Tensor):
        return "pointer"
    return "double" if isinstance(value, float) else "int"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The kinds of the arguments of every kernel that a test calls, on the CPU's tensors in place of a GPU's."""
    calls: dict[str, list[str]] = {}

    def record(backend: str, name: str, *arguments: object) -> Callable[[], None]:
        assert backend == "cuda"
        calls[name] = [kind_in_python(value) for value in arguments]
        return lambda: None

    for module in MODULES:
        monkeypatch.setattr(module, "prepared_kernel" if module is adam else "run_kernel", record)
        monkeypatch.setattr(module, "check_float", lambda *given: None, raising=False)
    monkeypatch.setattr(grid_mlp, "_gpu", lambda device: (90, 227 << 10, 132))
    return calls


def test_every_kernel_gets_what_it_takes(called):
    generator = torch.Generator().manual_seed(0)

    def of(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    packed_info = torch.tensor([[0, 3], [3, 2]])
    march.march_rays(of(2, 3), of(2, 3), torch.ones(4, 4, 4, dtype=torch.bool), 0.1, of(2), "cuda", 5)
    rays.pixel_rays(of(1, 4, 4), of(1), 2, 1, "cuda")
    intervals = (of(5), of(5), packed_info)
    made = composite.composite_fwd(of(5), of(5, 3), *intervals, "cuda")
    composite.composite_bwd(of(5, 3), *intervals, made[3], made[1], *made[:3], None, "cuda")
    field = (of(5, 4), of(2, 3), of(5, 3), *intervals, of(2))
    made = field_composite.field_composite_fwd(*field, 1.0, 0.5, True, "cuda")
    field_composite.gradient_raw(*field, made[1], *made[4:], of(2, 3), None, of(2), None, 1.0, 0.5, True, "cuda")
    network = [of(SPEC.n_entries, 2), of(16, 6), of(16), of(4, 16), of(4)]
    for parameter in network:
        parameter.requires_grad_()
    for told in (packed_info, None):
        grid_mlp.grid_mlp(of(5, 3), *network, SPEC, told, centred=True).sum().backward()
    grid = (of(5, 3), None, network[0].detach())
    hash_encoding.encode_fwd(*grid, SPEC, "cuda")
    hash_encoding.encode_bwd_points(*grid, of(5, 6), SPEC, "cuda")
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            hash_encoding.encode_bwd_table(*grid[:2], of(5, 6), SPEC, "cuda")
        finally:
            torch.use_deterministic_algorithms(False)
    optimiser = adam.SkippingAdam([{"params": network, "lr": 1e-3, "skip": True}], (0.9, 0.99), 1e-8, "cuda")
    optimiser.step()
    expected = expected_kinds()
    assert set(called) == set(expected) - {"rasterize"}  # that one is called in test_raster_cuda.py alone
    for name, kinds in called.items():
        assert kinds == expected[name], name
