"""Deterministic transforms: what an encoder sees of an image (method of the paper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from usl.errors import InputError

_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR100 = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_CLD = (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Mean and standard deviation of each channel, by TRANSFORM_NAME. CLD-cifar100 has CIFAR-10's
# values because its released encoder was trained with them. The last two are those of the
# training images as networks see them, 32×32, measured once.
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


def check_transform(name: str) -> None:
    """Raise InputError, with the known names, unless ``name`` is a key of ``NORMALIZATION``."""
    if name not in NORMALIZATION:
        raise InputError(
            f"unknown DATASET.TRANSFORM_NAME {name!r}; choose one of {', '.join(NORMALIZATION)}"
        )


def normalize(images: Tensor, name: str) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Parameters
    ----------
    images : Tensor (n, 3, H, W), float32 in [0, 1]
    name : str
        A key of ``NORMALIZATION``.

    Returns
    -------
    Tensor (n, 3, H, W), float32

    Raises
    ------
    InputError
        Unknown name; the known ones are listed.
    """
    check_transform(name)
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in NORMALIZATION[name])
    return (images - mean) / std
