"""Training on labelled images, and accuracy on test images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl import distributed
from usl.augment.rng import Key
from usl.augment.views import ImageViews, Transform
from usl.data.datasets import AnyDataset
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.inference import extract
from usl.lists.read import Labelled
from usl.training.loop import Step

# Answers that count in the second accuracy.
TOP = 5


class LabelledViews:
    """Random views of labelled images, again and again.

    The loop's images are 0 to B · repetitions - 1: number i stands for repetition i // B of the
    labelled image i % B. Each repetition in each epoch is a view of its own, which depends on the
    image, not on its row in the list.

    Parameters
    ----------
    views : ImageViews
        Of all training images.
    transform : Transform
    labelled : Labelled
    seed : int
    """

    def __init__(
        self, views: ImageViews, transform: Transform, labelled: Labelled, *, seed: int
    ) -> None:
        self.views, self.transform, self.seed = views, transform, seed
        self.indices = labelled.indices.to(views.device)
        self.labels = labelled.labels.to(views.device)

    def _images(self, numbers: Tensor, epoch: int) -> tuple[Tensor, Key]:
        numbers = numbers.to(self.indices.device)
        count = len(self.indices)
        images = self.indices[numbers % count]
        return images, Key(images + len(self.views) * (numbers // count), self.seed, epoch)

    def prepare(self, numbers: Tensor, epoch: int, number: int) -> None:
        """For ``prepare`` of :func:`usl.training.loop.fit`."""
        self.views.prepare(self.transform, *self._images(numbers, epoch))

    def __call__(self, numbers: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Views (n, 3, H, W) and answers (n,), int64, of the loop's images in an epoch."""
        seen = self.views(self.transform, *self._images(numbers, epoch))
        return seen, self.labels[numbers % len(self.labels)]


def supervised_step(labelled: LabelledViews) -> Callable[[nn.Module], Step]:
    """Cross-entropy on views of labelled images, for :func:`usl.training.loop.fit`."""

    def make(network: nn.Module) -> Step:
        def step(numbers: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            x, answers = labelled(numbers, epoch)
            logits = network(x).float()
            right = (logits.argmax(dim=1) == answers).float().mean()
            return F.cross_entropy(logits, answers), {"train_accuracy": 100 * right}

        return step

    return make


class AccuracyEvaluator:
    """Accuracy on test images, in percent: an ``evaluate`` of :func:`usl.training.loop.fit`.

    Each of several processes tests its part of the images.

    Parameters
    ----------
    test : ImageDataset or FolderDataset
        With labels.
    preprocess : Preprocess
    batch_size : int
    device : torch.device
    top5 : bool
        Also whether the right class is among the five most probable, where there are more.

    Raises
    ------
    InputError
        The test images have no labels.
    """

    def __init__(
        self,
        test: AnyDataset,
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device,
        top5: bool = False,
    ) -> None:
        if test.labels is None:
            raise InputError(f"the test images of {test.name} have no labels; accuracy needs them")
        self.classes, self.top5 = len(test.classes), top5 and len(test.classes) > TOP
        share = -(-len(test) // distributed.world_size())
        first = distributed.rank() * share
        self.test = test.part(first, first + share)
        self.preprocess, self.batch_size, self.device = preprocess, batch_size, device
        self._last: np.ndarray | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Test a network in eval mode: images to logits."""
        labels = self.test.labels
        assert labels is not None
        found = np.zeros((3, self.classes))
        if len(labels):
            logits = extract(
                network,
                self.test,
                preprocess=self.preprocess,
                batch_size=self.batch_size,
                device=self.device,
                quiet=True,
            )
            # The rank of the right class, counted from 0; those as probable do not come before it.
            rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(axis=1)
            first = logits.argmax(axis=1) == labels
            for row, some in enumerate((first, rank < TOP, np.ones_like(first))):
                found[row] = np.bincount(labels[some], minlength=self.classes)
        hits, near, counts = (
            distributed.total(torch.from_numpy(found).to(self.device)).cpu().numpy()
        )
        # A class without test images has no accuracy.
        self._last = 100.0 * hits / np.where(counts > 0, counts, np.nan)
        accuracy = {"accuracy": 100.0 * float(hits.sum() / counts.sum())}
        if self.top5:
            accuracy["top5"] = 100.0 * float(near.sum() / counts.sum())
        return accuracy

    def by_class(self, network: nn.Module) -> np.ndarray:
        """Percent right of each class, (classes,); NaN for one without test images.

        ``network`` is the one tested last. It is tested now if none was, as when a finished
        training was taken up again.
        """
        if self._last is None:
            self(network)
        assert self._last is not None
        return self._last
