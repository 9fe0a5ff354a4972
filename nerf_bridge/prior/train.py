"""Training of the embedded prior: one command, one or several GPUs, stops on time with usable weights.

    torchrun --nproc-per-node 2 -m nerf_bridge.prior.train --library library.npz --out weights --minutes 15

Everything lives on the GPU: the rendered layers, the text vectors, the drawing of batches. The network is compiled;
drawing, forward and backward are one CUDA graph, the optimiser another; between them the gradients of all GPUs are
averaged as one flat tensor. Meanwhile the CPU renders new views in the place of the old ones.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from nerf_bridge.cuda_graphs import record, warm_up
from nerf_bridge.errors import UserError
from nerf_bridge.prior.batches import DEGRADED_SHARE, Batch, TrainingData, draw_batch, prepare
from nerf_bridge.prior.data.captions import build_caption_table
from nerf_bridge.prior.data.pack import load_library
from nerf_bridge.prior.designs import DESIGNS
from nerf_bridge.prior.embedded import load_weights, save_weights
from nerf_bridge.prior.fresh_views import FreshViews
from nerf_bridge.prior.probe import AzimuthProbe, own_designs
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.prior.unet import TOGETHER, Condition, UNet, UNetConfig, channels_last, schedule
from nerf_bridge.prior.views import render_library

logger = logging.getLogger(__name__)

PROBES = 12
UNTIMED_STEPS, WARM_STEPS = 100, 200  # the first ones are slow: several GPUs find each other; then the speed is taken
NOISY_EVERY = 4  # one set in this many has noise times from 0.7 to 0.98 only
ASTRAY_EVERY = 2  # one set in this many has gone astray
ASTRAY_FROM = 0.3  # the noise time from which on it is shown so

Network = Callable[[Tensor, Tensor, Condition], Tensor]


def draw_times(b: int, device: torch.device, noisy_every: int) -> Tensor:
    """Uniform in (0, 1), but of one set in `noisy_every` in [0.7, 0.98], where camera and design are learned."""
    u = torch.rand(b, device=device)
    high = torch.arange(b, device=device) // TOGETHER % noisy_every == 0
    return torch.where(high, 0.7 + 0.28 * u, 0.001 + 0.998 * u)


def diffusion_loss(network: Network, batch: Batch, noisy_every: int) -> Tensor:
    """Mean squared error of the predicted v at random times.

    Of an image that has gone astray by d, the v that leads back to the image is larger by (alpha^2 / sigma) d.
    """
    t = draw_times(len(batch.images), batch.images.device, noisy_every)[:, None, None, None]
    alpha, sigma = schedule(t)
    noise = torch.randn_like(batch.images)
    off = (t >= ASTRAY_FROM) * (batch.astray - batch.images)
    noised = alpha * (batch.images + off) + sigma * noise
    v = network(noised.to(torch.bfloat16), t.flatten(), batch.condition)
    back = alpha.square() / sigma * off
    return nn.functional.mse_loss(v.float(), alpha * noise - sigma * batch.images + back)


class FlatParameters:
    """All parameters as one bfloat16 tensor that the network uses, beside float32 masters and their average (EMA).

    Convolution weights lie channels-last in it, as the kernels want them.
    """

    def __init__(self, network: UNet):
        self.parameters = list(network.parameters())
        n = sum(p.numel() for p in self.parameters)
        device = self.parameters[0].device
        self.master = nn.Parameter(torch.empty(n, device=device))
        for p, place in zip(self.parameters, self._views(self.master.data), strict=True):
            place.copy_(p.data)
        self.weights = self.master.data.bfloat16()
        self.gradient = torch.zeros_like(self.weights)
        self.average = self.master.data.clone()
        views = zip(self.parameters, self._views(self.weights), self._views(self.gradient), strict=True)
        for p, weight, gradient in views:
            p.data, p.grad = weight, gradient

    def _views(self, flat: Tensor) -> list[Tensor]:
        views, start = [], 0
        for p in self.parameters:
            piece = flat[start : start + p.numel()]
            if p.ndim == 4:
                c_out, c_in, height, width = p.shape
                views.append(piece.view(c_out, height, width, c_in).permute(0, 3, 1, 2))
            else:
                views.append(piece.view(p.shape))
            start += p.numel()
        return views

    def averaged(self, config: UNetConfig) -> UNet:
        """A float32 network with the averaged weights."""
        network = UNet(config).to(self.average.device)
        with torch.no_grad():
            for p, value in zip(network.parameters(), self._views(self.average), strict=True):
                p.copy_(value)
        return network


class Trainer:
    """The two captured graphs of a training step, and the tensors that steer them."""

    def __init__(
        self, network: UNet, data: TrainingData, batch: int, in_sets: int, noisy_every: int, astray_every: int
    ):
        self.flat = FlatParameters(network)
        device = self.flat.master.device
        self.lr = torch.zeros((), device=device)
        self.ema_keep = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)
        self.gradient = torch.zeros_like(self.flat.master)
        self.flat.master.grad = self.gradient
        self.optimiser = torch.optim.AdamW(
            [self.flat.master], lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=True
        )
        compiled = torch.compile(network, dynamic=False)
        draw = functools.partial(draw_batch, data, batch, in_sets, astray_every)
        self.backward_graph = capture(lambda: self._backward(compiled, draw, noisy_every))
        self.update_graph = capture(self._update)

    def _backward(self, network: Network, draw: Callable[[], Batch], noisy_every: int) -> None:
        self.flat.gradient.zero_()
        loss = diffusion_loss(network, draw(), noisy_every)
        loss.backward()
        self.loss.lerp_(loss.detach(), 0.01)

    def _update(self) -> None:
        gradient = self.flat.gradient.float()
        self.gradient.copy_(gradient * (1 / gradient.norm().clamp(min=1.0)))
        self.optimiser.step()
        self.flat.weights.copy_(self.flat.master.data)
        self.flat.average.lerp_(self.flat.master.data, 1 - self.ema_keep)

    def step(self, index: int, lr: float) -> None:
        """One step with learning rate `lr`; no synchronisation with the host."""
        self.lr.fill_(lr)
        self.ema_keep.fill_(min(0.9995, (1 + index) / (10 + index)))
        self.backward_graph.replay()
        if distributed.is_initialized():
            distributed.all_reduce(self.flat.gradient, distributed.ReduceOp.AVG)
        self.update_graph.replay()


def capture(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Run `work` three times to warm up, then capture it as a CUDA graph."""
    warm_up(work, 3)
    return record(work)[0]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 200 steps, flat, then linear decay to 1 % over the last 60 % of the steps."""
    done = step / max(steps, 1)
    return peak * min(1.0, (step + 1) / 200) * min(1.0, max(0.01, (1 - done) / 0.6))


def agreed(value: float) -> float:
    """`value` of the first process, in all of them."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor([value], device="cuda", dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return float(shared.item())


