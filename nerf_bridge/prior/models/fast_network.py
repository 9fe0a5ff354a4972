"""A frozen network that answers from a CUDA graph: of its plain code at once, of its compiled code when that is there.

`torch.compile` runs in a thread beside the steps. It starts when a kind of call comes for the second time, so that a
first step of one call neither waits for it nor shares the interpreter with it. The thread is safe for these reasons:
what torch.compile keeps while it works belongs to its thread (tracing, fake tensors) or is locked; the main thread
meanwhile replays graphs, and runs the network's own Python, which tracing does not change, only where another kind of
call is recorded; recordings are made by the main thread alone, in the mode in which other threads' use of the GPU does
not end them, the plain one before its own kind of call is compiled (what cannot be recorded answers plainly, and is not
compiled); and the recording of the compiled network may find nothing more to compile, or it is given up and the plain
graph stays. The thread is waited for when the program ends, so that no half-torn-down interpreter runs under it, and so
that the next run finds a full cache.

A separate process would spare the steps the sharing of the interpreter, but it would need the weights a second time on
the GPU, and the main process would have to trace and load all the same.

Not done, being worth less than a percent each: keys and values of the words once a prompt (0.3 % of the operations of
SD 2.1's U-Net, and the mixed view prompts change at every step), and the time's embedding once a time.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from nerf_bridge.cuda_graphs import WARM_UPS, Recording, make_room, record_function, warm_up
from nerf_bridge.errors import one_line
from nerf_bridge.memory.ladder import is_out_of_memory
from nerf_bridge.ops.build import cache_dir

logger = logging.getLogger(__name__)

MOST_RECORDINGS = 4  # kinds of calls that are kept recorded
Compile = Literal["auto", "on"]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Answering:
    """What answers one kind of call: a recording of the plain network or of the compiled one."""

    recording: Recording
    compiled: bool


class FastNetwork:
    """A network's call with the same arguments and answers, without gradients.

    Attributes:
        network: what it was made from, its convolutions in channels-last layout from now on.
    """

    def __init__(self, network: nn.Module, when: Compile, backend: str = "inductor"):
        """Take over a frozen network.

        Args:
            network: on a CUDA device; it must not be moved or changed any more, until it is `released`.
            when: "auto" compiles beside the steps, from the second call of a kind on; "on" before the first answer.
            backend: of torch.compile.
        """
        keep_what_is_compiled(cache_dir() / "compiled")
        self.network: Any = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.when = when
        self.backend = backend
        self.recordings: dict[Key, Answering] = {}
        self.jobs: dict[Key, CompileJob] = {}
        self.fails = False  # whether a recording of the plain network failed

    @property
    def config(self) -> Any:
        """The network's."""
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """The network's."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        """The network's."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer; copies, which later calls leave alone."""
        leaves, spec = tree_flatten((args, kwargs))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (str(spec), *(_kind(leaf) for leaf in leaves))
        answering = self.recordings.get(key)
        if answering is None:
            answering = None if self.fails else self._first(key, leaves, spec)
        elif not answering.compiled:
            answering = self._swapped(key, answering, leaves, spec)
        return self.network(*args, **kwargs) if answering is None else answering.recording(given)

    @functools.cached_property
    def compiled(self) -> Any:
        """The network through torch.compile; made in the thread that compiles, for importing Inductor takes seconds."""
        return torch.compile(self.network, dynamic=False, fullgraph=True, backend=self.backend)

    def forget(self) -> None:
        """Give back the memory of the recordings; later calls are recorded anew. What is compiled stays."""
        self.recordings.clear()

    def released(self) -> nn.Module:
        """The network itself, free to be moved: nothing is recorded of it any more, and no thread compiles it."""
        if self._compiles():
            logger.info("waiting for torch.compile before the prior's network is moved; that may take a minute")
        for job in self.jobs.values():
            job.thread.join()
        self.forget()
        return self.network

    def _compiles(self) -> bool:
        """Whether some kind of call is being compiled now."""
        return any(job.thread.is_alive() for job in self.jobs.values())

    def _first(self, key: Key, leaves: list[Any], spec: TreeSpec) -> Answering | None:
        """The plain network's recording, and the next call starts the compiler; under "on" the compiled one's.

        None (logged, and nothing is recorded any more): it cannot be recorded, and not for want of memory.
        """
        make_room(self.recordings, MOST_RECORDINGS)
        try:
            self.recordings[key] = self._recorded(self.network, leaves, spec, compiled=False)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.fails = True
            logger.warning("the prior runs without CUDA graphs, slower: the capture failed (%s)", one_line(error))
            return None
        if self.when == "auto":
            return self.recordings[key]
        self._start(key, leaves, spec)
        self.jobs[key].thread.join()
        return self._swapped(key, self.recordings[key], leaves, spec)

    def _start(self, key: Key, leaves: list[Any], spec: TreeSpec) -> None:
        """Compile for this kind of call, once; when another is being compiled, at a later call."""
        if key not in self.jobs and not self._compiles():
            args, kwargs = tree_unflatten(_copied(leaves), spec)
            self.jobs[key] = CompileJob(lambda: self.compiled(*args, **kwargs))

    def _swapped(self, key: Key, plain: Answering, leaves: list[Any], spec: TreeSpec) -> Answering:
        """The compiled network's recording as soon as there is one, till then the plain one's."""
        self._start(key, leaves, spec)
        job = self.jobs.get(key)
        if job is None or not job.succeeded() or self._compiles():
            return plain
        try:
            with torch.compiler.set_stance("fail_on_recompile"):
                swapped = self._recorded(self.compiled, leaves, spec, compiled=True)
        except RuntimeError as error:  # there is no memory for both, or what was compiled does not hold any more
            job.error = one_line(error)
            logger.warning("the compiled network cannot be recorded, the plain one goes on: %s", job.error)
            return plain
        logger.info("the prior's network is compiled from now on (%.0f s beside the steps)", job.seconds)
        self.recordings[key] = swapped
        return swapped

    def _recorded(self, network: Any, leaves: list[Any], spec: TreeSpec, compiled: bool) -> Answering:
        def answer(*given: Tensor) -> Any:
            tensors = iter(given)
            whole = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(whole, spec)
            return network(*args, **kwargs)

        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return Answering(record_function(answer, given, WARM_UPS), compiled)


