"""FixMatch (Sohn et al., NeurIPS 2020): pseudo-labels of weak views train strong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl import distributed
from usl.augment.rng import Key, permutation
from usl.augment.views import ImageViews, Transform
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


class FixMatchViews:
    """The views of each step: labelled, weak and strong, of this process.

    Labelled and unlabelled images come from lists of their own, which every pass shuffles anew,
    each time with another view.

    Parameters
    ----------
    views : ImageViews
        Of all training images, which are the unlabelled ones.
    weak, strong : Transform
    labelled : Labelled
    options : FixMatch
    seed : int
    steps : int
        Between two tests; see :func:`repeats`.

    Raises
    ------
    InputError
        A step takes more unlabelled images than there are.
    """

    def __init__(
        self,
        views: ImageViews,
        weak: Transform,
        strong: Transform,
        labelled: Labelled,
        options: FixMatch,
        *,
        seed: int,
        steps: int,
    ) -> None:
        size, unlabelled = len(views), options.labelled * options.mu
        if options.weight and unlabelled > size:
            raise InputError(
                f"a step takes {unlabelled} unlabelled images, `batch_size` times `mu`, and there "
                f"are {size}; lower one of them"
            )
        self.views, self.weak, self.strong = views, weak, strong
        self.options, self.seed = options, seed
        self.indices = labelled.indices.to(views.device)
        self.labels = labelled.labels.to(views.device)
        count = len(labelled)
        self._own = Batches(
            count * repeats(count, options.labelled, steps), options.labelled, seed=seed
        )
        self._others = Batches(size, unlabelled, seed=seed)

    def prepare(self, _: Tensor, epoch: int, number: int) -> None:
        """For ``prepare`` of :func:`usl.training.loop.fit`."""
        for view in self._wanted(number)[0]:
            self.views.prepare(*view)

    def __call__(self, number: int) -> tuple[list[Tensor], Tensor]:
        """Views of a step, labelled alone or also weak and strong, and the answers of the first."""
        wanted, answers = self._wanted(number)
        return [self.views(*view) for view in wanted], answers

    def _wanted(self, number: int) -> tuple[list[tuple[Transform, Tensor, Key]], Tensor]:
        rows, turn = self._own(number)
        rows, count = self._share(rows), len(self.indices)
        images = self.indices[rows % count]
        # Each copy of an image in the list is a view of its own, whatever its row.
        key = Key(images + len(self.views) * (rows // count), self.seed, turn, LABELLED)
        wanted = [(self.weak, images, key)]
        if self.options.weight:
            others, turn = self._others(number)
            others = self._share(others)
            wanted += [
                (transform, others, Key(others, self.seed, turn, view))
                for transform, view in ((self.weak, WEAK), (self.strong, STRONG))
            ]
        return wanted, self.labels[rows % count]

    def _share(self, rows: Tensor) -> Tensor:
        """The part of a batch that this process sees."""
        part = rows.chunk(distributed.world_size())[distributed.rank()]
        return part.to(self.views.device)


def fixmatch_step(batches: FixMatchViews, *, compiled: bool = False) -> Callable[[nn.Module], Step]:
    """The step of FixMatch, for :func:`usl.training.loop.fit`, which only counts.

    Labelled, weak and strong views go through the network together. With ``compiled`` the network
    runs through ``torch.compile``.
    """
    options = batches.options

    def make(network: nn.Module) -> Step:
        if compiled:
            network.compile()

        def step(_: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            seen, answers = batches(number)
            logits = network(torch.cat(seen)).float()
            if not options.weight:
                loss = F.cross_entropy(logits, answers)
                return loss, {"loss_labelled": loss}
            first, second, third = logits.split([len(view) for view in seen])
            with torch.autocast(logits.device.type, enabled=False):
                loss_x = F.cross_entropy(first, answers)
                loss_u, mask = unlabelled_loss(
                    second, third, threshold=options.threshold, temperature=options.temperature
                )
                loss = loss_x + options.weight * loss_u
            return loss, {"loss_labelled": loss_x, "loss_unlabelled": loss_u, "mask": mask.mean()}

        return step

    return make
