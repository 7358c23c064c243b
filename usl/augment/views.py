"""Views of images that stay on the device as bytes, made there in batches."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from usl.data.datasets import ImageDataset
from usl.data.transforms import check_transform, normalize
from usl.errors import InputError


class Chain(Protocol):
    """A random augmentation: parameters drawn by image, then applied to a batch, or with PIL."""

    def draw(
        self, images: Tensor, height: int, width: int, *, seed: int, epoch: int, view: int
    ) -> Any:
        """Parameters of one view of images (n,), which depend on their indices alone."""
        ...

    def apply(self, images: Tensor, draws: Any) -> Tensor:
        """Augment images (n, C, H, W), float32 in [0, 1]."""
        ...

    def apply_pil(self, images: np.ndarray, draws: Any) -> Tensor:
        """The same with PIL, from (n, H, W, C), uint8."""
        ...


class ImageViews(Protocol):
    """Views of images in memory, :class:`Views`, or of those in files, ``FolderViews``."""

    device: torch.device
    transform: str

    def __call__(
        self, chain: Any, images: Tensor, epoch: int, view: int, *, of: Tensor | None = None
    ) -> Tensor:
        """One random view of images (n,), (n, 3, H, W)."""
        ...

    def standard(self, images: Tensor) -> Tensor:
        """Images (n,) as an encoder sees them, (n, 3, H, W)."""
        ...


class Views:
    """Views of a data set's images, normalised, (n, 3, H, W), on the device.

    Parameters
    ----------
    dataset : ImageDataset
    transform : str
        Normalisation.
    seed : int
    device : torch.device
    backend : {"auto", "batched", "pil"}
        Who augments: batched, on the device; PIL, image by image; auto: the faster, batched.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: str,
        *,
        seed: int,
        device: torch.device,
        backend: str = "auto",
    ) -> None:
        if backend not in ("auto", "batched", "pil"):
            raise InputError(f"unknown AUGMENT.BACKEND {backend!r}; choose auto, batched or pil")
        check_transform(transform)
        self.transform, self.seed, self.backend = transform, seed, backend
        self.images = dataset.resident("cpu" if backend == "pil" else device)
        self.white, self.device = dataset.white, device

    def __call__(
        self, chain: Chain, images: Tensor, epoch: int, view: int, *, of: Tensor | None = None
    ) -> Tensor:
        """One random view of images (n,), int64.

        The draws depend on ``images``, ``epoch`` and the number of the ``view``; ``of`` (n,) are
        the images to look at, by default the same.
        """
        height, width = self.images.shape[2:]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            draws = chain.draw(
                images.to(self.images.device),
                height,
                width,
                seed=self.seed,
                epoch=epoch,
                view=view,
            )
            chosen = self._chosen(images if of is None else of)
            if self.backend == "pil":
                levels = (chosen.float() * (255 / self.white)).round().byte()
                x = chain.apply_pil(levels.permute(0, 2, 3, 1).numpy(), draws)
            else:
                x = chain.apply(chosen.float() / self.white, draws)
            return self._normalised(x)

    def standard(self, images: Tensor) -> Tensor:
        """Images (n,), int64, as they are."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._normalised(self._chosen(images).float() / self.white)

    def reseeded(self, seed: int) -> Views:
        """The same images with the draws of another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def _chosen(self, images: Tensor) -> Tensor:
        return self.images[images.to(self.images.device)]

    def _normalised(self, x: Tensor) -> Tensor:
        x = normalize(x.to(self.device).expand(-1, 3, -1, -1), self.transform)
        return x.contiguous(memory_format=torch.channels_last)
