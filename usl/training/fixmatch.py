"""FixMatch (Sohn et al., NeurIPS 2020): pseudo-labels of weak views train strong ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


def labelled_stream(count: int, start: int, stop: int, *, seed: int) -> Iterator[tuple[int, int]]:
    """Rows ``start`` to ``stop`` of an endless list that shuffles the labelled images anew.

    So every image comes as often as any other, also where there are fewer than a batch.

    Parameters
    ----------
    count : int
        Labelled images.
    start, stop : int
    seed : int

    Yields
    ------
    image : int
        From 0 to ``count`` - 1.
    turn : int
        How often it has come before.
    """
    for turn in range(start // count, -(-stop // count)):
        order = permutation(count, seed=seed, epoch=turn).tolist()
        first = turn * count
        for row in range(max(start - first, 0), min(stop - first, count)):
            yield order[row], turn


def fixmatch_step(
    views: Views,
    weak: Transform,
    strong: Transform,
    labelled: Labelled,
    options: FixMatch,
    *,
    seed: int,
    numbers: int,
    compiled: bool = False,
) -> Callable[[nn.Module], Step]:
    """The step of FixMatch, for :func:`usl.training.loop.fit`.

    The loop's images are 0 to ``numbers`` - 1 in each epoch, which stand for the training images in
    turn, epoch after epoch, each time with another view. Labelled, weak and strong views go
    through the network together. Under ``torchrun`` every process has its part of both.

    Parameters
    ----------
    views : Views
        Of all training images, which are the unlabelled ones.
    weak, strong : Transform
    labelled : Labelled
    options : FixMatch
    seed : int
    numbers : int
        Unlabelled images of an epoch.
    compiled : bool
        Run the network through ``torch.compile``.
    """
    size = len(views.images)

    def make(network: nn.Module) -> Step:
        if compiled:
            network.compile()
        indices, labels = labelled.indices.to(views.device), labelled.labels.to(views.device)

        def labelled_batch(number: int) -> tuple[Tensor, Tensor]:
            share = options.labelled // distributed.world_size()
            start = number * options.labelled + distributed.rank() * share
            drawn = labelled_stream(len(labelled), start, start + share, seed=seed)
            rows, turns = torch.tensor(list(drawn), device=views.device).unbind(dim=1)
            images = indices[rows]
            key = Key(images + size * turns, seed, view=LABELLED)
            return views(weak, images, key), labels[rows]

        def step(numbers_: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            x, answers = labelled_batch(number)
            if not options.weight:
                loss = F.cross_entropy(network(x).float(), answers)
                return loss, {"loss_labelled": loss}
            numbers_ = numbers_ + epoch * numbers
            images = numbers_ % size
            others = [
                views(transform, images, Key(numbers_, seed, view=view))
                for transform, view in ((weak, WEAK), (strong, STRONG))
            ]
            logits = network(torch.cat([x, *others])).float()
            own, first, second = logits.split([len(x), len(numbers_), len(numbers_)])
            with torch.autocast(logits.device.type, enabled=False):
                loss_x = F.cross_entropy(own, answers)
                loss_u, mask = unlabelled_loss(
                    first, second, threshold=options.threshold, temperature=options.temperature
                )
                loss = loss_x + options.weight * loss_u
            return loss, {"loss_labelled": loss_x, "loss_unlabelled": loss_u, "mask": mask.mean()}

        return step

    return make


def exporting(folder: Path) -> Callable[[dict[str, Any], dict[str, float]], None]:
    """Write ``checkpoint.pth.tar`` and ``model_best.pth.tar`` in the layout of the original.

    For ``export`` of :func:`usl.training.loop.fit`: after each test.
    """

    def export(content: dict[str, Any], row: dict[str, float]) -> None:
        accuracies = [one["accuracy"] for one in content["metrics"] if "accuracy" in one]
        layout = {
            "epoch": content["epoch"],
            "state_dict": content["model"],
            "ema_state_dict": content["ema_model"],
            "acc": row["accuracy"],
            "best_acc": max(accuracies),
            "optimizer": content["optimizer"],
            "scheduler": {"last_epoch": content["step"], "_last_lr": [row["lr"]]},
        }
        names = ["checkpoint.pth.tar"]
        if row["accuracy"] >= layout["best_acc"]:
            names.append("model_best.pth.tar")
        for name in names:
            with replacing(folder / name) as file:
                torch.save(layout, file)

    return export
