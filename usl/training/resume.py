"""A training that can be stopped and goes on: its state, its checkpoint, its metrics."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from usl import distributed
from usl.artifacts import replacing
from usl.checkpoints import load_weights, read_checkpoint, resumable
from usl.errors import InputError

log = logging.getLogger("usl")

CHECKPOINT = "checkpoint.pth"
# What checkpoints call the highest accuracy so far: ours, SimCLRv2's and FixMatch-pytorch's.
BEST = ("best", "best_acc1", "best_acc")
# What optimizers keep of each weight.
KEPT = {"Adam": {"step", "exp_avg", "exp_avg_sq"}, "Lars": {"mu"}, "SGD": {"momentum_buffer"}}


class Stateful(Protocol):
    """Something that a method keeps from step to step, such as a moving average."""

    def state_dict(self) -> Any:
        """What a checkpoint must hold of it."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Take up what a checkpoint held."""
        ...


class TrainingState:
    """Everything that a resumed run must have as it was.

    Parameters
    ----------
    network : nn.Module
    optimizer : Optimizer
    ema : float
        Decay of the weight average; 0 for none.
    folder : Path, optional
        For ``checkpoint.pth`` and ``metrics.csv``.
    settings : dict
        What must be the same for a checkpoint to be continued.
    device : torch.device
    extras : mapping of str to Stateful
        What else a checkpoint holds, by its name there.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ema: float,
        folder: Path | None,
        settings: dict[str, Any],
        device: torch.device,
        extras: Mapping[str, Stateful],
    ) -> None:
        self.network, self.optimizer, self.folder = network, optimizer, folder
        self.extras, self.device = extras, device
        self.settings = json.loads(json.dumps(settings))
        self.step = 0
        self.rows: list[dict[str, float]] = []
        # Of all tests, also of the training that this one goes on from.
        self.best = 0.0
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        # The step at which the rows begin, and that of the last test.
        self.began = self.tested_at = 0
        self.average: AveragedModel | None = None
        if ema:
            average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(network, multi_avg_fn=average)
            # The average starts from the initial weights; else the first update would copy.
            self.average.n_averaged.fill_(1)

    def add(self, numbers: dict[str, Tensor]) -> None:
        """One step is done, which found these numbers."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.count += 1
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.network)

    def mean(self, name: str) -> float:
        """Mean of a number since the epoch began, in this process."""
        return float(self.sums[name]) / self.count

    def means(self) -> dict[str, float]:
        """Means of all numbers since the epoch began, over the processes."""
        return {name: float(distributed.mean(s)) / self.count for name, s in self.sums.items()}

    def check(self) -> None:
        """Stop if the loss is not finite; what was saved before is good."""
        # Every process must find the same, or those that go on would wait for the others for ever.
        loss = float(distributed.mean(self.sums["loss"])) / self.count
        if not math.isfinite(loss):
            kept = "nothing was saved yet"
            if self.folder is not None and (self.folder / CHECKPOINT).exists():
                kept = f"the last good checkpoint is {self.folder / CHECKPOINT}"
            raise InputError(f"the loss is {loss} before step {self.step}; {kept}; lower `lr`")

    def evaluated(self) -> nn.Module:
        """The network to test and keep: the weight average if there is one."""
        return self.network if self.average is None else self.average.module

    def tested(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """What ``evaluate`` finds; of an average, also of the network that it is the average of."""
        # Norms that are not shared have statistics of their own in every process.
        for network in (self.network, self.evaluated()):
            distributed.from_main(*network.buffers())
        raw = {} if self.average is None else evaluate(self.network.eval())
        found = evaluate(self.evaluated().eval())
        self.tested_at = self.step
        return found | {f"{k} raw" if "/" in k else f"{k}/raw": v for k, v in raw.items()}

    def end_epoch(
        self,
        row: dict[str, float],
        export: Callable[[dict[str, Any], dict[str, float]], None] | None,
        *,
        whole: bool,
    ) -> None:
        """Keep the metrics of an epoch, and write what there is to write.

        Of one that is not ``whole``, because training stops within it, until there are better ones.
        """
        if self.rows and self.rows[-1]["epoch"] == row["epoch"]:
            self.rows.pop()
        self.rows.append(row)
        self.best = max(self.best, row.get("accuracy", 0.0))
        if whole:
            self.sums, self.count = {}, 0
        text = ", ".join(f"{k} {v:.4g}" for k, v in row.items())
        if distributed.rank() == 0:
            log.info("%s", text)
        if export is not None and self.folder is not None and distributed.rank() == 0:
            # Before the checkpoint: whoever is killed in between does this epoch again.
            export(self.content(), row)
        self.save()
        self.save_metrics()

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.network.state_dict(),
            "ema_model": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "epoch": self.rows[-1]["epoch"] if self.rows else 0,
            "metrics": self.rows,
            "best": self.best,
            "sums": self.sums,
            "count": self.count,
            "began": self.began,
            "tested_at": self.tested_at,
            "settings": self.settings,
            "random": torch.get_rng_state(),
        } | {name: extra.state_dict() for name, extra in self.extras.items()}

    def save(self) -> None:
        """Write the checkpoint, atomically; the one before stays until this one is complete."""
        if self.folder is None or distributed.rank() != 0:
            return
        buffer = io.BytesIO()
        torch.save(self.content(), buffer)
        with replacing(self.folder / CHECKPOINT) as file:
            file.write(buffer.getbuffer())

    def save_metrics(self) -> None:
        """Write ``metrics.csv``, a row an epoch."""
        if self.folder is not None and distributed.rank() == 0:
            with replacing(self.folder / "metrics.csv") as file:
                file.write(pd.DataFrame(self.rows).to_csv(index=False).encode())

    def restore(self, per_epoch: int, *, given: Path | None = None) -> None:
        """Take up the folder's checkpoint if there is one, or one from elsewhere.

        Parameters
        ----------
        per_epoch : int
            Steps of an epoch.
        given : Path, optional
            A checkpoint of this project, or in a layout of the original's, whatever its settings
            were. A run that started from it and was interrupted goes on from the folder's own.

        Raises
        ------
        InputError
            It is of another training, of another network, or of other settings, which are named.
        """
        if self.folder is not None:
            parts = set(self.extras) - {"scaler"}
            content = own_checkpoint(self.folder, self.settings, parts=parts, given=given)
            if content is not None:
                self._take_up(content, self.folder / CHECKPOINT, per_epoch)
                return
        if given is not None:
            self._take_up(read_checkpoint(given), given, per_epoch)

    def check_processes(self) -> None:
        """Raise InputError, in every process, unless all are at the same step."""
        step = torch.tensor([self.step, self.step**2], dtype=torch.float64, device=self.device)
        total, squares = distributed.total(step).tolist()
        if squares * distributed.world_size() != total**2:
            raise InputError(
                f"processes begin at different steps, this one at {self.step}; let all of them "
                "share one `run_dir`"
            )

    def _take_up(self, content: dict[str, Any], path: Path, per_epoch: int) -> None:
        """Go on from what a checkpoint holds; see :func:`usl.checkpoints.resumable`."""
        average = load_training(content, path, self.network, self.optimizer)
        if self.average is not None:
            load_weights(self.average.module, average, where=str(path))
        for name, extra in self.extras.items():
            # That of losses that were not scaled is empty.
            if content.get(name):
                extra.load_state_dict(content[name])
        schedule = content.get("scheduler") or {}
        epochs = int(content.get("epoch", 0))
        self.step = int(content.get("step", schedule.get("last_epoch", epochs * per_epoch)))
        self.rows = content.get("metrics", [])
        tested = [row.get("accuracy", 0.0) for row in self.rows]
        self.best = max([float(content.get(name) or 0.0) for name in BEST] + tested)
        self.began = int(content.get("began", 0 if self.rows else self.step))
        self.tested_at = int(content.get("tested_at", 0))
        self.sums = {k: v.to(self.device) for k, v in content.get("sums", {}).items()}
        self.count = content.get("count", 0)
        if "random" in content:
            torch.set_rng_state(content["random"])
        # Whoever was killed after the checkpoint has not written its last row.
        self.save_metrics()
        log.info("training goes on from step %d of %s", self.step, path)