def keep_what_is_compiled(folder: Path) -> None:
    """Let torch.compile keep what it makes in `folder` for the next run, unless the user has named another one.

    By itself it takes the folder for temporary files, and says so in the variable when it is imported.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if not chosen or Path(chosen).name.startswith("torchinductor_"):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class CompileJob:
    """Makes a first call, which compiles, in a thread of its own.

    Attributes:
        error: why there is nothing compiled, in one line, or None. Not the exception, whose frames hold the tensors.
        seconds: that it took.
    """

    def __init__(self, call: Callable[[], Any]):
        self.error: str | None = "torch.compile did not come to its end"
        self.seconds = 0.0
        self.thread = threading.Thread(target=self._run, args=(call,), name="compile")
        self.thread.start()

    def succeeded(self) -> bool:
        """Whether it is done and went well."""
        return not self.thread.is_alive() and self.error is None

    @torch.no_grad()
    def _run(self, call: Callable[[], Any]) -> None:
        """On a stream of its own, so that the steps do not queue behind it."""
        began = time.perf_counter()
        try:
            warm_up(call)
            self.error = None
        except (Exception, SystemExit) as error:  # a compiler fails in many ways, and none of them must end the run
            self.error = one_line(error) if isinstance(error, Exception) else f"it exited with status {error.code}"
            logger.warning("torch.compile failed, the plain network goes on: %s", self.error)
        self.seconds = time.perf_counter() - began


def _kind(leaf: Any) -> Any:
    """What a call must share with a recording in this argument."""
    return (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _copied(leaves: list[Any]) -> list[Any]:
    return [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
