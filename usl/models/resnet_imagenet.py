"""ResNet-50 for ImageNet, with the heads and the parameter names of the released checkpoints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from usl.models.resnet_cifar import EMBEDDING, Pretext, mlp

DIM = 2048


def resnet50() -> nn.Module:
    """Torchvision's ResNet-50 without its last layer, untrained: (n, 3, H, W) to (n, 2048)."""
    from torchvision.models import resnet50 as build

    network: nn.Module = build()
    network.fc = nn.Identity()
    return network


class PretextImageNet(Pretext):
    """The encoder of SCAN's pretext checkpoints of ImageNet, and inside those of USL-T.

    (n, 3, H, W) to the L2-normalised output of the contrastive head, (n, 128).
    """

    def __init__(self) -> None:
        super().__init__(resnet50(), DIM)


class MocoEncoder(nn.Module):
    """The encoder of MoCo v2 with EMAN: L2-normalised output of the two layers ``fc``, (n, 128)."""

    out_dim = EMBEDDING

    def __init__(self) -> None:
        super().__init__()
        self.dim = DIM
        # The parts are this module's own: the checkpoint's names have no prefix.
        for name, part in resnet50().named_children():
            self.add_module(name, part)
        self.fc = mlp(DIM, EMBEDDING)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (n, 2048)."""
        for name, part in self.named_children():
            if name != "fc":
                x = part(x)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.fc(self.features(x)))
