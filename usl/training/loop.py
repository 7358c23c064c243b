"""The training loop of every method: epochs, schedule, precision, accumulation, metrics."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from usl import distributed
from usl.artifacts import fingerprint
from usl.augment.rng import permutation
from usl.errors import InputError
from usl.training.resume import Stateful, TrainingState, own_checkpoint

log = logging.getLogger("usl")

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


# Factor of the learning rate when a share of the steps is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "epoch-cosine": _cosine,
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
    schedule : {"cosine", "epoch-cosine", "fixmatch", "constant"}
        Half a cosine, down to 0, which falls at every step or at the beginning of every epoch;
        FixMatch's seven sixteenths of a half-turn; or none.
    start : int
        Epochs that count as done before the first step.
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
    check_every : int
        Steps between two looks at the loss: whether it is finite, and what the progress bar says.
        Each waits for the device.
    shared_norms : bool
        Batch norm over the batches of all processes.
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
    start: int = 0
    stop: int = 0
    save_every: int = 0
    evaluate_every: int = 1
    check_every: int = 20
    shared_norms: bool = True
    seed: int = 0

    def check(self, images: int) -> None:
        """Raise InputError where the plan is impossible for so many images."""
        size, parts = self.batch_size, self.accumulate * distributed.world_size()
        if images < 2:
            raise InputError(f"there are {images} images to train on; give at least 2")
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
        last = -(-self.total(images) // (images // size)) - 1
        if not 0 <= self.start <= last:
            raise InputError(f"`start_epoch` is {self.start}; choose 0 to {last}")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"unknown `precision` {self.precision!r}; choose one of {known}")
        if self.warmup < 0:
            raise InputError(f"`warmup` is {self.warmup} steps; choose 0 or more")
        if self.evaluate_every < 1:
            raise InputError(f"`evaluate_every` is {self.evaluate_every} epochs; choose 1 or more")
        if self.save_every < 0:
            raise InputError(f"`save_every` is {self.save_every} steps; choose 0 or more")
        if self.check_every < 1:
            raise InputError(f"`check_every` is {self.check_every} steps; choose at least 1")
        if not 0 <= self.ema < 1:
            raise InputError(f"`ema` is {self.ema}; choose 0 to below 1")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise InputError(f"`lr` is {self.lr}; choose a positive number")

    def total(self, images: int) -> int:
        """Steps in all."""
        return self.steps or self.epochs * (images // self.batch_size)

    def factor(self, step: int, total: int, *, per_epoch: int = 1) -> float:
        """What the learning rate is multiplied with at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule.startswith("epoch-"):
            step -= step % per_epoch
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
    began : int
        The step before its first one.
    """

    network: nn.Module
    metrics: pd.DataFrame
    began: int = 0


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
    resume: bool | Path = True,
    prepare: Callable[[Tensor, int, int], None] | None = None,
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
    resume : bool or Path
        Continue ``folder/checkpoint.pth`` if it is there. On the CPU the weights are then those
        of a run that was never interrupted. A path: continue this checkpoint, of this project or
        in the layout of the original's, with these settings; but a run that did so and was
        interrupted goes on from its own.
    prepare : callable, optional
        Called before each step with what it and the step after it will be called with, so that
        files are decoded meanwhile.
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
        An impossible plan, a checkpoint of other settings, of another network or with nothing left
        to do, a loss that is not finite (the last good checkpoint stays), or a folder that cannot
        be written.
    """
    plan.check(images)
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
    given = resume if isinstance(resume, Path) else None
    state = TrainingState(
        network,
        optimizer,
        ema=plan.ema,
        folder=folder,
        settings=_lasting(plan, settings, given),
        device=device,
        extras={"scaler": scaler, **(extras or {})},
    )
    per_epoch = images // plan.batch_size
    state.step = state.began = plan.start * per_epoch
    if resume:
        state.restore(per_epoch, given=given)
    state.check_processes()
    step_of = make_step(distributed.parallel(network, device, shared_norms=plan.shared_norms))
    total = plan.total(images)
    writer = _tensorboard(folder)
    end = _end(plan, images, state.step, state.rows)
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
            if prepare is not None:
                coming = [batch, _batch_after(order, number, epoch, images, plan)]
                for step, some in enumerate(coming[: end - state.step], start=state.step):
                    for part in _parts(some, plan):
                        prepare(part, step // per_epoch, step)
            lr = plan.lr * plan.factor(state.step, total, per_epoch=per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            numbers = _one_step(step_of, batch, optimizer, scaler, plan, epoch, state.step)
            if after_step is not None:
                after_step(state.step)
            state.add(numbers)
            bar.update()
            if state.step % plan.check_every == 0:
                state.check()
                rate = (state.step - first) * plan.batch_size / (time.perf_counter() - begin)
                shown = {name: f"{state.mean(name):.3f}" for name in state.sums}
                bar.set_postfix(shown | {"lr": f"{lr:.3g}", "images_s": f"{rate:.0f}"})
            if plan.save_every and state.step % plan.save_every == 0 and number + 1 < per_epoch:
                state.check()
                state.save()
        state.check()
        spent = time.perf_counter() - begin
        whole = state.step % per_epoch == 0
        row = {"epoch": epoch + 1, "step": state.step, "lr": lr} | state.means()
        row["images_per_second"] = (state.step - first) * plan.batch_size / spent
        if evaluate and ((epoch + 1) % plan.evaluate_every == 0 or state.step == end):
            try:
                row |= state.tested(evaluate)
            except InputError:
                # Such as test images that cannot be read: the training is not lost.
                state.end_epoch(row, None, whole=whole)
                raise
        state.end_epoch(row, export, whole=whole)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, state.step)
    bar.close()
    if writer is not None:
        writer.close()
    if evaluate and state.tested_at < state.step:
        # Taken up where it was to stop, between two tests.
        state.rows[-1] |= state.tested(evaluate)
        state.save()
        state.save_metrics()
    return Trained(state.evaluated().eval(), pd.DataFrame(state.rows), state.began)


def check_own(
    plan: Plan, *, images: int, folder: Path | None, settings: dict[str, Any], resume: bool | Path
) -> None:
    """Raise InputError where :func:`fit`, so called, would not go on from its own checkpoint."""
    if folder is None or not resume:
        return
    given = resume if isinstance(resume, Path) else None
    content = own_checkpoint(folder, _lasting(plan, settings, given), given=given)
    if content is not None:
        _end(plan, images, content["step"], content["metrics"])


def _lasting(plan: Plan, settings: dict[str, Any] | None, given: Path | None) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    free = ("save_every", "stop", "check_every")
    fixed = {k: v for k, v in asdict(plan).items() if k not in free}
    if plan.shared_norms:
        # As always before there was a choice.
        del fixed["shared_norms"]
    if given is not None:
        fixed["resumed"] = fingerprint(given)
    return (settings or {}) | {"plan": fixed}


def _end(plan: Plan, images: int, step: int, rows: Sequence[dict[str, float]]) -> int:
    """The step to stop at; InputError where there is nothing left to do or to test."""
    total = plan.total(images)
    end = min(total, plan.stop or total)
    if step > end or (step == end and not rows):
        more = "stop" if end < total else "steps" if plan.steps else "epochs"
        raise InputError(
            f"step {step} of {end} is done already; set more `{more}`, test, or begin anew with "
            "`resume` none"
        )
    return end


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
    for mine in _parts(batch, plan):
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


def _parts(batch: Tensor, plan: Plan) -> list[Tensor]:
    """Rows of each part of a batch that are this process's."""
    processes, rank = distributed.world_size(), distributed.rank()
    return [part.chunk(processes)[rank] for part in batch.chunk(plan.accumulate)]


def _batch_after(order: Tensor, number: int, epoch: int, images: int, plan: Plan) -> Tensor:
    """The batch that follows a batch of an epoch, perhaps in the next one."""
    number += 1
    if number == images // plan.batch_size:
        number, order = 0, permutation(images, seed=plan.seed, epoch=epoch + 1)
    return order[number * plan.batch_size : (number + 1) * plan.batch_size]


def _tensorboard(folder: Path | None) -> Any:
    """A TensorBoard writer, if TensorBoard is installed."""
    if folder is None or distributed.rank() != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
