"""Features of every image, in dataset order, in shards that survive an interruption."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.encoders.preprocess import Preprocess
from usl.engines.local import LOCAL, Local
from usl.errors import InputError
from usl.shards import Shards

# Batches of one shard. Batches and shards are always cut at the same rows, so that a feature
# does not depend on where an earlier run stopped.
SHARD_BATCHES = 8
# Pixels that go through a network at once on a CPU: ten images of 224 × 224.
CPU_PIXELS = 1 << 19
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Features:
    """Rows that an encoder makes of images.

    Attributes
    ----------
    values : ndarray (N, D), float32 or float64
        In the order of the data set.
    fingerprint : str
        SHA-256 of ``values``: what is computed from them is known by it.
    """

    values: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        """Number of dimensions D."""
        return int(self.values.shape[1])


def check_precision(name: str) -> None:
    """Raise InputError, with the known names, unless there is a precision of this name."""
    if name not in PRECISIONS:
        raise InputError(f"unknown `precision` {name!r}; choose one of {', '.join(PRECISIONS)}")


def extract(
    network: nn.Module,
    dataset: AnyDataset,
    *,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    skip_unreadable: bool = False,
    finite: bool = False,
    shards: Path | None = None,
    source: dict[str, Any] | None = None,
    engine: Local = LOCAL,
    quiet: bool = False,
) -> np.ndarray:
    """Run a frozen network over a data set.

    Images are decoded by the data set's threads while the network works on those before.

    Parameters
    ----------
    network : nn.Module
        In eval mode; images (n, C, H, W) to features (n, D).
    dataset : ImageDataset or FolderDataset
    preprocess : Preprocess
        What the network is shown of an image.
    batch_size : int
    device : torch.device or str
    precision : {"float32", "bfloat16", "float16"}
        Of the network's products; features are float32. Half the bits are faster on GPUs and some
        CPUs, and features then agree to two or three digits only.
    skip_unreadable : bool
        Rows of files that cannot be read become NaN; else they are an error.
    finite : bool
        NaN or infinite features of an image that can be read are an error.
    shards : Path, optional
        Folder where finished shards are kept; those found there are not computed again. The caller
        removes it once the features are safe.
    source : dict, optional
        What the features depend on. Shards of another source are discarded.
    engine : Local or another engine
        Where images are decoded and shown to the network.
    quiet : bool
        Show no progress.

    Returns
    -------
    ndarray (N, D), float32

    Raises
    ------
    InputError
        A batch size below 1, an unknown precision, an image that cannot be read, no image that can,
        features that are not finite, or a folder that cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"`batch_size` is {batch_size}; choose at least 1")
    check_precision(precision)
    size = batch_size * SHARD_BATCHES
    bounds = [(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    sizes = [stop - start for start, stop in bounds]
    store = None if shards is None else Shards(shards, source or {}, sizes, "features")
    missing = {
        number
        for number in range(len(bounds))
        if store is None or _usable(store, number, skip_unreadable) is None
    }
    batches = [
        (first, min(first + batch_size, stop))
        for number, (start, stop) in enumerate(bounds)
        if number in missing
        for first in range(start, stop, batch_size)
    ]

    if isinstance(dataset, FolderDataset) and engine.threads:
        dataset = replace(dataset, workers=engine.threads)
    load = Load(dataset, preprocess, skip_unreadable)
    encode = Encode(network, preprocess, precision, finite)
    features: np.ndarray | None = None
    bar = tqdm(total=len(dataset), desc="features", unit="image", disable=quiet or None)
    with closing(engine.pipeline(load, encode, batches, device)) as encoded:
        for number, (start, stop) in enumerate(bounds):
            if number in missing:
                some = []
                for found in islice(encoded, math.ceil((stop - start) / batch_size)):
                    some.append(found)
                    bar.update(len(found))
                # One wait for the device a shard.
                part = torch.cat(some).cpu().numpy()
                if store is not None:
                    store.save(number, [part])
            else:
                assert store is not None
                (part,) = store.load(number)
                bar.update(stop - start)
            if features is None:
                shape = (len(dataset), *part.shape[1:])
                features = engine.zeros(*shape, dtype=torch.float32).numpy()
            features[start:stop] = part
    bar.close()
    assert features is not None
    if skip_unreadable and np.isnan(features[:, :1]).all():
        raise InputError(
            f"none of the {len(dataset)} images can be read; see the first: "
            f"{getattr(dataset, 'paths', ['?'])[0]}"
        )
    return features


@dataclass(frozen=True)
class Batch:
    """Images (n, C, H, W) before normalisation, from a row on, and which are unreadable."""

    first: int
    images: Tensor
    unreadable: list[int]


@dataclass(frozen=True)
class Load:
    """Images from a row on up to another, as the network wants them before normalisation."""

    dataset: AnyDataset
    preprocess: Preprocess
    skip_unreadable: bool

    def __call__(self, rows: tuple[int, int]) -> Batch:
        """Read them; an image that cannot be read is an error, or black."""
        unreadable: list[int] | None = [] if self.skip_unreadable else None
        images = self.preprocess.read(self.dataset, *rows, unreadable=unreadable)
        return Batch(rows[0], images, [row - rows[0] for row in sorted(unreadable or [])])


@dataclass(frozen=True)
class Encode:
    """A frozen network that is shown batches of images."""

    network: nn.Module
    preprocess: Preprocess
    precision: str
    finite: bool

    def to(self, device: torch.device | str) -> None:
        """Move the network there."""
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ready(self, batch: Batch, device: torch.device | str) -> Batch:
        """The batch in memory from which a GPU copies while it works."""
        if torch.device(device).type != "cuda":
            return batch
        return replace(batch, images=batch.images.pin_memory())

    @torch.inference_mode()
    def __call__(self, batch: Batch, device: torch.device | str) -> Tensor:
        """Features (n, D), float32, on the device."""
        kind = torch.device(device).type
        autocast = torch.autocast(
            kind, getattr(torch, self.precision), enabled=self.precision != "float32"
        )
        x = self.preprocess.normalize(batch.images.to(device, non_blocking=True))
        if not self.preprocess.native:
            x = x.contiguous(memory_format=torch.channels_last)
        # Without TF32, whose products are right to three digits only.
        with autocast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = torch.cat([self.network(s).float() for s in torch.split(x, at_once(x))])
        kept = torch.ones(len(found), dtype=torch.bool, device=found.device)
        kept[batch.unreadable] = False
        wrong = ~torch.isfinite(found.flatten(1)).all(dim=1) & kept
        if self.finite and wrong.any():
            raise InputError(
                "the network makes NaN or infinite features of image "
                f"{batch.first + int(wrong.nonzero()[0, 0])}; set `precision` float32, or choose "
                "another checkpoint"
            )
        found[~kept] = torch.nan
        return found


def at_once(x: Tensor) -> int:
    """How many images of a batch go through the network together.

    A CPU is fastest while what it works on stays in its cache.
    """
    if x.device.type != "cpu":
        return len(x)
    return max(1, CPU_PIXELS // (x.shape[-1] * x.shape[-2]))


def _usable(store: Shards, number: int, skip_unreadable: bool) -> np.ndarray | None:
    """Features that are there, without unreadable images where these are an error."""
    if not store.has(number):
        return None
    (shard,) = store.load(number)
    return None if not skip_unreadable and np.isnan(shard[:, :1]).any() else shard
