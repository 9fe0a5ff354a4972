"""Where a command runs, and the GPU that is woken early."""

import ctypes

import pytest
import torch

from nerf_bridge import device
from nerf_bridge.device import ALIGNED, resolve_device, to_device, wake_gpu
from nerf_bridge.errors import UserError


class Driver:
    """Stands for the driver's library; answers `status` to everything."""

    def __init__(self, status: int) -> None:
        self.status, self.calls = status, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            return self.status

        return call


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="torch sees no GPU"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("status", "calls"), [(0, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]), (100, ["cuInit"])]
)
def test_the_gpu_is_woken_as_far_as_it_answers(monkeypatch, status, calls):
    driver = Driver(status)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    wake_gpu("auto").join()
    assert driver.calls == calls


def test_nothing_is_woken_without_a_driver_or_for_the_cpu(monkeypatch):
    assert wake_gpu("cpu") is None
    monkeypatch.setattr(device, "DRIVER", "libno-such-driver.so")
    assert wake_gpu("cuda") is None


TENSORS = [torch.arange(6.0).view(2, 3), torch.tensor(3.0), torch.zeros(0, 3), torch.arange(130.0).view(65, 2).T]


def test_on_a_cpu_tensors_come_as_they_are():
    assert all(a is b for a, b in zip(to_device(TENSORS, torch.device("cpu")), TENSORS, strict=True))


@pytest.mark.cuda
def test_on_a_gpu_tensors_come_in_one_piece_each_aligned():
    moved = to_device(TENSORS, torch.device("cuda"))
    for came, sent in zip(moved, TENSORS, strict=True):
        assert came.is_cuda and came.is_contiguous() and torch.equal(came.cpu(), sent)
        assert came.storage_offset() % ALIGNED == 0
    assert len({came.untyped_storage().data_ptr() for came in moved}) == 1
