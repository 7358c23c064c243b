"""A backbone and a linear layer that tells classes apart."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """A backbone and a fresh linear layer: (n, 3, H, W) to logits (n, classes).

    Parameters
    ----------
    backbone : nn.Module
        Images to features, (n, dim). It becomes part of the classifier.
    dim, classes : int
    cld : bool
        The logits are scaled to length 1, as where the published results of CLD networks come from.
        Else plain ones.
    """

    def __init__(self, backbone: nn.Module, dim: int, classes: int, *, cld: bool = False) -> None:
        super().__init__()
        self.backbone, self.cld = backbone, cld
        self.linear = nn.Linear(dim, classes)

    def freeze_backbone(self) -> None:
        """Let gradients reach the linear layer only; running statistics still move in training."""
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        logits: Tensor = self.linear(self.backbone(x))
        return F.normalize(logits) if self.cld else logits
