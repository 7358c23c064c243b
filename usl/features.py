"""Features of every image, in dataset order, in shards that survive an interruption."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from usl.artifacts import load_array, save_array, save_text
from usl.data.datasets import ImageDataset
from usl.data.transforms import normalize
from usl.errors import InputError

log = logging.getLogger("usl")

# Batches of one shard. Batches and shards are always cut at the same places, so that a feature
# does not depend on where an earlier run stopped.
SHARD_BATCHES = 8


def extract(
    encoder: nn.Module,
    dataset: ImageDataset,
    *,
    transform: str,
    batch_size: int,
    device: torch.device | str = "cpu",
    shards: Path | None = None,
    source: dict[str, Any] | None = None,
    quiet: bool = False,
) -> np.ndarray:
    """Run a frozen encoder over a data set.

    Parameters
    ----------
    encoder : nn.Module
        In eval mode; images (n, C, H, W) to features (n, D).
    dataset : ImageDataset
    transform : str
        Normalisation that the encoder was trained with; not used by ``pixels``.
    batch_size : int
    device : torch.device or str
    shards : Path, optional
        Folder where finished shards are kept; those found there are not computed again. The caller
        removes it once the features are safe.
    source : dict, optional
        What the features depend on. Shards of another source are discarded.

    quiet : bool
        Show no progress.

    Returns
    -------
    ndarray (N, D), float32

    Raises
    ------
    InputError
        A batch size below 1, an unknown transform, or a folder that cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"DATALOADER.BATCH_SIZE is {batch_size}; choose at least 1")
    encoder = encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = batch_size * SHARD_BATCHES
    starts = range(0, len(dataset), size)
    if shards is not None:
        _prepare(shards, source or {}, len(starts))
    parts = []
    bar = tqdm(total=len(dataset), desc="features", unit="image", disable=quiet or None)
    for number, start in enumerate(starts):
        stop = min(start + size, len(dataset))
        path = shards / f"{number:05}.npy" if shards is not None else None
        if path is not None and path.exists():
            part = np.array(load_array(path, shape=(stop - start, None), kind="f"))
        else:
            batches = range(start, stop, batch_size)
            part = _encode(encoder, dataset, batches, stop, transform, device)
            if path is not None:
                save_array(path, part)
        parts.append(part)
        bar.update(stop - start)
    bar.close()
    return np.concatenate(parts)


@torch.inference_mode()
def _encode(
    encoder: nn.Module,
    dataset: ImageDataset,
    starts: range,
    stop: int,
    transform: str,
    device: torch.device | str,
) -> np.ndarray:
    parts = []
    for start in starts:
        end = min(start + starts.step, stop)
        if getattr(encoder, "sees_native", False):
            images = dataset.native(start, end).to(device)
        else:
            images = normalize(dataset.for_networks(start, end).to(device), transform)
            images = images.contiguous(memory_format=torch.channels_last)
        parts.append(encoder(images).float().cpu().numpy())
    return np.concatenate(parts)


def _prepare(shards: Path, source: dict[str, Any], count: int) -> None:
    """Keep the shards of an earlier, interrupted run if they are of the same source."""
    made_from = shards / "source.json"
    wanted = json.dumps(source, sort_keys=True)
    if made_from.exists() and made_from.read_text(encoding="utf-8") == wanted:
        done = len(list(shards.glob("[0-9]*.npy")))
        log.info("features: %d of %d shards are there already", done, count)
        return
    try:
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {shards}: {error.strerror}") from None
    save_text(made_from, wanted)
