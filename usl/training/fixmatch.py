"""FixMatch (Sohn et al., NeurIPS 2020): pseudo-labels of weak views train strong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl import distributed
from usl.artifacts import replacing
from usl.augment.rng import Key, permutation
from usl.augment.views import Transform, Views
from usl.errors import InputError
from usl.lists.read import Labelled
from usl.training.loop import Step

LABELLED, WEAK, STRONG = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class FixMatch:
    """Options of the method.

    Attributes
    ----------
    labelled : int
        Labelled images of a step over all processes.
    mu : int
        Unlabelled images of a step for each labelled one.
    threshold : float
        Pseudo-labels at least as probable as this count.
    temperature : float
        Of the softmax that pseudo-labels come from.
    weight : float
        Of the unlabelled loss; 0 trains on the labels alone and looks at no other image.
    """

    labelled: int = 64
    mu: int = 7
    threshold: float = 0.95
    temperature: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.labelled < 1 or self.mu < 1:
            raise InputError(
                f"`batch_size` is {self.labelled} and `mu` {self.mu}; choose at least 1 for both"
            )
        if not 0 <= self.threshold <= 1:
            raise InputError(f"`threshold` is {self.threshold}; choose 0 to 1")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"`temperature` is {self.temperature}; choose above 0")
        if not 0 <= self.weight < math.inf:
            raise InputError(f"`lambda_u` is {self.weight}; choose 0 or more")

    def check_processes(self) -> None:
        """Raise InputError where the labelled images of a step cannot be split over processes."""
        if self.labelled % distributed.world_size():
            raise InputError(
                f"`batch_size` is {self.labelled}; choose a multiple of "
                f"{distributed.world_size()}, the processes"
            )


def unlabelled_loss(
    weak: Tensor, strong: Tensor, *, threshold: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of strong views against confident pseudo-labels of weak ones (Eq. 4).

    Parameters
    ----------
    weak, strong : Tensor (n, C)
        Logits; no gradient flows to ``weak``.
    threshold, temperature : float

    Returns
    -------
    loss : Tensor, scalar
        Mean over all images, confident or not.
    mask : Tensor (n,), float
        1 where the pseudo-label counts.
    """
    probability, answer = (weak.detach() / temperature).softmax(dim=1).max(dim=1)
    mask = (probability >= threshold).float()
    return (F.cross_entropy(strong, answer, reduction="none") * mask).mean(), mask


