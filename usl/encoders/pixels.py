"""Plain pixels as features: no weights, and the baseline that any encoder must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from usl.data.datasets import AnyDataset, ImageDataset
from usl.encoders.preprocess import Preprocess
from usl.geometry.points import blocks

# Image files whose mean is computed at a time.
BLOCK = 256


class Pixels(nn.Module):
    """The images themselves minus the mean training image, L2-normalised: (n, C, H, W) to (n, D).

    Attributes
    ----------
    out_dim : int
        D = C · H · W.
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.mean: Tensor
        self.out_dim = mean.numel()

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C·H·W)."""
        return F.normalize((x - self.mean).flatten(1))


def mean_image(
    dataset: AnyDataset, preprocess: Preprocess, *, skip_unreadable: bool = False
) -> Tensor:
    """The mean of all images, (C, H, W), float32, from sums in float64.

    With ``skip_unreadable``, of those that can be read; else the others are an error.
    """
    if isinstance(dataset, ImageDataset):
        return dataset.mean()
    total = torch.zeros(3, preprocess.side, preprocess.side, dtype=torch.float64)
    unreadable: list[int] | None = [] if skip_unreadable else None
    parts = list(blocks(len(dataset), BLOCK))
    for start, stop in tqdm(parts, desc="mean image", delay=2, leave=False, disable=None):
        # Unreadable images are black, and add nothing.
        images = preprocess.read(dataset, start, stop, unreadable=unreadable)
        total += preprocess.normalize(images).double().sum(dim=0)
    return (total / max(1, len(dataset) - len(unreadable or []))).float()
