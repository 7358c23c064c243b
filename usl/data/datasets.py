"""The image data sets, each by its name: held in memory as bytes, or folders of files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from usl.artifacts import fingerprint
from usl.data import readers
from usl.data.bucket import URL
from usl.data.folder import FolderDataset, open_folder
from usl.data.images import open_images
from usl.errors import InputError


@dataclass(frozen=True)
class ImageDataset:
    """Images of one size, in the order of their indices.

    Attributes
    ----------
    name : str
    split : {"train", "test"}
    images : ndarray (N, H, W, C), uint8
    labels : ndarray (N,), int64, or None
    classes : tuple of str
        Names of the classes.
    max_value : int
        Value of the brightest possible pixel.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    max_value: int = 255

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int) -> ImageDataset:
        """Images ``start`` to ``stop`` as a data set."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, images=self.images[start:stop], labels=labels)

    def native(self, start: int, stop: int) -> Tensor:
        """Images as they are: (n, C, H, W), float32 in [0, 1]."""
        block = torch.from_numpy(self.images[start:stop]).permute(0, 3, 1, 2)
        return block.float() / self.max_value

    def for_networks(self, start: int, stop: int) -> Tensor:
        """Images as CIFAR networks take them: (n, 3, 32, 32), float32 in [0, 1].

        Grey images are repeated to three channels; 28×28 is padded with black, 8×8 is enlarged
        by nearest neighbours.
        """
        return self._fitted(self.native(start, stop)).expand(-1, 3, -1, -1)

    def resident(self, device: torch.device | str = "cpu") -> Tensor:
        """All images for training: (N, C, 32, 32), uint8 up to ``max_value``, C as it is."""
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2)
        return self._fitted(images).contiguous().to(device)

    def _fitted(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        if side < 16:
            images = F.interpolate(images, size=32, mode="nearest")
        elif side < 32:
            images = F.pad(images, [(32 - side) // 2] * 4)
        return images

    @property
    def side(self) -> int:
        """Of the square that networks see, in pixels."""
        return int(self._fitted(torch.from_numpy(self.images[:1]).permute(0, 3, 1, 2)).shape[-1])

    def mean(self) -> Tensor:
        """The mean of the images as they are, (C, H, W), float32, from sums in float64."""
        mean = self.images.mean(axis=0, dtype=np.float64) / self.max_value
        return torch.from_numpy(mean).permute(2, 0, 1).float()

    def picture(self, index: int) -> np.ndarray:
        """One image for people: (H, W, C), uint8 up to 255."""
        picture: np.ndarray = self.images[index].astype(np.uint16) * 255 // self.max_value
        return picture.astype(np.uint8)

    def size_of(self, index: int) -> tuple[int, int]:
        """Width and height of an image, in pixels."""
        return self.images.shape[2], self.images.shape[1]

    def fingerprint(self) -> str:
        """SHA-256 of the images; labels do not matter to a selection."""
        return fingerprint(self.images)


AnyDataset = ImageDataset | FolderDataset
# Of the 1797 images; the rest are for tests.
DIGITS_TRAIN = 1437


def open_dataset(
    name: str,
    root: str | Path,
    split: str = "train",
    *,
    workers: int | None = None,
    image_list: Path | None = None,
    subset: Path | None = None,
) -> AnyDataset:
    """Open a data set, downloading it where it is missing and its home can be reached.

    Parameters
    ----------
    name : str
        One of ``DATASETS``.
    root : path
        Folder of the data; torchvision's layout. digits come with scikit-learn.
    split : {"train", "test"}
    workers : int, optional
        Threads that decode files; data sets that stay in memory need none.
    image_list, subset : Path, optional
        Of folders: their images, and the classes to keep; see
        :func:`usl.data.folder.open_folder`.

    Returns
    -------
    ImageDataset, or FolderDataset for images in files

    Raises
    ------
    InputError
        Unknown name, or data that are missing and cannot be downloaded, or damaged; or options that
        the data set has not.
    """
    if name not in DATASETS:
        raise InputError(f"unknown `dataset` {name!r}; choose one of {', '.join(DATASETS)}")
    options = {"image_list": image_list, "subset": subset}
    given = {option: path for option, path in options.items() if path is not None}
    if given and name not in FOLDERS:
        raise InputError(
            f"`dataset` {name} takes no `{next(iter(given))}`; choose one of {', '.join(FOLDERS)}"
        )
    if isinstance(root, str) and URL.fullmatch(root):
        if name != "images":
            raise InputError(f"`dataset` {name} is not read from `root` {root}; give a folder")
        return open_images(root, split, workers=workers)
    return DATASETS[name](Path(root), split, workers=workers, **given)


def _cifar(files: readers.CifarFiles, root: Path, split: str, *, workers: int) -> ImageDataset:
    return ImageDataset(files.name, split, *readers.read_cifar(files, root, split))


def _fashion_mnist(root: Path, split: str, *, workers: int) -> ImageDataset:
    return ImageDataset("fashion-mnist", split, *readers.read_fashion_mnist(root, split))


def _digits(root: Path, split: str, *, workers: int) -> ImageDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    images = digits.images[part].astype(np.uint8)[..., None]
    labels = digits.target[part].astype(np.int64)
    return ImageDataset("digits", split, images, labels, tuple("0123456789"), max_value=16)


# Data sets whose images are files, and whether these are read as people see the pictures, as
# people's own are, or as the networks trained on them read them.
FOLDERS = {"imagenet": False, "imagenet100": False, "folder": True}
# By name: ``f(root, split, *, workers)``, which opens the data set.
DATASETS: dict[str, Callable[..., AnyDataset]] = {
    "cifar10": partial(_cifar, readers.CIFAR10),
    "cifar100": partial(_cifar, readers.CIFAR100),
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "images": open_images,
    **{name: partial(open_folder, name, as_seen=as_seen) for name, as_seen in FOLDERS.items()},
}
