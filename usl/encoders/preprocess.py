"""What an encoder is shown of an image (method of the paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
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
# Side of the square that the released networks of ImageNet see, in pixels.
SIDE = 224
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROPS = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocess:
    """What an encoder is shown of an image. It belongs to the encoder; nothing else knows it.

    Attributes
    ----------
    side : int
        Of the square that the network sees, in pixels.
    resize : int
        Size in pixels that an image is resized to with PIL before the square in its middle is cut
        out. Images in memory that are of this size stay as they are.
    crop : {"center", "squash", "border"}
        The size is that of the short side; of both sides, whatever the shape was; of the long side,
        and what is missing to a square has the colour of the mean.
    interpolation : {"bilinear", "bicubic", "nearest", "lanczos"}
        Of the resize.
    mean, std : tuple of 3 floats
        Taken off each channel, which is then divided by the other.
    native : bool
        Images in memory are shown at their own size and in their own channels, and nothing is
        normalised.
    """

    side: int
    resize: int
    crop: str = "center"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    native: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.side <= self.resize:
            raise InputError(f"`side` is {self.side}; choose at least 1")
        if self.crop not in CROPS or self.interpolation not in INTERPOLATION:
            raise InputError(f"unknown crop {self.crop!r} or interpolation {self.interpolation!r}")

    def read(
        self, dataset: AnyDataset, start: int, stop: int, *, unreadable: list[int] | None = None
    ) -> Tensor:
        """Images ``start`` to ``stop``, before normalisation.

        Parameters
        ----------
        dataset : ImageDataset or FolderDataset
        start, stop : int
        unreadable : list of int, optional
            Takes the rows of files that cannot be read, which are shown black; without it they are
            an error.

        Returns
        -------
        Tensor (n, C, H, W)
            uint8 up to 255, or float32 in [0, 1].

        Raises
        ------
        InputError
            A file that is no readable image, by its name.
        """
        rows = range(start, stop)
        if isinstance(dataset, FolderDataset):
            if unreadable is None:
                return _batch(dataset.each(rows, self._fit))
            black = np.zeros((self.side, self.side, 3), np.uint8)

            def instead(row: int, error: InputError) -> np.ndarray:
                unreadable.append(row)
                return black

            return _batch(dataset.each(rows, self._fit, instead=instead))
        if self.native:
            return dataset.native(start, stop)
        if self.resize == dataset.side:
            return dataset.for_networks(start, stop)
        return _batch([self._fit(_rgb(dataset.picture(row))) for row in rows])

    def normalize(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, on any device.

        (n, C, H, W), uint8 or float32 in [0, 1], to float32.
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255
        if self.native:
            return images
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (self.mean, self.std)
        )
        return (images - mean) / std

    def resized(self, picture: Image.Image) -> np.ndarray:
        """An image of mode RGB as (h, w, 3), uint8, resized.

        Raises
        ------
        InputError
            It would be larger than PIL opens. The message goes on after the image's name.
        """
        width, height = picture.size
        low, high = min(width, height), max(width, height)
        if self.crop == "squash":
            size = (self.resize, self.resize)
        elif self.crop == "border":
            # As timm: both sides by one ratio, each rounded.
            ratio = high / self.resize
            size = (round(width / ratio), round(height / ratio))
        else:
            long = int(self.resize * high / low)
            if Image.MAX_IMAGE_PIXELS and self.resize * long > Image.MAX_IMAGE_PIXELS:
                raise InputError(f"is too long for its width, {width} × {height} pixels; crop it")
            size = (self.resize, long) if width <= height else (long, self.resize)
        size = (max(1, size[0]), max(1, size[1]))
        return np.asarray(picture.resize(size, INTERPOLATION[self.interpolation]))

    def cropped(self, image: np.ndarray) -> np.ndarray:
        """The square in the middle of a resized image (h, w, 3), placed as torchvision does it."""
        high, wide = (max(0, self.side - size) for size in image.shape[:2])
        if high or wide:
            square = np.empty((image.shape[0] + high, image.shape[1] + wide, 3), np.uint8)
            square[:] = [round(255 * value) for value in self.mean]
            top, left = high // 2, wide // 2
            square[top : top + image.shape[0], left : left + image.shape[1]] = image
            image = square
        top, left = (round((size - self.side) / 2) for size in image.shape[:2])
        return image[top : top + self.side, left : left + self.side]

    def _fit(self, picture: Image.Image) -> np.ndarray:
        return self.cropped(self.resized(picture))


def _batch(images: list[np.ndarray]) -> Tensor:
    """Images (h, w, 3), uint8, as (n, 3, h, w)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _rgb(image: np.ndarray) -> Image.Image:
    """An image in memory, (h, w, 1) or (h, w, 3), uint8, as PIL's."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")


def preprocess_named(transform: str, dataset: AnyDataset, *, side: int = 0) -> Preprocess:
    """The preprocessing of the released networks, by the name of their transform.

    Parameters
    ----------
    transform : str
        A key of ``NORMALIZATION``.
    dataset : ImageDataset or FolderDataset
        Images in memory are shown as large as they are.
    side : int
        Of the square cut from an image file, whose short side is resized to 256 / 224 of it; 0:
        224.

    Raises
    ------
    InputError
        Unknown name; the known ones are listed.
    """
    mean, std = _normalization(transform)
    return Preprocess(*sizes_for(dataset, side), mean=mean, std=std)


def sizes_for(dataset: AnyDataset, side: int = 0) -> tuple[int, int]:
    """Side and resize for a data set; ``side`` is that of the square cut from an image file."""
    if isinstance(dataset, FolderDataset):
        side = side or SIDE
        return side, round(side * 256 / 224)
    return dataset.side, dataset.side


def check_agreement(transform: str, preprocess: Preprocess, name: str) -> None:
    """Raise InputError if the transform that settings name normalises in another way.

    A name stands for mean and standard deviation only; an empty one agrees with everything.
    """
    if transform and _normalization(transform) != (preprocess.mean, preprocess.std):
        raise InputError(
            f"`transform` is {transform}, and {name} brings its own preprocessing, with mean "
            f"{preprocess.mean} and std {preprocess.std}; set `transform` to '', an empty text"
        )


def _normalization(transform: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if transform not in NORMALIZATION:
        known = ", ".join(NORMALIZATION)
        raise InputError(f"unknown `transform` {transform!r}; choose one of {known}")
    return NORMALIZATION[transform]
