"""The network behind graphs: its answers, when the compiled one takes over, and what happens when it cannot.

Without a GPU the recorder is a stand-in that does the work again at every replay.
"""

import gc
import logging
import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from nerf_bridge import cuda_graphs
from nerf_bridge.prior.models import fast_network
from nerf_bridge.prior.models.fast_network import FastNetwork


@dataclass
class Graph:
    work: object
    answer: object

    def replay(self):
        torch.utils._pytree.tree_map(lambda mine, new: mine.copy_(new), self.answer, self.work())


@pytest.fixture(autouse=True)
def recorder_on_cpu(monkeypatch, tmp_path):
    def record(work):
        answer = torch.utils._pytree.tree_map(torch.clone, work())
        return Graph(work, answer), answer

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "warm_up", lambda work, times: work())
    monkeypatch.setattr(fast_network, "warm_up", lambda work: work())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    ).requires_grad_(False)


def call(network, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    added = {"text_embeds": torch.randn(n, 8, generator=generator), "time_ids": torch.ones(n, 6)}
    words, time = torch.randn(n, 5, 8, generator=generator), torch.full((n,), 10 + seed)
    noised = torch.randn(n, 4, 8, 8, generator=generator)
    return network(noised, time, encoder_hidden_states=words, added_cond_kwargs=added).sample


def first_calls(network):
    """The answer of the first call; "auto" starts the compiler at the second one."""
    answer = call(network)
    assert torch.equal(call(network), answer)
    return answer


def wait(fast):
    for job in fast.jobs.values():
        job.thread.join(60)


def compiled(fast):
    return [recording.compiled for recording in fast.recordings.values()]


@pytest.mark.slow
def test_answers_are_the_networks_before_and_after_the_swap(unet, caplog):
    caplog.set_level(logging.INFO)
    expected = [call(unet, seed=seed) for seed in (0, 1)]
    fast = FastNetwork(unet, "auto", backend="aot_eager")
    first = call(fast)
    for answer in (first, call(fast, seed=1), call(fast)):
        assert torch.allclose(answer, expected[answer is not first and not torch.equal(answer, first)], atol=1e-5)
    wait(fast)
    assert torch.allclose(call(fast, seed=1), expected[1], atol=1e-5) and compiled(fast) == [True]
    assert torch.allclose(first, expected[0], atol=1e-5), "an answer stays what it was"
    assert "the prior's network is compiled from now on" in caplog.text


def test_auto_starts_the_compiler_at_the_second_call(monkeypatch):
    """In a thread that also makes the compiled network, since that imports the compiler."""
    makers = []

    def make(network, **settings):
        makers.append(threading.current_thread())
        return network

    monkeypatch.setattr(torch, "compile", make)
    fast, x, before = FastNetwork(Plain().requires_grad_(False), "auto"), torch.ones(1, 3, 2, 2), threading.enumerate()
    fast(x, None, 1)
    assert not fast.jobs and not makers and "compiled" not in vars(fast)
    assert set(threading.enumerate()) <= set(before)
    fast(x, None, 1)
    (job,) = fast.jobs.values()
    wait(fast)
    assert job.succeeded() and makers == [job.thread] and "compiled" in vars(fast)
    fast(x, None, 1)
    assert compiled(fast) == [True] and makers == [job.thread]


def test_on_waits_for_the_compiled_network(unet):
    expected = call(unet)
    fast = FastNetwork(unet, "on", backend="eager")
    assert torch.allclose(call(fast), expected, atol=1e-5) and compiled(fast) == [True]


@pytest.mark.slow
def test_every_shape_is_compiled_one_after_the_other(unet):
    expected = [call(unet, n) for n in (1, 2)]
    fast = FastNetwork(unet, "auto", backend="eager")
    for _ in range(4):
        for n in (1, 2):
            assert torch.allclose(call(fast, n), expected[n - 1], atol=1e-5)
        wait(fast)
    assert compiled(fast) == [True, True] and all(job.error is None for job in fast.jobs.values())


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_plain_network(unet, caplog):
    def broken(graph, inputs):
        raise OSError("no compiler\n here")

    expected = call(unet)
    for when in ("auto", "on"):
        fast = FastNetwork(unet, when, backend=broken)
        first_calls(fast)
        wait(fast)
        assert torch.allclose(call(fast), expected, atol=1e-6) and compiled(fast) == [False]
        assert "torch.compile failed, the plain network goes on" in caplog.text
        torch.compiler.reset()


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_no_tensor_behind(unet):
    """The exception's frames would hold what the compiler had made, for as long as the network lives."""
    held = []

    def broken(graph, inputs):
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise RuntimeError("CUDA out of memory")

    fast = FastNetwork(unet, "auto", backend=broken)
    first_calls(fast)
    wait(fast)
    gc.collect()
    (job,) = fast.jobs.values()
    assert "out of memory" in job.error and held and held[0]() is None


@pytest.mark.slow
def test_a_recording_that_fails_leaves_no_tensor_behind(unet, monkeypatch):
    held = []

    def full(*_):
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    fast = FastNetwork(unet, "auto", backend="eager")
    first_calls(fast)
    wait(fast)
    monkeypatch.setattr(fast_network, "record_function", full)
    call(fast)
    gc.collect()
    (job,) = fast.jobs.values()
    assert job.error == "CUDA out of memory" and held[0]() is None


@pytest.mark.parametrize("end", [SystemExit(3), GeneratorExit()])
def test_a_compilers_thread_that_ends_early_has_not_succeeded(end, monkeypatch, caplog):
    def leave(work):
        raise end

    monkeypatch.setattr(fast_network, "warm_up", leave)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    job = fast_network.CompileJob(lambda: None)
    job.thread.join(60)
    assert not job.succeeded() and job.error
    if isinstance(end, SystemExit):
        assert "torch.compile failed, the plain network goes on: it exited with status 3" in caplog.text


@pytest.mark.slow
def test_what_would_compile_anew_when_it_is_recorded_is_given_up(unet, caplog):
    fast = FastNetwork(unet, "auto", backend="eager")
    expected = first_calls(fast)
    wait(fast)
    torch.compiler.reset()  # what the thread compiled is forgotten
    for _ in range(2):
        assert torch.equal(call(fast), expected) and compiled(fast) == [False]
    assert caplog.text.count("the compiled network cannot be recorded, the plain one goes on") == 1


def test_the_compilers_thread_is_not_cut_off_at_the_end(unet):
    started, go_on = threading.Event(), threading.Event()

    def slow(graph, inputs):
        started.set()
        go_on.wait(30)
        return graph

    fast = FastNetwork(unet, "auto", backend=slow)
    first_calls(fast)
    assert started.wait(30)
    (job,) = fast.jobs.values()
    assert not job.thread.daemon and not job.succeeded() and compiled(fast) == [False]
    go_on.set()
    wait(fast)
    assert job.succeeded() and job.seconds > 0


@pytest.mark.parametrize(("before", "after"), [(None, "kept"), ("/tmp/torchinductor_me", "kept"), ("/mine", "/mine")])
def test_compiled_code_is_kept_where_the_user_says_else_in_our_cache(before, after, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    if before:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
    fast_network.keep_what_is_compiled(Path("kept"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == after


def test_it_tells_what_the_network_is(unet):
    fast = FastNetwork(unet, "auto")
    assert fast.config is unet.config and fast.dtype == torch.float32 and fast.device == torch.device("cpu")


class Plain(nn.Module):
    """As MVDream's: a tensor for an answer, None and numbers among the arguments."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, camera, views):
        return self.conv(x) * views + (0 if camera is None else camera)


def test_arguments_that_are_no_tensors_tell_recordings_apart():
    network, x = Plain().requires_grad_(False), torch.ones(1, 3, 2, 2)
    fast = FastNetwork(network, "auto", backend="eager")
    for camera, views in ((None, 1), (None, 4), (torch.ones(()), 4), (None, 1)):
        assert torch.allclose(fast(x, camera, views), network(x, camera, views))
    wait(fast)
    assert len(fast.recordings) == 3


def test_old_recordings_make_room():
    fast = FastNetwork(Plain().requires_grad_(False), "auto", backend="eager")
    for n in range(1, 7):
        for _ in range(2):
            fast(torch.ones(n, 3, 2, 2), None, 1)
        wait(fast)
    assert len(fast.recordings) == fast_network.MOST_RECORDINGS and len(fast.jobs) == 6


def test_who_waits_for_the_compiler_to_move_the_network_is_told(unet, caplog):
    started, go_on = threading.Event(), threading.Event()

    def slow(graph, inputs):
        started.set()
        go_on.wait(30)
        return graph

    class Watch(logging.Handler):
        def emit(self, record):
            go_on.set()  # only the line lets the compiler go on

    fast = FastNetwork(unet, "auto", backend=slow)
    first_calls(fast)
    assert started.wait(30)
    watch = Watch()
    fast_network.logger.addHandler(watch)
    try:
        with caplog.at_level(logging.INFO):
            assert fast.released() is unet
    finally:
        fast_network.logger.removeHandler(watch)
    assert caplog.text.count("waiting for torch.compile before the prior's network is moved") == 1


def test_it_forgets_its_recordings_and_gives_the_network_back(unet, caplog):
    fast = FastNetwork(unet, "auto", backend="eager")
    expected = call(fast)
    fast.forget()
    assert not fast.recordings and torch.equal(first_calls(fast), expected)
    wait(fast)
    with caplog.at_level(logging.INFO):
        assert fast.released() is unet and not fast.recordings
    assert "waiting for torch.compile" not in caplog.text
    (job,) = fast.jobs.values()
    assert job.succeeded()


@pytest.mark.parametrize("when", ["auto", "on"])
def test_a_network_that_cannot_be_recorded_answers_plainly_and_says_so_once(when, unet, monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(fast_network, "record_function", refuse)
    expected = [call(unet, n) for n in (1, 2)]
    fast = FastNetwork(unet, when, backend="eager")
    for n in (1, 2, 1):
        assert torch.allclose(call(fast, n), expected[n - 1], atol=1e-5)
    assert not fast.recordings and not fast.jobs, "nothing is compiled for nobody"
    assert caplog.text.count("the capture failed (operation not permitted when stream is capturing)") == 1


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("full"), RuntimeError("CUDA driver error: out of memory")])
def test_without_memory_for_the_first_recording_the_caller_is_told(full, unet, monkeypatch, caplog):
    def lack(*_):
        raise full

    fast = FastNetwork(unet, "auto", backend="eager")
    with monkeypatch.context() as patch:
        patch.setattr(fast_network, "record_function", lack)
        with pytest.raises(RuntimeError) as caught:
            call(fast)
    assert caught.value is full and not fast.fails and caplog.text == ""
    assert torch.allclose(first_calls(fast), call(unet), atol=1e-5) and fast.recordings
    wait(fast)


def test_without_memory_for_both_the_plain_network_stays(unet, monkeypatch, caplog):
    fast = FastNetwork(unet, "auto", backend="eager")
    expected = first_calls(fast)
    wait(fast)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fast_network, "record_function", full)
    for _ in range(2):
        assert torch.equal(call(fast), expected) and compiled(fast) == [False]
    assert caplog.text.count("the plain one goes on: CUDA out of memory") == 1
