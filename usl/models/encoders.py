"""Encoders by name: MODEL.ARCH, and for a network the layout of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.data.datasets import ImageDataset
from usl.errors import InputError
from usl.models.resnet_cifar import CldEncoder, PretextEncoder, UsltEncoder

ARCHITECTURES = ("ResNet18", "pixels")

# A weight that tells a layout, its encoder, and the heads it does without.
LAYOUTS: tuple[tuple[str, type[nn.Module], tuple[str, ...]], ...] = (
    ("contrastive_head.0.weight", PretextEncoder, ()),
    ("cluster_head.0.weight", UsltEncoder, ("cluster_head.",)),
    ("linear.weight", CldEncoder, ("groupDis.",)),
)


class Pixels(nn.Module):
    """The images themselves minus the mean training image, L2-normalised: no weights.

    Attributes
    ----------
    sees_native : bool
        The image goes in at its own size.
    """

    sees_native = True

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C·H·W)."""
        return F.normalize((x - self.mean).flatten(1))


def pixels_encoder(train: ImageDataset) -> Pixels:
    """The ``pixels`` encoder of a data set, from its training images; the mean is in float64."""
    mean = train.images.mean(axis=0, dtype=np.float64) / train.white
    return Pixels(torch.from_numpy(mean).permute(2, 0, 1).float()).eval()


def load_encoder(path: Path, *, backbone_dim: int = 512, trust: bool = False) -> nn.Module:
    """Load a CIFAR ResNet-18 with the head that makes features, from any released layout.

    CLD: normalised linear output. SCAN pretext: normalised contrastive head. USL-T: backbone.

    Parameters
    ----------
    path : Path
        Checkpoint.
    backbone_dim : int
        Width that the caller expects before the head.
    trust : bool
        See :func:`usl.checkpoints.read_checkpoint`.

    Returns
    -------
    nn.Module
        In eval mode; (n, 3, 32, 32) normalised images to (n, D) features.

    Raises
    ------
    InputError
        Unreadable, or of another network.
    """
    weights = weights_in(read_checkpoint(path, trust=trust))
    # A checkpoint of no known layout is compared with the last, CLD's.
    _, layout, heads = next((row for row in LAYOUTS if row[0] in weights), LAYOUTS[-1])
    encoder = layout()
    load_weights(encoder, weights, dropped=heads, where=str(path))
    if encoder.dim != backbone_dim:
        raise InputError(f"MODEL.BACKBONE_DIM is {backbone_dim}, ResNet18 has {encoder.dim}")
    return encoder.eval()
