"""Views of images that stay in their files: decoded and cropped by PIL, coloured on the device."""

from __future__ import annotations

from collections import ChainMap

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from usl.data.augment import MocoChain
from usl.data.folder import FolderDataset, as_floats, centre, in_threads
from usl.data.transforms import check_transform, normalize
from usl.errors import InputError

# Decoded images to keep by default, in bytes: some 16 000 of ImageNet's.
CACHE_BYTES = 4 << 30


class FolderViews:
    """Views of a folder's images, normalised, (n, 3, H, W), on the device.

    Called like :class:`usl.data.views.Views`. Every image is decoded and its short side resized to
    ``dataset.short``. The standard view is the middle of that; a random one a crop of it, resized
    with PIL, then the rest of the chain in batches on the device.

    Parameters
    ----------
    dataset : FolderDataset
    transform : str
        Normalisation.
    seed : int
    device : torch.device
    cache_bytes : int
        Decoded images that are kept, the first ones seen, beside those of the last call. A small
        data set is decoded once; of a large one the rest is decoded whenever it is needed.
    """

    def __init__(
        self,
        dataset: FolderDataset,
        transform: str,
        *,
        seed: int,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        check_transform(transform)
        if cache_bytes < 0:
            raise InputError(f"a cache of {cache_bytes} bytes; choose at least 0")
        self.dataset, self.transform, self.seed, self.device = dataset, transform, seed, device
        self.kept: dict[int, np.ndarray] = {}
        self.free = cache_bytes
        # Those of the last call: the standard and the strong view of a batch follow each other.
        self._last: dict[int, np.ndarray] = {}

    def __call__(
        self, chain: MocoChain, images: Tensor, epoch: int, view: int, *, of: Tensor | None = None
    ) -> Tensor:
        """One random view of images (n,), int64.

        The draws depend on ``images``, ``epoch`` and the number of the ``view``; ``of`` (n,) are
        the images to look at, by default the same.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            pictures = self._pictures(images if of is None else of)
            sizes = torch.tensor([picture.shape[:2] for picture in pictures])
            # Boxes are drawn on the CPU, so that they are the same whatever the device rounds to.
            draws = chain.draw(
                images.cpu(), sizes[:, 0], sizes[:, 1], seed=self.seed, epoch=epoch, view=view
            )
            boxes = draws.box.tolist()
            crops = in_threads(
                lambda row: _cropped(pictures[row], boxes[row], chain.size),
                range(len(pictures)),
                self.dataset.workers,
            )
            x = chain.recolour(as_floats(crops, self.device), draws.to(self.device))
            return self._normalised(x)

    def standard(self, images: Tensor) -> Tensor:
        """Images (n,), int64, cropped in the middle: what ``dataset.for_networks`` shows."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            crops = [centre(picture, self.dataset.side) for picture in self._pictures(images)]
            return self._normalised(as_floats(crops, self.device))

    def _pictures(self, images: Tensor) -> list[np.ndarray]:
        """Decoded and resized images, kept as far as there is room."""
        rows = images.tolist()
        missing = [r for r in dict.fromkeys(rows) if r not in self.kept and r not in self._last]
        new = dict(zip(missing, self.dataset.resized(missing), strict=True))
        known = ChainMap(new, self._last, self.kept)
        self._last = {row: known[row] for row in rows}
        for row, picture in new.items():
            if picture.nbytes <= self.free:
                self.kept[row] = picture
                self.free -= picture.nbytes
        return [self._last[row] for row in rows]

    def _normalised(self, x: Tensor) -> Tensor:
        return normalize(x, self.transform).contiguous(memory_format=torch.channels_last)


def _cropped(picture: np.ndarray, box: list[int], size: int) -> np.ndarray:
    top, left, height, width = box
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
