"""Which kernels run: `cuda` (our CUDA kernels), `cpu` (the same maths in C++) or `torch` (reference).

`nerfacc` and `tcnn` put other people's kernels in the place of some of `cuda`'s (`peers`); only asking selects them.

Every kernel is an ``extern "C"`` function that takes raw pointers, int64 sizes and double scalars, and returns a status
(0: done). Its last argument is the number of threads (CPU) or the CUDA stream.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nerf_bridge.errors import UserError
from nerf_bridge.ops import build, peers

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "cuda", "cpu", "torch", *peers.MODULES)
INTEGERS = {  # the types besides floats that a kernel takes; packed_info and the like where none is named
    "hash_half_bwd": {torch.int64, torch.int32},
    "lit_rows": {torch.int32},
    "march_count": {torch.int64, torch.int32},
    "march_fill": {torch.int64, torch.int32},
    "march_pack": {torch.int64, torch.bool},
    "mlp_half_bwd": {torch.int32},
    "rasterize": {torch.int32},
}
_CPU_STATUS = {1: "a size or option that the kernel does not know", 2: "packed_info points outside the samples"}
PREBUILT_DIR = Path(__file__).parent / "_prebuilt"


@dataclass(frozen=True)
class Loaded:
    """What came of loading one library: the library, or the cause of the failure; exactly one is set."""

    library: ctypes.CDLL | None
    cause: str | None


def resolve_backend(requested: str, device: torch.device | str) -> str:
    """The backend that will run: "cuda", "cpu", "torch", or a peer that was asked for.

    Args:
        requested: "auto" (the kernels of `device`, or torch when they cannot be had, logged once) or a backend by name.
        device: where the tensors are.
    Raises:
        UserError: `requested` is no backend, does not fit `device`, or cannot be loaded; says why and the remedy.
    """
    kind = torch.device(device).type
    if requested not in BACKENDS:
        raise UserError(f"backend: expected one of {', '.join(BACKENDS)}, got {requested!r}")
    if requested == "auto":
        return _automatic(kind)
    if requested in peers.MODULES:
        peers.require(requested)
    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "the backend 'cuda' needs an NVIDIA GPU, and torch sees none: install a driver and a CUDA build of torch, "
            "or use --backend auto"
        )
    if requested != "torch":
        place = peers.kernels_of(requested)
        if place != kind:
            raise UserError(
                f"the backend {requested!r} works on the device {place!r}, but the device is {kind!r}: "
                f"use --device {place} or --backend auto"
            )
        library(place)
    _log_once(logging.INFO, f"backend: {requested} (asked for)")
    return requested


def library(kind: str, index: int | None = None) -> ctypes.CDLL:
    """The compiled kernels of `kind` ("cpu" or "cuda"), loaded once a process and built first when need be.

    Args:
        kind: "cpu" or "cuda".
        index: of the GPU that they are to run on; None: the current one. Not looked at for "cpu".
    Raises:
        UserError: they cannot be loaded; says why and the remedy.
    """
    loaded = load(kind, _target(kind, index))
    if loaded.library is None:
        raise UserError(f"the backend {kind!r} cannot be loaded: {loaded.cause}; or use --backend torch (slower)")
    return loaded.library


@functools.cache
def load(kind: str, target: str) -> Loaded:
    """Load the library of `kind` that was built ahead of time when it serves, else the one built at first use.

    A failure is kept for the life of the process, so that it costs its time once.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        return Loaded(None, "torch sees no CUDA GPU; install a driver and a CUDA build of torch, or use --device cpu")
    try:
        loaded = Loaded(ctypes.CDLL(str(_library_file(kind, target))), None)
    except build.BuildError as error:
        return Loaded(None, str(error))
    except OSError as error:
        remedy = "delete what does not load, or set NERF_BRIDGE_CACHE to another folder: then it is built anew"
        return Loaded(None, f"{error}; {remedy}")
    if build.lacks_tensor_cores(target):
        logger.warning("this GPU is %s: %s", target, build.NO_TENSOR_CORES)
    return loaded