def train(
    trainer: Trainer,
    probe: AzimuthProbe,
    config: UNetConfig,
    minutes: float,
    peak_lr: float,
    between: Callable[[], object],
    keep: Callable[[UNet, list[dict]], None] | None,
) -> None:
    """Train for `minutes`; the number of steps is fixed once the speed is known.

    Args:
        between: called after every step.
        keep: takes the averaged network and the log so far, PROBES times on the way and at the end; None: nothing.

    Raises:
        UserError: the time is too short to find out the speed.
    """
    torch.cuda.synchronize()
    start = time.perf_counter()
    for step in range(WARM_STEPS):
        if step == UNTIMED_STEPS:
            torch.cuda.synchronize()
            timed_from = time.perf_counter()
        trainer.step(step, learning_rate(step, 10**9, peak_lr))
        between()
    torch.cuda.synchronize()
    now = time.perf_counter()
    seconds_a_step = (now - timed_from) / (WARM_STEPS - UNTIMED_STEPS)
    steps = WARM_STEPS + int(agreed((minutes * 60 - (now - start)) / seconds_a_step))
    if steps <= WARM_STEPS:
        raise UserError(f"--minutes {minutes:g} is too short: {WARM_STEPS} steps took {now - start:.0f} s")
    log: list[dict] = []
    for step in range(WARM_STEPS, steps):
        trainer.step(step, learning_rate(step, steps, peak_lr))
        between()
        if keep and (step % max(1, steps // PROBES) == 0 or step == steps - 1):
            averaged = trainer.flat.averaged(config)
            figures = probe.measure(copy.deepcopy(averaged).to(torch.bfloat16))
            log.append({"step": step, "seconds": time.perf_counter() - start, "loss": trainer.loss.item()} | figures)
            logger.info("%s", json.dumps(log[-1]))
            keep(averaged, log)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nerf_bridge.prior.train", description="train the embedded prior")
    parser.add_argument("--library", type=Path, required=True, help="packed models (nerf_bridge.prior.data.pack)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--text-encoder", type=Path, help="folder of the text encoder; default: its package")
    parser.add_argument(
        "--start-from", type=Path, help="folder of weights to go on from, with fresh moments and warm-up"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the weights that lie in --out")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time, rendering not counted")
    parser.add_argument("--batch", type=int, default=256, help="images a step on each GPU")
    parser.add_argument(
        "--in-sets", type=int, default=0,
        help=f"so many images of a step in sets of {TOGETHER} views of one object, denoised together (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--noisy-every", type=int, default=NOISY_EVERY,
        help=f"one set in so many has noise times from 0.7 to 0.98 only (default: {NOISY_EVERY})",
    )  # fmt: skip
    parser.add_argument(
        "--astray-every", type=int, default=ASTRAY_EVERY,
        help="one set in so many is shown in wrong colours and with faint thin parts, and the true image is the answer;"
        f" 0: none (default: {ASTRAY_EVERY})",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--views", type=int, default=100, help="views of each model at a time on each GPU")
    parser.add_argument("--threads", type=int, help="threads that render; default: all cores, shared by the processes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = int(os.environ.get("LOCAL_RANK", 0))
    torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl", device_id=torch.device("cuda", device))
    try:
        run(arguments, rank, world)
    except UserError as error:
        sys.exit(f"{parser.prog}: error: {error}")
    if world > 1:
        distributed.destroy_process_group()


def run(arguments: argparse.Namespace, rank: int, world: int) -> None:
    """Render, train and save."""
    if arguments.noisy_every < 1:
        raise UserError(f"--noisy-every: expected a whole number from 1, got {arguments.noisy_every}")
    if arguments.astray_every < 0:
        raise UserError(f"--astray-every: expected a whole number from 0, got {arguments.astray_every}")
    block = arguments.noisy_every * DEGRADED_SHARE * TOGETHER  # images in sets that hold one flawed set of high noise
    if arguments.in_sets % block or not 0 <= arguments.in_sets <= arguments.batch:
        raise UserError(
            f"--in-sets: expected a multiple of {block} up to --batch ({arguments.batch}), got {arguments.in_sets}"
        )
    start, earlier = where_to_start(arguments)
    config = UNetConfig()
    models = [model for model in load_library(arguments.library) if not model.holdout]
    captions = build_caption_table(models, arguments.seed)
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // world)
    began = time.perf_counter()
    seed = 1000 * arguments.seed + rank
    views = render_library(models, arguments.views, seed, config.image_size, threads, rank == 0)
    logger.info("rank %d rendered %d views in %.0f s", rank, len(views.layers), time.perf_counter() - began)
    torch.manual_seed(arguments.seed)
    network = load_weights(start).network if start else UNet(config)
    encoder = TextEncoder(arguments.text_encoder or text_encoder_folder(), config.text_length).to("cuda")
    data = prepare(models, captions, views, encoder, torch.device("cuda"))
    own = own_designs(captions, models, data.designs)
    probe = AzimuthProbe.build(models, encoder, torch.device("cuda"), designs=own)
    torch.manual_seed(arguments.seed + 1 + rank)
    trainer = Trainer(
        channels_last(network.to("cuda")),
        data,
        arguments.batch,
        arguments.in_sets,
        arguments.noisy_every,
        arguments.astray_every,
    )
    recorded = ("batch", "in_sets", "noisy_every", "astray_every", "lr", "views", "minutes", "seed")
    options = {name: getattr(arguments, name) for name in recorded}
    together = TOGETHER if arguments.in_sets else 1
    training = {"gpus": world, "models": len(models), **options}

    def keep(averaged: UNet, log: list[dict]) -> None:
        save_weights(averaged, arguments.out, training | {"log": log, "earlier": earlier}, DESIGNS, together)

    fresh = FreshViews(models, arguments.views, seed + world, config.image_size, max(1, threads - 1))
    renew = functools.partial(fresh.replace_one, data)
    try:
        train(trainer, probe, config, arguments.minutes, arguments.lr, renew, keep if rank == 0 else None)
    finally:
        fresh.stop()


def where_to_start(arguments: argparse.Namespace) -> tuple[Path | None, list[dict]]:
    """The folder of weights to go on from, if any, and the records of the trainings that made them, oldest first.

    Raises:
        UserError: both --start-from and --resume are given, or there are no weights.
    """
    if arguments.resume and arguments.start_from:
        raise UserError("--resume goes on from --out: give it or --start-from, not both")
    folder = arguments.out if arguments.resume else arguments.start_from
    if folder is None:
        return None, []
    try:
        last = json.loads((folder / "index.json").read_text(encoding="utf-8"))["training"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"there are no weights to go on from in {folder}") from None
    return folder, [*last.get("earlier", []), {name: value for name, value in last.items() if name != "earlier"}]


if __name__ == "__main__":
    main()
