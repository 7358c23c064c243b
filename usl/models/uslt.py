"""The network of USL-T: a backbone and several clustering heads, in the released layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.errors import InputError

HEADS = 3
# Fixed inverse temperature of cosine heads.
SCALE = 40.0


class CosineHead(nn.Module):
    """Logits that are cosines times 40, without bias: (n, D) features of length 1 to (n, C)."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(clusters, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) to (n, C)."""
        return SCALE * F.linear(F.normalize(x), F.normalize(self.weight))


def new_heads(dim: int, clusters: int, *, cosine: bool) -> nn.ModuleList:
    """Three untrained heads of ``clusters`` outputs; linear ones with bias, or cosine ones.

    Raises
    ------
    InputError
        Fewer than two clusters.
    """
    if clusters < 2:
        raise InputError(f"`clusters` is {clusters}; choose at least 2")
    layer = CosineHead if cosine else nn.Linear
    return nn.ModuleList([layer(dim, clusters) for _ in range(HEADS)])


class UsltNetwork(nn.Module):
    """A backbone and its heads; ``backbone`` and ``cluster_head`` as in released checkpoints.

    Parameters
    ----------
    backbone : nn.Module
        Images to features, (n, D).
    heads : nn.ModuleList
        Of H heads.
    frozen : bool
        Train the heads only, the backbone staying as it is, in eval mode.
    """

    def __init__(self, backbone: nn.Module, heads: nn.ModuleList, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.cluster_head, self.frozen = backbone, heads, frozen
        if frozen:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> UsltNetwork:
        """Training mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) to logits (n, H, C)."""
        features = self.backbone(x)
        return torch.stack([head(features) for head in self.cluster_head], dim=1)

    def head_weights(self) -> list[Tensor]:
        """The weights of the heads, each (C, D)."""
        return [head.get_parameter("weight") for head in self.cluster_head]

    @torch.no_grad()
    def start_from(self, features: Tensor) -> None:
        """Let the weights of the heads be these features, (H · C, D), one head after the other."""
        weights = self.head_weights()
        for weight, rows in zip(weights, features.chunk(len(weights)), strict=True):
            weight.copy_(rows)


def load_heads(path: Path, *, weights: str = "model", trust: bool = False) -> nn.ModuleList:
    """The clustering heads of a USL-T checkpoint, linear or cosine, in eval mode.

    ``weights`` and ``trust`` as for :func:`usl.checkpoints.weights_in` and ``read_checkpoint``.

    Raises
    ------
    InputError
        Unreadable, without heads, or with heads that do not fit together.
    """
    state = weights_in(read_checkpoint(path, trust=trust), which=weights)
    heads = {k: v for k, v in state.items() if k.startswith("cluster_head.")}
    first = heads.get("cluster_head.0.weight")
    if first is None or first.ndim != 2:
        raise InputError(
            f"checkpoint {path} has no clustering heads; give one that usl-t_pretraining wrote"
        )
    clusters, dim = first.shape
    count = len({name.split(".")[1] for name in heads})
    cosine = "cluster_head.0.bias" not in heads
    layer = CosineHead if cosine else nn.Linear
    holder = nn.Module()
    holder.cluster_head = nn.ModuleList([layer(dim, clusters) for _ in range(count)])
    load_weights(holder, heads, where=str(path))
    return holder.cluster_head.eval()