def _library_file(kind: str, target: str) -> Path:
    """The library built ahead of time where there is one that serves, else that of the cache, built now if need be."""
    prebuilt = build.library_path(kind, PREBUILT_DIR)
    cause = build.why_not(prebuilt, kind, target)
    if cause is None:
        return prebuilt
    if not prebuilt.exists():  # the usual case: nothing was built ahead of time
        return build.cached_library(kind, target)
    unfit = f"the {kind} kernels built ahead of time are not used: {cause}"
    logger.info("%s; others are built now, unless the cache has them", unfit)
    try:
        return build.cached_library(kind, target)
    except build.BuildError as error:
        again = "reinstall with NERF_BRIDGE_BUILD=" + kind
        again += f" NERF_BRIDGE_CUDA_ARCHS={target.removeprefix('sm_')}" if kind == "cuda" else ""
        raise build.BuildError(f"{unfit}, and others cannot be built: {error}; or {again}") from None


def run_kernel(backend: str, name: str, *arguments: torch.Tensor | int | float | bool | None) -> None:
    """Call a kernel; as `prepared_kernel`, at once."""
    prepared_kernel(backend, name, *arguments)()


def prepared_kernel(
    backend: str, name: str, *arguments: torch.Tensor | int | float | bool | None
) -> Callable[[], None]:
    """What calls the kernel `name` of the library `backend` on what is then the current stream (CUDA), or with torch's
    thread count (CPU); all checks are done before.

    Args:
        backend: "cpu", "cuda", or a peer, whose part our CUDA kernels then do.
        name: the C function's name without suffix; "_f32" or "_f64" is added for the dtype of the float tensors.
        arguments: tensors become pointers (None: a null pointer), int and bool int64, float double.
    Raises:
        TypeError: a tensor is not contiguous, lies on another device than `backend` works on, or is of a type that the
            kernel does not take: all float32, or all float64, and halves only for kernels with "half" in their name;
            int64 besides, or what INTEGERS has.
        RuntimeError: at the call, when the kernel reports an error.
    """
    backend = peers.kernels_of(backend)
    index = next(value.get_device() for value in arguments if isinstance(value, torch.Tensor))  # -1: the CPU
    values, types = [], set()
    for value in arguments:
        if not isinstance(value, torch.Tensor):
            values.append(value)
            continue
        if value.is_cuda != (backend == "cuda") or value.get_device() != index or not value.is_contiguous():
            raise TypeError(f"{name}: {_misplaced(value, backend, index)}")
        types.add(value.dtype)
        values.append(value.data_ptr())
    function = _function(backend, name, _suffix(name, frozenset(types)), index)
    if function.argtypes is None:  # once a kernel: then calls convert plain numbers, which is quick
        function.argtypes = [*map(_c_type, arguments), ctypes.c_int64 if backend == "cpu" else ctypes.c_void_p]
    return functools.partial(_call, backend, name, index, function, values, arguments)


def _call(backend: str, name: str, index: int, function: Any, values: list[Any], held: Sequence[Any]) -> None:
    """The call of a prepared kernel; `held`: the tensors into which `values` point, which must live until then."""
    if backend == "cpu":
        status = function(*values, torch.get_num_threads())
    elif index == torch.cuda.current_device():
        status = function(*values, torch._C._cuda_getCurrentRawStream(index))
    else:
        with torch.cuda.device(index):
            status = function(*values, torch._C._cuda_getCurrentRawStream(index))
    if status != 0:
        raise RuntimeError(f"{name} failed on {backend} with status {status}: {_error_text(backend, status)}")


