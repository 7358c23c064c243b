"""Views of images that stay in their files: decoded and cropped by PIL, coloured on the device."""

from __future__ import annotations

from collections import ChainMap

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.data.folder import FolderDataset, as_floats, in_threads
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError

# Decoded images to keep by default, in bytes: some 16 000 of ImageNet's.
CACHE_BYTES = 4 << 30


class FolderViews:
    """Views of a folder's images, normalised, (n, 3, H, W), on the device.

    Called like :class:`usl.augment.views.Views`. Every image is decoded and resized as
    ``preprocess`` says. The standard view is the middle of that; a random one a crop of it,
    resized with PIL, then the rest of the transform in batches on the device.

    Parameters
    ----------
    dataset : FolderDataset
    preprocess : Preprocess
    device : torch.device
    cache_bytes : int
        Decoded images that are kept, the first ones seen, beside those of the last call. A small
        data set is decoded once; of a large one the rest is decoded whenever it is needed.
    """

    def __init__(
        self,
        dataset: FolderDataset,
        preprocess: Preprocess,
        *,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if cache_bytes < 0:
            raise InputError(f"`cache_gb` is {cache_bytes / 2**30:g}; choose at least 0")
        self.dataset, self.preprocess, self.device = dataset, preprocess, device
        self.kept: dict[int, np.ndarray] = {}
        self.free = cache_bytes
        # Those of the last call: the standard and the strong view of a batch follow each other.
        self._last: dict[int, np.ndarray] = {}

    def __call__(self, transform: MocoTransform, rows: Tensor, key: Key) -> Tensor:
        """One random view of images ``rows`` (n,), int64, by the random numbers of ``key``."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            pictures = self._pictures(rows)
            sizes = torch.tensor([picture.shape[:2] for picture in pictures])
            # Boxes are drawn on the CPU, so that they are the same whatever the device rounds to.
            params = transform.sample(key.to("cpu"), (sizes[:, 0], sizes[:, 1]))
            boxes = params.box.tolist()
            crops = in_threads(
                lambda row: _cropped(pictures[row], boxes[row], transform.size),
                range(len(pictures)),
                self.dataset.workers,
            )
            x = transform.recolour(as_floats(crops, self.device), params.to(self.device))
            return self._normalized(x)

    def standard(self, rows: Tensor) -> Tensor:
        """Images ``rows`` (n,), int64, cropped in the middle."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            crops = [self.preprocess.cropped(picture) for picture in self._pictures(rows)]
            return self._normalized(as_floats(crops, self.device))

    def _pictures(self, images: Tensor) -> list[np.ndarray]:
        """Decoded and resized images, kept as far as there is room."""
        rows = images.tolist()
        missing = [r for r in dict.fromkeys(rows) if r not in self.kept and r not in self._last]
        decoded = self.dataset.each(missing, self.preprocess.resized)
        new = dict(zip(missing, decoded, strict=True))
        known = ChainMap(new, self._last, self.kept)
        self._last = {row: known[row] for row in rows}
        for row, picture in new.items():
            if picture.nbytes <= self.free:
                self.kept[row] = picture
                self.free -= picture.nbytes
        return [self._last[row] for row in rows]

    def _normalized(self, x: Tensor) -> Tensor:
        return self.preprocess.normalize(x).contiguous(memory_format=torch.channels_last)


def _cropped(picture: np.ndarray, box: list[int], size: int) -> np.ndarray:
    top, left, height, width = box
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
