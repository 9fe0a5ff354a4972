"""The second opinion: its table fits the library's words, and it is asked in the right way."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from nerf_bridge.evaluate.imagenet import ImageNetJudge, load_imagenet_judge
from nerf_bridge.evaluate.imagenet_table import IMAGENET_CLASSES


class Brightness(torch.nn.Module):
    """Says class 1 of what is brighter than mid grey, class 0 of the rest; 2 to 5 come after."""

    def forward(self, images):
        self.shape, self.low, self.high = images.shape, float(images.min()), float(images.max())
        bright = (images.mean((1, 2, 3)) > 0).float()
        scores = torch.zeros(len(images), 1000)
        scores[:, 0], scores[:, 1], scores[:, 2:6] = 10 * (1 - bright), 10 * bright, torch.tensor([4.0, 3.0, 2.0, 1.0])
        return scores


def test_hits_among_the_first_and_the_first_five(monkeypatch):
    monkeypatch.setitem(IMAGENET_CLASSES, "lamp", (1,))
    monkeypatch.setitem(IMAGENET_CLASSES, "night", (0, 3))
    network = Brightness()
    judge = ImageNetJudge(network, torch.device("cpu"))
    images = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    assert judge.hits(images, "lamp") == ([0.0, 1.0], [0.0, 1.0])
    assert judge.hits(images, "night") == ([1.0, 0.0], [1.0, 1.0])
    assert network.shape == (2, 3, 224, 224)
    assert (network.low, network.high) == pytest.approx((-127 / 128, 1.0))  # as the classifier was trained
    assert judge.knows("lamp") and not judge.knows("xyzzy")


def test_the_table_is_sound():
    classes = [number for part in IMAGENET_CLASSES.values() for number in part]
    assert min(classes) >= 0 and max(classes) < 1000 and len(IMAGENET_CLASSES) > 100
    assert all(part and len(set(part)) == len(part) for part in IMAGENET_CLASSES.values())
    assert list(IMAGENET_CLASSES) == sorted(IMAGENET_CLASSES)


def test_without_its_packages_there_is_no_second_opinion(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load_imagenet_judge(torch.device("cpu")) is None


@pytest.mark.slow
def test_the_real_classifier_knows_its_own_classes():
    judge = load_imagenet_judge(torch.device("cpu"))
    assert judge is not None
    torch.manual_seed(0)
    scores = judge.network((255 * torch.rand(2, 3, 224, 224) - 127) / 128)
    assert scores.shape == (2, 1000) and bool(torch.isfinite(scores).all()) and float(scores.std()) > 0.1
    assert not judge.network.training