@functools.cache
def _suffix(name: str, types: frozenset[torch.dtype]) -> str:
    """Which of a kernel's functions takes tensors of these types. Raises TypeError when none does."""
    floats = {dtype for dtype in types if dtype.is_floating_point}
    suffix, allowed = "f64" if torch.float64 in floats else "f32", {torch.float64}
    if suffix == "f32":
        allowed = {torch.float32, torch.float16} if "half" in name else {torch.float32}
    if not types <= allowed | INTEGERS.get(name, {torch.int64}):
        raise TypeError(f"{name}: the tensors' types do not fit: {', '.join(sorted(map(str, types)))}")
    return suffix


@functools.cache
def _function(kind: str, name: str, suffix: str, index: int | None) -> Any:
    """The C function of a kernel, for the GPU `index` where `kind` is "cuda"."""
    return getattr(library(kind, index), f"{name}_{suffix}")


def _misplaced(tensor: torch.Tensor, kind: str, index: int) -> str:
    """What is wrong with where or how a tensor lies."""
    got = "contiguous" if tensor.is_contiguous() else "strided"
    place = f"{kind}:{index}" if kind == "cuda" and tensor.is_cuda else kind
    return f"expected contiguous tensors on {place}, got a {got} one on {tensor.device}"


def check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], like: torch.Tensor | None = None
) -> None:
    """Raise ValueError unless `tensor` has `shape` (None: any size) and, when given, the dtype and device of `like`."""
    got = tensor.shape
    fits = len(got) == len(shape)
    for want, size in zip(shape, got, strict=False):  # a loop is quicker than any(): this runs before every kernel
        fits = fits and (want is None or want == size)
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(got)}")
    if like is not None and tensor.dtype != like.dtype:
        raise ValueError(f"{name}: expected dtype {like.dtype}, got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {tensor.device}")


def check_packed_info(packed_info: torch.Tensor, device: torch.device) -> None:
    """Raise ValueError unless `packed_info` is int64 [any, 2] on `device`."""
    check_tensor("packed_info", packed_info, (None, 2))
    if packed_info.dtype != torch.int64 or packed_info.device != device:
        got = f"{packed_info.dtype} on {packed_info.device}"
        raise ValueError(f"packed_info: expected int64 on {device}, got {got}")


def check_float(name: str, tensor: torch.Tensor, backend: str) -> None:
    """Raise ValueError unless `backend` is known, works on the device of `tensor` and takes its dtype."""
    if backend not in BACKENDS[1:]:
        raise ValueError(f"backend: expected cuda, cpu or torch (resolved), got {backend!r}")
    backend = peers.kernels_of(backend)
    if backend != "torch" and tensor.device.type != backend:
        raise ValueError(f"{name}: the backend {backend} expects tensors on {backend}, got {tensor.device}")
    allowed = (torch.float32,) if backend == "cuda" else (torch.float32, torch.float64)
    if tensor.dtype not in allowed:
        raise ValueError(f"{name}: the backend {backend} expects {' or '.join(map(str, allowed))}, got {tensor.dtype}")


def _automatic(kind: str) -> str:
    if kind not in build.KINDS:
        _log_once(logging.INFO, f"backend: torch (no kernels for the device {kind!r})")
        return "torch"
    loaded = load(kind, _target(kind))
    if loaded.library is None:
        _log_once(logging.WARNING, f"backend: torch, slower, since the {kind} kernels cannot be loaded: {loaded.cause}")
        return "torch"
    _log_once(logging.INFO, f"backend: {kind}")
    return kind


def _target(kind: str, index: int | None = None) -> str:
    if kind != "cuda":
        return build.host_target()
    if not torch.cuda.is_available():
        return "no GPU"
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)


def _c_type(value: torch.Tensor | int | float | bool | None) -> type:
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(value, float) else ctypes.c_int64


def _error_text(backend: str, status: int) -> str:
    if backend == "cpu":
        return _CPU_STATUS.get(status, "an unknown status")
    describe = library(backend).nerf_bridge_error_text
    describe.restype = ctypes.c_char_p
    return describe(ctypes.c_int64(status)).decode()