def own_checkpoint(
    folder: Path,
    settings: dict[str, Any],
    *,
    parts: Collection[str] = (),
    given: Path | None = None,
) -> dict[str, Any] | None:
    """What the checkpoint holds that a training with these settings has left in its folder.

    Parameters
    ----------
    folder : Path
    settings : dict
        What must be the same.
    parts : collection of str
        What it must hold beside weights and settings.
    given : Path, optional
        Where the training starts otherwise: from a checkpoint from elsewhere.

    Returns
    -------
    dict, or None
        None where there is none; nor with ``given`` where it is of another training.

    Raises
    ------
    InputError
        Without ``given``: it is of another training, or of other settings, which are named.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    content: dict[str, Any] = read_checkpoint(path)
    known = {"settings", "model", *parts} <= set(content)
    if not known and given is None:
        raise InputError(f"{path} was not made by this training; remove it")
    wanted = json.loads(json.dumps(settings))
    different = _differences(content["settings"], wanted) if known else ["all"]
    if different and given is None:
        raise InputError(
            f"{path} is of other settings: {'; '.join(different[:3])}; "
            "choose another `run_name`, or `resume` none to begin anew"
        )
    return None if different else content


def load_training(
    content: dict[str, Any], path: Path, network: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put weights, and what the optimizer keeps of them, where a training is to go on.

    The options of the optimizer stay.

    Parameters
    ----------
    content : dict
        Of a checkpoint of this project, or in a layout of the original's.
    path : Path
        Of it, for errors.
    network : nn.Module
    optimizer : Optimizer
        Over parameters of ``network``.

    Returns
    -------
    dict of str to Tensor
        The average of the weights; the weights where it has none.

    Raises
    ------
    InputError
        It is of no training, or of another network or optimizer.
    """
    weights, average = resumable(content, path)
    load_weights(network, weights, where=str(path))
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    known = KEPT[type(optimizer).__name__]
    try:
        optimizer.load_state_dict(content["optimizer"])
        fits = all(set(kept) <= known for kept in optimizer.state.values())
    except (AttributeError, KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(
            f"checkpoint {path} has no optimizer of this training; give one of this stage"
        )
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group |= options
    return average or weights


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Settings that differ, as ``KEY was A and is B``.

    One that an earlier version did not have agrees with what changes nothing: 0, False, no text.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            if key not in old and not new[key]:
                continue
            found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if old == new else [f"{name} was {old} and is {new}"]
