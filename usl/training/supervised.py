"""Training on labelled images, and accuracy on test images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl.augment.rng import Key
from usl.augment.views import Transform, Views
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError
from usl.inference import extract
from usl.lists.read import Labelled
from usl.training.loop import Step


def supervised_step(
    views: Views, transform: Transform, labelled: Labelled, *, seed: int
) -> Callable[[nn.Module], Step]:
    """Cross-entropy on random views of labelled images, for :func:`usl.training.loop.fit`.

    The loop's images are 0 to B · repetitions - 1: number i stands for repetition i // B of the
    labelled image i % B. Each repetition in each epoch is a view of its own, which depends on the
    image, not on its row in the list.
    """
    size, count = len(views.images), len(labelled)

    def make(network: nn.Module) -> Step:
        indices, labels = labelled.indices.to(views.device), labelled.labels.to(views.device)

        def step(numbers: Tensor, epoch: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
            rows = numbers % count
            images, answers = indices[rows], labels[rows]
            key = Key(images + size * (numbers // count), seed, epoch)
            logits = network(views(transform, images, key)).float()
            right = (logits.argmax(dim=1) == answers).float().mean()
            return F.cross_entropy(logits, answers), {"train_accuracy": 100 * right}

        return step

    return make


class AccuracyEvaluator:
    """Accuracy on test images, in percent: an ``evaluate`` of :func:`usl.training.loop.fit`.

    Parameters
    ----------
    test : ImageDataset
        With labels.
    preprocess : Preprocess
    batch_size : int
    device : torch.device

    Raises
    ------
    InputError
        The test images have no labels.
    """

    def __init__(
        self,
        test: ImageDataset,
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        if test.labels is None:
            raise InputError(f"the test images of {test.name} have no labels; accuracy needs them")
        self.test, self.labels = test, test.labels
        self.preprocess, self.batch_size, self.device = preprocess, batch_size, device
        self._last: np.ndarray | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Test a network in eval mode: images to logits."""
        logits = extract(
            network,
            self.test,
            preprocess=self.preprocess,
            batch_size=self.batch_size,
            device=self.device,
            quiet=True,
        )
        right = logits.argmax(axis=1) == self.labels
        classes = len(self.test.classes)
        counts = np.bincount(self.labels, minlength=classes)
        hits = np.bincount(self.labels[right], minlength=classes)
        # A class without test images has no accuracy.
        self._last = 100.0 * hits / np.where(counts > 0, counts, np.nan)
        return {"accuracy": 100.0 * float(right.mean())}

    def by_class(self, network: nn.Module) -> np.ndarray:
        """Percent right of each class, (classes,); NaN for one without test images.

        ``network`` is the one tested last. It is tested now if none was, as when a finished
        training was taken up again.
        """
        if self._last is None:
            self(network)
        assert self._last is not None
        return self._last
