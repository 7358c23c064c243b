"""The training loop of every method: epochs, schedule, precision, accumulation, metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from usl import distributed
from usl.augment.rng import permutation
from usl.errors import InputError
from usl.training.resume import Stateful, TrainingState

log = logging.getLogger("usl")

# Steps between two looks at whether the loss is still finite; each look waits for the device.
CHECK_EVERY = 20
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Factor of the learning rate when a share of the steps is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "fixmatch": lambda done: math.cos(7 * math.pi * done / 16),
    "constant": lambda done: 1.0,
}

# (indices of the images of this process (n,), epoch, step) to (loss, numbers to report)
Step = Callable[[Tensor, int, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    epochs : int
        Passes over the images; incomplete last batches are dropped.
    steps : int
        Instead of epochs, if above 0.
    batch_size : int
        Images of one step over all processes.
    lr : float
        Highest learning rate.
    warmup : int
        Steps of linear warm-up.
    schedule : {"cosine", "fixmatch", "constant"}
        Half a cosine, down to 0; FixMatch's seven sixteenths of a half-turn; or none.
    stop : int
        Steps after which to stop, with the schedule of them all; 0: none.
    accumulate : int
        Parts of a batch, one after the other, to save memory.
    precision : {"float32", "bfloat16", "float16"}
        Of autocast.
    ema : float
        Decay of the weight average; 0 for none.
    save_every : int
        Steps between checkpoints; 0 for the end of each epoch.
    evaluate_every : int
        Epochs between evaluations.
    seed : int
    """

    epochs: int
    batch_size: int
    lr: float
    steps: int = 0
    warmup: int = 0
    schedule: str = "cosine"
    accumulate: int = 1
    precision: str = "float32"
    ema: float = 0.0
    stop: int = 0
    save_every: int = 0
    evaluate_every: int = 1
    seed: int = 0

    def check(self, images: int) -> None:
        """Raise InputError where the plan is impossible for so many images."""
        size, parts = self.batch_size, self.accumulate * distributed.world_size()
        if not 2 <= size <= images:
            raise InputError(f"`batch_size` is {size}; choose 2 to {images}, the images")
        if self.accumulate < 1 or size % parts or size // parts < 2:
            raise InputError(
                f"`batch_size` is {size}, which cannot be cut into {parts} parts of at least 2; "
                "choose another, or another `accumulate`"
            )
        if self.steps < 0 or (self.epochs < 1 and not self.steps):
            raise InputError(
                f"`epochs` is {self.epochs} and `steps` {self.steps}; choose at least 1 of either"
            )
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise InputError(f"unknown `schedule` {self.schedule!r}; choose one of {known}")
        if self.stop < 0:
            raise InputError(f"`stop` is {self.stop}; choose 0, for none, or more")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"unknown `precision` {self.precision!r}; choose one of {known}")
        if self.warmup < 0:
            raise InputError(f"`warmup` is {self.warmup} steps; choose 0 or more")
        if self.evaluate_every < 1 or self.save_every < 0:
            raise InputError(
                f"`evaluate_every` is {self.evaluate_every} and `save_every` {self.save_every}; "
                "choose at least 1 epoch, and 0 or more steps"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"`ema` is {self.ema}; choose 0 to below 1")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise InputError(f"`lr` is {self.lr}; choose a positive number")

    def total(self, images: int) -> int:
        """Steps in all."""
        return self.steps or self.epochs * (images // self.batch_size)

    def factor(self, step: int, total: int) -> float:
        """What the learning rate is multiplied with at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return SCHEDULES[self.schedule]((step - self.warmup) / max(1, total - self.warmup))


@dataclass
class Trained:
    """What :func:`fit` returns.

    Attributes
    ----------
    network : nn.Module
        In eval mode: the weight average if there is one.
    metrics : DataFrame
        One row an epoch.
    """

    network: nn.Module
    metrics: pd.DataFrame


def fit(
    network: nn.Module,
    make_step: Callable[[nn.Module], Step],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    *,
    images: int,
    device: torch.device,
    folder: Path | None = None,
    settings: dict[str, Any] | None = None,
    resume: bool = True,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    after_step: Callable[[int], None] | None = None,
    extras: Mapping[str, Stateful] | None = None,
    export: Callable[[dict[str, Any], dict[str, float]], None] | None = None,
) -> Trained:
    """Train a network.

    Parameters
    ----------
    network : nn.Module
        On ``device``.
    make_step : callable
        Given the network as it is to be called in training, returns the step of the method.
    optimizer : Optimizer
        Over the parameters of ``network``.
    plan : Plan
    images : int
        How many there are; each epoch visits them in an order of its own.
    device : torch.device
    folder : Path, optional
        For ``checkpoint.pth``, ``metrics.csv`` and TensorBoard.
    settings : dict, optional
        What must be the same for a checkpoint to be continued.
    resume : bool
        Continue ``folder/checkpoint.pth`` if it is there. On the CPU the weights are then those
        of a run that was never interrupted.
    evaluate : callable, optional
        Given a network in eval mode, returns numbers for the metrics; those named ``name/part``
        share a picture in the report. With a weight average it is called twice, for the network
        itself, whose numbers are marked ``raw``, and then for its average.
    after_step : callable, optional
        Called with the number of the step, once its update of the weights is done.
    extras : mapping of str to Stateful, optional
        What else a checkpoint holds, by its name there.
    export : callable, optional
        Given what the checkpoint holds and the metrics of an epoch, writes it in another layout.

    Returns
    -------
    Trained

    Raises
    ------
    InputError
        An impossible plan, a checkpoint of other settings, a loss that is not finite (the last
        good checkpoint stays), or a folder that cannot be written.
    """
    plan.check(images)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
    fixed = {k: v for k, v in asdict(plan).items() if k not in ("save_every", "stop")}
    state = TrainingState(
        network,
        optimizer,
        ema=plan.ema,
        folder=folder,
        settings=(settings or {}) | {"plan": fixed},
        device=device,
        extras={"scaler": scaler, **(extras or {})},
    )
    if resume:
        state.restore()
    step_of = make_step(distributed.parallel(network, device))
    per_epoch = images // plan.batch_size
    total = plan.total(images)
    writer = _tensorboard(folder)
    end = min(total, plan.stop or total)
    bar = tqdm(
        total=end,
        initial=state.step,
        unit="step",
        disable=None if distributed.is_main() else True,
        desc="training",
    )
    while state.step < end:
        epoch, offset = divmod(state.step, per_epoch)
        order = permutation(images, seed=plan.seed, epoch=epoch)
        begin, first = time.perf_counter(), state.step
        network.train()
        for number in range(offset, min(per_epoch, offset + end - state.step)):
            batch = order[number * plan.batch_size : (number + 1) * plan.batch_size].to(device)
            lr = plan.lr * plan.factor(state.step, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            numbers = _one_step(step_of, batch, optimizer, scaler, plan, epoch, state.step)
            if after_step is not None:
                after_step(state.step)
            state.add(numbers)
            bar.update()
            if state.step % CHECK_EVERY == 0:
                state.check()
                rate = (state.step - first) * plan.batch_size / (time.perf_counter() - begin)
                shown = {name: f"{state.mean(name):.3f}" for name in state.sums}
                bar.set_postfix(shown | {"lr": f"{lr:.3g}", "images_s": f"{rate:.0f}"})
            if plan.save_every and state.step % plan.save_every == 0 and number + 1 < per_epoch:
                state.check()
                state.save()
        state.check()
        spent = time.perf_counter() - begin
        row = {"epoch": epoch + 1, "step": state.step, "lr": lr} | state.means()
        row["images_per_second"] = (state.step - first) * plan.batch_size / spent
        if evaluate and ((epoch + 1) % plan.evaluate_every == 0 or state.step == end):
            row |= state.tested(evaluate)
        state.end_epoch(row, export)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, state.step)
    bar.close()
    if writer is not None:
        writer.close()
    return Trained(state.evaluated().eval(), pd.DataFrame(state.rows))


def _one_step(
    step_of: Step,
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    plan: Plan,
    epoch: int,
    step: int,
) -> dict[str, Tensor]:
    """Forward, backward and update; every process takes its rows of each part of the batch."""
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part in batch.chunk(plan.accumulate):
        mine = part.chunk(distributed.world_size())[distributed.rank()]
        dtype = PRECISIONS[plan.precision]
        with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype is not None):
            loss, numbers = step_of(mine, epoch, step)
        torch.autograd.backward(scaler.scale(loss / plan.accumulate))
        for name, value in ({"loss": loss} | numbers).items():
            share = value.detach().double() / plan.accumulate
            sums[name] = sums[name] + share if name in sums else share
    scaler.step(optimizer)
    scaler.update()
    return sums


def _tensorboard(folder: Path | None) -> Any:
    """A TensorBoard writer, if TensorBoard is installed."""
    if folder is None or distributed.rank() != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
