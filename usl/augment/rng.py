"""Random numbers that depend on what they are for, not on who draws them or when.

A number is a hash of its key, (seed, epoch, view, image), and its rank. So an image is augmented
alike in any batch, on any process, worker and device, and a resumed run draws what an uninterrupted
one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijective 32-bit hash (C. Wellons' lowbias32), on int64 tensors."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


@dataclass(frozen=True)
class Key:
    """What random numbers depend on.

    Attributes
    ----------
    image : Tensor (n,), int64
        Indices of the images, or of their repetitions, below 2^32.
    seed, epoch, view : int
        Non-negative. Other values give other, unrelated numbers.
    """

    image: Tensor
    seed: int
    epoch: int = 0
    view: int = 0

    def to(self, device: torch.device | str) -> Key:
        """The same key on another device."""
        return replace(self, image=self.image.to(device))


def uniform(key: Key, count: int) -> Tensor:
    """Draw ``count`` numbers for each image of a key.

    Returns
    -------
    Tensor (n, count), float32, uniform in [0, 1), on the device of ``key.image``; the same bits on
    any
    """
    device = key.image.device
    mixed = torch.zeros((), dtype=torch.int64, device=device)
    for part in (key.seed, key.epoch, key.view):
        mixed = _mix((mixed + 0x9E3779B9 + part) & _MASK)
    rows = _mix((_mix(key.image & _MASK) + mixed) & _MASK)[:, None]
    numbers = torch.arange(count, device=device)
    bits = _mix((rows + _mix(numbers + 0x85EBCA6B)) & _MASK)
    bits = _mix(bits ^ rows)
    return (bits >> 8).float() / (1 << 24)


def one_of(neighbors: Tensor, key: Key) -> Tensor:
    """Draw one of the neighbours of each image of a key.

    Parameters
    ----------
    neighbors : Tensor (N, K), int64
        Column 0 is usually the image itself.
    key : Key

    Returns
    -------
    Tensor (n,), int64, on the device of ``key.image``
    """
    columns = (uniform(key, 1)[:, 0] * neighbors.shape[1]).long()
    rows = key.image.to(neighbors.device)
    return neighbors[rows, columns.to(neighbors.device)].to(key.image.device)


def permutation(images: int, *, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch, (images,), int64, on the CPU."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(images, generator=generator)
