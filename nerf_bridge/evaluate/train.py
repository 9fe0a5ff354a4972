"""Training of the evaluator: one command on a CPU or on one or several GPUs; killed, it goes on where it was.

    python -m nerf_bridge.evaluate.train --library library.npz --out data/evaluate/weights --minutes 10
    torchrun --nproc-per-node 2 -m nerf_bridge.evaluate.train ...

Step k draws from a generator seeded with (seed, process, k) alone: a resumed training sees what an unbroken one sees.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nerf_bridge.device import resolve_device
from nerf_bridge.errors import UserError
from nerf_bridge.evaluate.batches import (
    NO_COLOUR,
    EvaluatorBatch,
    EvaluatorData,
    draw_batch,
    has_noun,
    nouns_of,
    prepare,
)
from nerf_bridge.evaluate.model import Evaluator, EvaluatorConfig, Noun, save_evaluator
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.pack import load_library
from nerf_bridge.prior.text import TextEncoder, text_encoder_folder
from nerf_bridge.prior.train import agreed, learning_rate
from nerf_bridge.prior.views import compose, render_library
from nerf_bridge.run.files import replacing

logger = logging.getLogger(__name__)

SEED = 7_000_000  # of views and draws: far from those of the prior
WARM_STEPS = 20  # steps until the speed is known
LOGS = 12
EMA_KEEP = 0.999
CHECKPOINT_SECONDS = 60.0
STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class Options:
    """What a resumed training must share with the one that it goes on from."""

    batch: int
    lr: float
    views: int
    seed: int
    processes: int


@dataclass(frozen=True)
class Check:
    """Pictures never trained on: [n, 3, s, s] in 0..1 on white, and the noun of each [n]."""

    images: Tensor
    noun: Tensor

    def to(self, device: torch.device) -> Check:
        """The same pictures on `device`."""
        return Check(self.images.to(device), self.noun.to(device))


class Trainer:
    """Network, its average, and the optimiser; the average is what is kept in the end."""

    def __init__(self, config: EvaluatorConfig, device: torch.device, seed: int):
        torch.manual_seed(seed)
        self.network = Evaluator(config).to(device)
        self.average = Evaluator(config).to(device).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.device = device

    def step(self, loss: Tensor, index: int, lr: float) -> None:
        """Backward and update with learning rate `lr`."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        keep = min(EMA_KEEP, (1 + index) / (10 + index))
        averages: list[Tensor] = list(self.average.parameters())
        values: list[Tensor] = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(averages, values, 1 - keep)
        for average, value in zip(self.average.buffers(), self.network.buffers(), strict=True):
            average.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything that goes on, by name."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, p in self.network.named_parameters():
            moments = self.optimiser.state[p]
            tensors |= {
                f"moment.{key}.{name}": torch.as_tensor(moments[key]) for key in ("exp_avg", "exp_avg_sq", "step")
            }
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for prefix, network in (("network.", self.network), ("average.", self.average)):
            network.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
        for name, p in self.network.named_parameters():
            moments = {key: tensors[f"moment.{key}.{name}"].to(self.device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[p] = moments | {"step": tensors[f"moment.step.{name}"]}


def evaluator_loss(network: nn.Module, data: EvaluatorData, batch: EvaluatorBatch) -> Tensor:
    """Mean cross entropy of the right noun among all nouns, and of the right colour word among all of that noun's."""
    images, nouns, colours, scale = network(batch.images, data.noun_text[:, 0], data.colour_text[batch.noun])
    loss = functional.cross_entropy(scale * images @ nouns.T, batch.noun)
    by_colour = scale * torch.einsum("bc,btc->bt", images, colours)
    told = functional.cross_entropy(by_colour, batch.colour.clamp(min=0), reduction="none")
    named = (batch.colour != NO_COLOUR).float()
    return loss + 0.5 * (told * named).sum() / named.sum().clamp(min=1)


class Embedded(nn.Module):
    """Everything that the loss needs of the network in one call, as training over several GPUs wants it."""

    def __init__(self, network: Evaluator):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, nouns: Tensor, colours: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        network = self.network
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            pictures = network.embed_images(images)
        return pictures.float(), network.embed_captions(nouns), network.embed_captions(colours), network.scale()


@torch.no_grad()
def retrieval(network: Evaluator, noun_text: Tensor, check: Check) -> float:
    """Part of the pictures whose own noun is the nearest of all."""
    network.eval()
    words = network.embed_captions(noun_text[:, 0])
    near = torch.cat([(network.embed_images(images) @ words.T).argmax(-1) for images in check.images.split(256)])
    return float((near == check.noun).float().mean())


def make_check(models: list[LibraryModel], nouns: list[Noun], per_model: int, seed: int, threads: int) -> Check:
    """New views of `models` in their own colours on white."""
    views = render_library(models, per_model, seed, EvaluatorConfig().image_size, threads, show_progress=False)
    n = len(views.layers)
    images = compose(views.layers, torch.zeros(n, 3), torch.zeros(n, dtype=torch.bool), torch.ones(n, 3))
    places = {noun.word: i for i, noun in enumerate(nouns)}
    return Check(images, torch.tensor([places[m.noun] for m in models for _ in range(per_model)]))


def run(arguments: argparse.Namespace, rank: int, world: int, device: torch.device) -> None:
    """Render, train and save."""
    if (arguments.out / "index.json").exists():
        raise UserError(f"{arguments.out} holds a finished evaluator: choose another --out, or remove it")
    config = EvaluatorConfig()
    library = [model for model in load_library(arguments.library) if has_noun(model)]
    models = [model for model in library if not model.holdout]
    nouns = nouns_of(models)
    words = {noun.word for noun in nouns}
    held_out = [model for model in library if model.holdout and model.noun in words]
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // world)
    seed = SEED + 1000 * arguments.seed
    views = render_library(models, arguments.views, seed + rank, config.image_size, threads, rank == 0)
    encoder = TextEncoder(arguments.text_encoder or text_encoder_folder(), config.text_length).to(device)
    data = prepare(models, nouns, views, encoder, device)
    shown = {"new_views": (models, 1), "new_models": (held_out, 16)}
    checks = {
        name: make_check(part, nouns, per_model, seed + 500, threads).to(device)
        for name, (part, per_model) in shown.items()
        if part
    }
    options = Options(arguments.batch, arguments.lr, arguments.views, arguments.seed, world)
    trainer = Trainer(config, device, seed)
    log = train(trainer, data, checks, options, arguments.out, arguments.minutes, rank)
    if rank == 0:
        training = {"log": log, "models": len(models), "minutes": arguments.minutes, **vars(options)}
        save_evaluator(trainer.average, nouns, arguments.out, training)
        (arguments.out / STATE_FILE).unlink(missing_ok=True)
        logger.info("%s: %s", arguments.out, json.dumps(log[-1]))


def train(
    trainer: Trainer,
    data: EvaluatorData,
    checks: dict[str, Check],
    options: Options,
    out: Path,
    minutes: float,
    rank: int,
) -> list[dict]:
    """Train for `minutes`; the number of steps is fixed once the speed is known. Returns the log of the checks."""
    for each in (trainer.network, trainer.average):
        each.centre_captions(data.noun_text.flatten(0, 1))
    first, steps, log = resume(trainer, out / STATE_FILE, options)
    network: nn.Module = Embedded(trainer.network)
    if options.processes > 1:
        network = DistributedDataParallel(network)
    generator = torch.Generator(trainer.device)
    start = saved = time.perf_counter()
    bar = tqdm(total=steps or None, initial=first, desc="training", disable=rank > 0)
    step = first
    while not steps or step < steps:
        generator.manual_seed((SEED + options.seed) * 2**32 + rank * 2**28 + step)
        strength = min(1.0, step / (0.3 * steps)) if steps else 0.0  # clean pictures first
        loss = evaluator_loss(network, data, draw_batch(data, options.batch, strength, generator))
        trainer.step(loss, step, learning_rate(step, steps or 10**9, options.lr))
        step += 1
        bar.update()
        if step == WARM_STEPS // 2 and not steps:
            loss.item()  # waits for the device
            start = time.perf_counter()
        if step == WARM_STEPS and not steps:
            loss.item()
            pace = (time.perf_counter() - start) / (WARM_STEPS - WARM_STEPS // 2)
            steps = max(WARM_STEPS + 1, int(agreed(minutes * 60 / pace)))
            bar.total = steps
        if rank == 0 and steps and (step % max(1, steps // LOGS) == 0 or step == steps):
            log.append(report(trainer, data, checks, step, loss.item(), options, time.perf_counter() - start))
        if rank == 0 and steps and time.perf_counter() - saved > CHECKPOINT_SECONDS:
            keep(trainer, out / STATE_FILE, options, step, steps, log)
            saved = time.perf_counter()
    bar.close()
    return log


def report(
    trainer: Trainer,
    data: EvaluatorData,
    checks: dict[str, Check],
    step: int,
    loss: float,
    options: Options,
    seconds: float,
) -> dict:
    """A line of the log: step, images seen, loss, and retrieval over each of `checks`, of the averaged network."""
    line = {
        "step": step,
        "images": step * options.batch * options.processes,
        "seconds": round(seconds, 1),
        "loss": loss,
    }
    line |= {name: retrieval(trainer.average, data.noun_text, check) for name, check in checks.items()}
    logger.info("%s", json.dumps(line))
    return line


def keep(trainer: Trainer, path: Path, options: Options, step: int, steps: int, log: list[dict]) -> None:
    """Write all that a resumed training needs to one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"options": json.dumps(vars(options)), "step": str(step), "steps": str(steps), "log": json.dumps(log)}
    with replacing(path) as aside:
        save_file(trainer.state(), aside, metadata=about)


def resume(trainer: Trainer, path: Path, options: Options) -> tuple[int, int, list[dict]]:
    """First step, number of steps (0: not known yet) and log, from the file of `keep` where there is one.

    Raises:
        UserError: it is of a training with other options.
    """
    if not path.is_file():
        return 0, 0, []
    with safe_open(path, "pt") as stored:
        about = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118, no dict
    there = json.loads(about["options"])
    if there != vars(options):
        raise UserError(
            f"{path} is of a training with {there}, not {vars(options)}: choose another --out, or remove it"
        )
    trainer.restore(tensors)
    logger.info("goes on at step %s of %s", about["step"], about["steps"])
    return int(about["step"]), int(about["steps"]), json.loads(about["log"])


def main() -> None:
    parser = argparse.ArgumentParser(description="train the evaluator")
    parser.add_argument("--library", type=Path, required=True, help="packed models (nerf_bridge.prior.data.pack)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--text-encoder", type=Path, help="folder of the text encoder; default: its package")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time, rendering not counted")
    parser.add_argument("--batch", type=int, default=512, help="images a step on each device")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--views", type=int, default=64, help="views rendered of each model by each process")
    parser.add_argument("--threads", type=int, help="threads that render; default: all cores, shared by the processes")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = resolve_device(arguments.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world > 1:
        if device.type != "cuda":
            parser.error("several processes need as many GPUs")
        distributed.init_process_group("nccl", device_id=device)
    try:
        run(arguments, rank, world, device)
    except UserError as error:
        parser.error(str(error))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
