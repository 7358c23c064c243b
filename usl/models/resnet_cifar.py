"""The ResNet-18 for 32×32 images, with the parameter names of the released checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, width, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return F.relu(out)


class CifarResNet18(nn.Module):
    """ResNet-18 whose first convolution is 3×3 with stride 1, without max-pooling.

    (n, 3, 32, 32) float32 to (n, 512): the mean over positions of the last block.
    """

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, 512, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Features before any head, (n, 512)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return torch.mean(out, dim=(2, 3))


def _stage(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(width_in, width, stride), BasicBlock(width, width, 1))


class NormLinear(nn.Module):
    """A linear layer without bias whose weight, in × out, has columns of length 1."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out)."""
        return x @ F.normalize(self.weight, dim=0)


class CldEncoder(CifarResNet18):
    """The encoder of released CLD checkpoints: L2-normalised output of ``linear``, (n, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = NormLinear(512, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.linear(super().forward(x)))


class PretextEncoder(nn.Module):
    """The encoder of SCAN's pretext checkpoints: L2-normalised contrastive head, (n, 128)."""

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CifarResNet18()
        self.contrastive_head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.contrastive_head(self.backbone(x)))


class UsltEncoder(nn.Module):
    """The encoder of USL-T checkpoints: the backbone's output as it is, (n, 512)."""

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CifarResNet18()

    def forward(self, x: Tensor) -> Tensor:
        """Features, (n, 512), of any length."""
        out: Tensor = self.backbone(x)
        return out
