"""What an encoder is shown of an image (method of the paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.errors import InputError

_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_CLD = (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Mean and standard deviation of each channel, by the name of the transform. CLD-cifar100 has
# CIFAR-10's values because its released encoder was trained with them. The last two are those of
# the training images as networks see them, 32×32, measured once.
NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CLD-cifar10": _CLD,
    "CLD-cifar100": _CLD,
    "SCAN-cifar10": _CLD,
    "SCAN-cifar100": _CIFAR100,
    "FixMatch-cifar10": (_CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
    "FixMatch-cifar100": _CIFAR100,
    "imagenet": _IMAGENET,
    "imagenet100": _IMAGENET,
    "fashion-mnist": ((0.2190,) * 3, (0.3318,) * 3),
    "digits": ((0.3054,) * 3, (0.3755,) * 3),
}


@dataclass(frozen=True)
class Preprocess:
    """What an encoder is shown of an image. It belongs to the encoder; nothing else knows it.

    Attributes
    ----------
    side : int
        Of the square that the network sees, in pixels.
    resize : int
        Short side, in pixels, that image files are resized to, bilinear with PIL, before the middle
        is cut out. Images in memory have the right size.
    mean, std : tuple of 3 floats
        Taken off each channel, which is then divided by the other.
    native : bool
        Images in memory are shown at their own size and in their own channels, and nothing is
        normalised.
    """

    side: int
    resize: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    native: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.side <= self.resize:
            raise InputError(f"`side` is {self.side}; choose at least 1")

    def read(self, dataset: AnyDataset, start: int, stop: int) -> Tensor:
        """Images ``start`` to ``stop``, before normalisation: (n, C, H, W), float32 in [0, 1]."""
        if isinstance(dataset, FolderDataset):
            return dataset.middles(range(start, stop), self.resize, self.side)
        return (dataset.native if self.native else dataset.for_networks)(start, stop)

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, (n, 3, H, W); on any device."""
        if self.native:
            return images
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (images - mean) / std


def preprocess_named(transform: str, dataset: AnyDataset, *, side: int) -> Preprocess:
    """The preprocessing of the released networks, by the name of their transform.

    Parameters
    ----------
    transform : str
        A key of ``NORMALIZATION``.
    dataset : ImageDataset or FolderDataset
        Images in memory are shown as large as they are.
    side : int
        Of the square cut from an image file, whose short side is resized to 256 / 224 of it.

    Raises
    ------
    InputError
        Unknown name; the known ones are listed.
    """
    if transform not in NORMALIZATION:
        known = ", ".join(NORMALIZATION)
        raise InputError(f"unknown `transform` {transform!r}; choose one of {known}")
    size = sizes_for(dataset, side)
    return Preprocess(*size, *NORMALIZATION[transform])


def sizes_for(dataset: AnyDataset, side: int) -> tuple[int, int]:
    """Side and resize for a data set; ``side`` is that of the square cut from an image file."""
    if isinstance(dataset, FolderDataset):
        return side, round(side * 256 / 224)
    return dataset.side, dataset.side
