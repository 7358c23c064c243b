"""Views of images that stay in their files: decoded and cropped by PIL, coloured on the device."""

from __future__ import annotations

from collections import ChainMap
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from usl.augment.moco import MocoTransform
from usl.augment.rng import Key
from usl.data.folder import FolderDataset, in_threads
from usl.encoders.preprocess import Preprocess
from usl.errors import InputError

# Decoded images to keep by default, in bytes: some 16 000 of ImageNet's.
CACHE_BYTES = 4 << 30


class FolderViews:
    """Views of a folder's images, normalised, (n, 3, H, W), on the device.

    Called like :class:`usl.augment.views.Views`. The standard view is what an encoder sees, by
    ``preprocess``. A random view by :class:`usl.augment.moco.MocoTransform` is a crop of the image
    as ``preprocess`` resizes it, or of the whole image, resized with PIL; the rest of the
    transform is done in batches on the device. Other transforms change the standard view there.

    Parameters
    ----------
    dataset : FolderDataset
    preprocess : Preprocess
    device : torch.device
    cache_bytes : int
        Decoded images that are kept, the first ones seen, beside those of the last call. A small
        data set is decoded once; of a large one the rest is decoded whenever it is needed.
    whole : bool
        Crops are of the image as it is, not as ``preprocess`` resizes it.
    """

    def __init__(
        self,
        dataset: FolderDataset,
        preprocess: Preprocess,
        *,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
        whole: bool = False,
    ) -> None:
        if cache_bytes < 0:
            raise InputError(f"`cache_gb` is {cache_bytes / 2**30:g}; choose at least 0")
        self.dataset, self.preprocess, self.device = dataset, preprocess, device
        self.whole = whole
        self.kept: dict[int, np.ndarray] = {}
        self.free = cache_bytes
        # Those of the last call: the standard and the strong view of a batch follow each other.
        self._last: dict[int, np.ndarray] = {}
        # Views are made ready one after the other, by one thread, which has threads that decode.
        self._maker = ThreadPoolExecutor(1)
        self._coming: dict[Any, Future[tuple[Tensor, Any]]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, transform: Any, rows: Tensor, key: Key) -> Tensor:
        """One random view of images ``rows`` (n,), int64, by the random numbers of ``key``."""
        self.prepare(transform, rows, key)
        levels, params = self._coming.pop(_name_of(transform, rows, key)).result()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            x = _as_floats(levels.to(self.device, non_blocking=True))
            if isinstance(transform, MocoTransform):
                x = transform.recolour(x, params.to(self.device))
            else:
                size = (x.shape[2], x.shape[3])
                x = transform.apply(x, transform.sample(key.to(self.device), size))
            return self._normalized(x)

    def prepare(self, transform: Any, rows: Tensor, key: Key) -> None:
        """Begin to decode what :meth:`__call__` will be asked for; it waits only for the rest."""
        name = _name_of(transform, rows, key)
        if name not in self._coming:
            self._coming[name] = self._maker.submit(self._ready, transform, rows.cpu(), key)

    def standard(self, rows: Tensor) -> Tensor:
        """Images ``rows`` (n,), int64, as an encoder sees them."""
        levels = self._maker.submit(self._standard, rows.cpu()).result()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._normalized(_as_floats(levels.to(self.device)))

    def _ready(self, transform: Any, rows: Tensor, key: Key) -> tuple[Tensor, Any]:
        """What of a random view is made on the CPU, (n, side, side, 3), uint8; its parameters."""
        if not isinstance(transform, MocoTransform):
            return self._standard(rows), None
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
        return self._stacked(crops), params

    def _standard(self, rows: Tensor) -> Tensor:
        pictures = self._pictures(rows)
        if self.whole:
            pictures = [self.preprocess.resized(Image.fromarray(picture)) for picture in pictures]
        return self._stacked([self.preprocess.cropped(picture) for picture in pictures])

    def _stacked(self, images: list[np.ndarray]) -> Tensor:
        levels = torch.from_numpy(np.stack(images))
        return levels.pin_memory() if self.device.type == "cuda" else levels

    def _pictures(self, images: Tensor) -> list[np.ndarray]:
        """Decoded images, resized or whole, kept as far as there is room."""
        rows = images.tolist()
        missing = [r for r in dict.fromkeys(rows) if r not in self.kept and r not in self._last]
        use = np.asarray if self.whole else self.preprocess.resized
        decoded = self.dataset.each(missing, use)
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


def _name_of(transform: Any, rows: Tensor, key: Key) -> Any:
    """What tells a view from others."""
    texts = (rows.cpu().numpy().tobytes(), key.image.cpu().numpy().tobytes())
    return id(transform), *texts, key.seed, key.epoch, key.view


def _as_floats(levels: Tensor) -> Tensor:
    """Images (n, H, W, 3), uint8, as (n, 3, H, W), float32 in [0, 1]."""
    return levels.permute(0, 3, 1, 2).float() / 255


def _cropped(picture: np.ndarray, box: list[int], size: int) -> np.ndarray:
    top, left, height, width = box
    part = Image.fromarray(picture[top : top + height, left : left + width])
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