class Batches:
    """Endless batches of the rows 0 to ``count`` - 1: each pass shuffles them anew.

    So a batch has no row twice, and a pass visits each at most once; what is left of a pass after
    its last whole batch is dropped.

    Parameters
    ----------
    count, batch : int
    seed : int
    """

    def __init__(self, count: int, batch: int, *, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, number: int) -> tuple[Tensor, int]:
        """Rows (batch,), int64, on the CPU, of a batch, and the number of its pass."""
        turn, rank = divmod(number, self.count // self.batch)
        if turn != self._pass:
            self._pass, self._order = turn, permutation(self.count, seed=self.seed, epoch=turn)
        return self._order[rank * self.batch : (rank + 1) * self.batch], turn


def repeats(count: int, batch: int, steps: int) -> int:
    """How often a list of ``count`` labelled images is repeated: fewer than a batch fill ``steps``.

    As in the implementation that the published results come from.
    """
    return -(-batch * steps // count) if count < batch else 1


def fixmatch_step(
    views: Views,
    weak: Transform,
    strong: Transform,
    labelled: Labelled,
    options: FixMatch,
    *,
    seed: int,
    steps: int,
    compiled: bool = False,
) -> Callable[[nn.Module], Step]:
    """The step of FixMatch, for :func:`usl.training.loop.fit`.

    The loop only counts: labelled and unlabelled images come from lists of their own, which every
    pass shuffles anew, each time with another view. Labelled, weak and strong views go through the
    network together. Under ``torchrun`` every process has its part of both.

    Parameters
    ----------
    views : Views
        Of all training images, which are the unlabelled ones.
    weak, strong : Transform
    labelled : Labelled
    options : FixMatch
    seed : int
    steps : int
        Between two tests; see :func:`repeats`.
    compiled : bool
        Run the network through ``torch.compile``.

    Raises
    ------
    InputError
        A step takes more unlabelled images than there are.
    """
    size, unlabelled = len(views.images), options.labelled * options.mu
    if options.weight and unlabelled > size:
        raise InputError(
            f"a step takes {unlabelled} unlabelled images, `batch_size` times `mu`, and there are "
            f"{size}; lower one of them"
        )
    count = len(labelled)
    own = Batches(count * repeats(count, options.labelled, steps), options.labelled, seed=seed)
    others = Batches(size, unlabelled, seed=seed)

    def share(rows: Tensor) -> Tensor:
        """The part of a batch that this process sees."""
        part = rows.chunk(distributed.world_size())[distributed.rank()]
        return part.to(views.device)

    def make(network: nn.Module) -> Step:
        if compiled:
            network.compile()
        indices, labels = labelled.indices.to(views.device), labelled.labels.to(views.device)

        def labelled_batch(number: int) -> tuple[Tensor, Tensor]:
            rows, turn = own(number)
            rows = share(rows)
            images = indices[rows % count]
            # Each copy of an image in the list is a view of its own, whatever its row.
            key = Key(images + size * (rows // count), seed, turn, LABELLED)
            return views(weak, images, key), labels[rows % count]

        def step(_: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            x, answers = labelled_batch(number)
            if not options.weight:
                loss = F.cross_entropy(network(x).float(), answers)
                return loss, {"loss_labelled": loss}
            rows, turn = others(number)
            images = share(rows)
            seen = [
                views(transform, images, Key(images, seed, turn, view))
                for transform, view in ((weak, WEAK), (strong, STRONG))
            ]
            logits = network(torch.cat([x, *seen])).float()
            first, second, third = logits.split([len(x), len(images), len(images)])
            with torch.autocast(logits.device.type, enabled=False):
                loss_x = F.cross_entropy(first, answers)
                loss_u, mask = unlabelled_loss(
                    second, third, threshold=options.threshold, temperature=options.temperature
                )
                loss = loss_x + options.weight * loss_u
            return loss, {"loss_labelled": loss_x, "loss_unlabelled": loss_u, "mask": mask.mean()}

        return step

    return make


def scheduler_state(
    groups: list[dict[str, Any]], *, step: int, lr: float, base_lr: float
) -> dict[str, Any]:
    """What ``LambdaLR`` of torch keeps after ``step`` steps, for the parameter groups of SGD.

    Parameters
    ----------
    groups : list of dict
    step : int
    lr, base_lr : float
        Learning rate now, and at the start of the schedule.
    """
    stand_ins = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in groups]
    optimizer = torch.optim.SGD(stand_ins, lr=base_lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    state = scheduler.state_dict()
    state |= {"last_epoch": step, "_step_count": step + 1, "_last_lr": [lr] * len(groups)}
    return state


def exporting(folder: Path, *, lr: float) -> Callable[[dict[str, Any], dict[str, float]], None]:
    """Write ``checkpoint.pth.tar`` and ``model_best.pth.tar`` in the layout of the original.

    For ``export`` of :func:`usl.training.loop.fit`: after each test. Other trainers resume them:
    the entries of optimizer and scheduler are those of torch's SGD and LambdaLR.

    Parameters
    ----------
    folder : Path
    lr : float
        Learning rate at the start of the schedule.
    """

    def export(content: dict[str, Any], row: dict[str, float]) -> None:
        accuracies = [one["accuracy"] for one in content["metrics"] if "accuracy" in one]
        optimizer = content["optimizer"]
        groups = [group | {"initial_lr": lr} for group in optimizer["param_groups"]]
        layout = {
            "epoch": content["epoch"],
            "state_dict": content["model"],
            "ema_state_dict": content["ema_model"],
            "acc": row["accuracy"],
            "best_acc": max(accuracies),
            "optimizer": {"state": optimizer["state"], "param_groups": groups},
            "scheduler": scheduler_state(groups, step=content["step"], lr=row["lr"], base_lr=lr),
        }
        names = ["checkpoint.pth.tar"]
        if row["accuracy"] >= layout["best_acc"]:
            names.append("model_best.pth.tar")
        for name in names:
            with replacing(folder / name) as file:
                torch.save(layout, file)

    return export
