"""Where a command runs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nerf_bridge.errors import UserError

if TYPE_CHECKING:
    import torch

DRIVER = "libcuda.so.1"
ALIGNED = 64  # numbers: each tensor that comes in one copy begins at a multiple, as if it had memory of its own


def resolve_device(requested: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises UserError when CUDA is asked for and absent."""
    import torch  # here, because torch takes seconds to load and wake_gpu must come before it

    if requested == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device: cuda was asked for, but torch sees no GPU; use --device cpu, or see `nerf-bridge doctor`"
        )
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(requested)


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """`tensors`, of one dtype and on the CPU, on `device`: on a GPU by one copy, for which the host does not wait."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    from torch import cat
    from torch.nn.functional import pad

    rows = [pad(tensor.reshape(-1), (0, -tensor.numel() % ALIGNED)) for tensor in tensors]
    moved = cat(rows).pin_memory().to(device, non_blocking=True).split([len(row) for row in rows])
    return [row[: tensor.numel()].view(tensor.shape) for row, tensor in zip(moved, tensors, strict=True)]


def wake_gpu(requested: str) -> threading.Thread | None:
    """Let the driver make the first GPU's context in a thread of its own, while torch is being imported.

    Affects speed alone: torch finds the context made, and what goes wrong here goes wrong there again, with its
    message.

    Args:
        requested: the setting `device`; "cpu" does nothing.

    Returns:
        The thread; None where there is nothing to wake.
    """
    if requested == "cpu":
        return None
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None  # no driver, no GPU
    thread = threading.Thread(target=_make_context, args=(driver,), name="wake-gpu")
    thread.start()
    return thread


def _make_context(driver: ctypes.CDLL) -> None:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)  # for the life of the process
