"""Random draws that depend on what they are for, not on who makes them or when.

A draw is a hash of (seed, epoch, view, image, number). So an image is augmented alike in any batch,
on any rank, worker and device, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

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


def uniform(images: Tensor, count: int, *, seed: int, epoch: int, view: int) -> Tensor:
    """Draw ``count`` numbers for each image.

    Parameters
    ----------
    images : Tensor (n,), int64
        Indices of the images, below 2^32.
    count : int
    seed, epoch, view : int
        Non-negative. Other values give other, unrelated draws.

    Returns
    -------
    Tensor (n, count), float32, uniform in [0, 1), on the device of ``images``; the same bits on any
    """
    key = torch.zeros((), dtype=torch.int64, device=images.device)
    for part in (seed, epoch, view):
        key = _mix((key + 0x9E3779B9 + part) & _MASK)
    rows = _mix((_mix(images & _MASK) + key) & _MASK)[:, None]
    numbers = torch.arange(count, device=images.device)
    bits = _mix((rows + _mix(numbers + 0x85EBCA6B)) & _MASK)
    bits = _mix(bits ^ rows)
    return (bits >> 8).float() / (1 << 24)


def one_of(neighbors: Tensor, images: Tensor, *, seed: int, epoch: int, view: int) -> Tensor:
    """Draw one of the neighbours of each image.

    Parameters
    ----------
    neighbors : Tensor (N, K), int64
        Column 0 is usually the image itself.
    images : Tensor (n,), int64
    seed, epoch, view : int
        As for :func:`uniform`.

    Returns
    -------
    Tensor (n,), int64, on the device of ``images``
    """
    u = uniform(images, 1, seed=seed, epoch=epoch, view=view)[:, 0]
    columns = (u * neighbors.shape[1]).long()
    return neighbors[images.to(neighbors.device), columns.to(neighbors.device)].to(images.device)


def permutation(images: int, *, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch, (images,), int64, on the CPU."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(images, generator=generator)
