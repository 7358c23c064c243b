"""Views of images that stay on the device as bytes, made there in batches."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from usl.augment.rng import Key
from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import Preprocess


class Transform(Protocol):
    """A random augmentation: its parameters are sampled image by image, then applied to a batch."""

    def sample(self, key: Key, size: Any) -> Any:
        """Parameters of one view of each image of ``key``, which depend on the key alone."""
        ...

    def apply(self, images: Tensor, params: Any) -> Tensor:
        """Augment images (n, C, H, W), float32 in [0, 1]."""
        ...


class ImageViews(Protocol):
    """Views of images in memory, :class:`Views`, or of those in files, ``FolderViews``."""

    device: torch.device
    preprocess: Preprocess

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def __call__(self, transform: Any, rows: Tensor, key: Key) -> Tensor:
        """One random view of images (n,), (n, 3, H, W), by the random numbers of ``key``."""
        ...

    def prepare(self, transform: Any, rows: Tensor, key: Key) -> None:
        """Begin to make ready what ``__call__`` will be asked for, where that takes time."""
        ...

    def standard(self, rows: Tensor) -> Tensor:
        """Images (n,) as an encoder sees them, (n, 3, H, W)."""
        ...


class Views:
    """Views of a data set's images, normalised, (n, 3, H, W), on the device.

    Parameters
    ----------
    dataset : ImageDataset
    preprocess : Preprocess
        Its normalisation.
    device : torch.device
    """

    def __init__(
        self, dataset: ImageDataset, preprocess: Preprocess, *, device: torch.device
    ) -> None:
        self.preprocess, self.device = preprocess, device
        self.images, self.max_value = dataset.resident(device), dataset.max_value

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, transform: Transform, rows: Tensor, key: Key) -> Tensor:
        """One random view of images ``rows`` (n,), int64, by the random numbers of ``key``."""
        height, width = self.images.shape[2:]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            params = transform.sample(key.to(self.device), (height, width))
            return self._normalized(transform.apply(self._levels(rows), params))

    def prepare(self, transform: Transform, rows: Tensor, key: Key) -> None:
        """Nothing: the images are on the device."""

    def standard(self, rows: Tensor) -> Tensor:
        """Images ``rows`` (n,), int64, as they are."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._normalized(self._levels(rows))

    def _levels(self, rows: Tensor) -> Tensor:
        return self.images[rows.to(self.device)].float() / self.max_value

    def _normalized(self, x: Tensor) -> Tensor:
        x = self.preprocess.normalize(x.expand(-1, 3, -1, -1))
        return x.contiguous(memory_format=torch.channels_last)
