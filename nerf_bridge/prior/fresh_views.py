"""New views of the training models, rendered by idle CPU cores while the GPU trains.

A view's camera is told exactly, so a network that meets the same few views again and again learns them by their camera,
and guesses at new ones. With fresh views the error on new ones goes on falling.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import torch

from nerf_bridge.prior.batches import TrainingData
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.views import RenderedViews, camera_numbers, render_model, training_cameras

WAITING = 16  # models rendered ahead


class FreshViews:
    """A thread that renders all views of one model after the other anew, in an order drawn for every round."""

    def __init__(self, models: Sequence[LibraryModel], per_model: int, seed: int, size: int, n_threads: int):
        self._models, self._per_model, self._size, self._n_threads = models, per_model, size, n_threads
        self._generator = torch.Generator().manual_seed(seed)
        self._ready: queue.Queue[tuple[int, RenderedViews]] = queue.Queue(WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._failure: Exception | None = None
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread.start()

    def replace_one(self, data: TrainingData) -> bool:
        """Put the views of the next model in the place of its old ones, on the current stream; False: none is ready.

        Raises:
            Exception: whatever the rendering raised.
        """
        if self._failure:
            raise self._failure
        try:
            model, views = self._ready.get_nowait()
        except queue.Empty:
            return False
        rows = slice(model * self._per_model, (model + 1) * self._per_model)
        new, old = views.cameras, data.views.cameras
        pairs = [(data.views.layers, views.layers), (data.features, camera_numbers(new))]
        pairs += [(getattr(old, name), getattr(new, name)) for name in vars(new)]
        for there, here in pairs:
            there[rows].copy_(here, non_blocking=True)
        return True

    def stop(self) -> None:
        """End the thread after the model that it is at."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.1)
            except queue.Empty:
                continue

    def _work(self) -> None:
        try:
            if self._gpu is not None:
                torch.cuda.set_device(self._gpu)  # a new thread starts on the first one
            while True:
                for model in torch.randperm(len(self._models), generator=self._generator).tolist():
                    cameras = training_cameras(self._per_model, self._generator)
                    layers = render_model(self._models[model], cameras, self._size, self._n_threads)
                    layers = layers.pin_memory() if self._gpu is not None else layers
                    self._ready.put((model, RenderedViews(layers, cameras, self._per_model)))
                    if self._stopped.is_set():
                        return
        except Exception as error:  # noqa: BLE001, told to the thread that trains
            self._failure = error
