"""The ResNet-18 for 32×32 images, with the parameter names of the released checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from usl.errors import InputError

# Dimensions of the features that heads make.
EMBEDDING = 128


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


class CifarResNet(nn.Module):
    """A ResNet for 32×32 images, without max-pooling; the default is ResNet-18.

    (n, 3, 32, 32) float32 to (n, dim): the last stage, averaged over positions.

    Parameters
    ----------
    width : int
        Channels of the first stage; the three others have twice, four and eight times as many.
    blocks : int
        Basic blocks of each of the four stages.
    stride : int
        Of the first convolution. 2 makes a network that trains on a CPU.
    grid : int
        The average is taken over each cell of a grid of this side: 1 forgets where in the image
        something is; 2 keeps in which quarter.

    Attributes
    ----------
    dim : int
        Width of the features, ``8 · width · grid²``.
    """

    def __init__(self, width: int = 64, blocks: int = 2, stride: int = 1, grid: int = 1) -> None:
        super().__init__()
        self.dim, self.grid = 8 * width * grid**2, grid
        self.conv1 = nn.Conv2d(3, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.layer4 = _stage(4 * width, 8 * width, 2, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Features before any head, (n, dim)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return F.adaptive_avg_pool2d(out, self.grid).flatten(1)


def _stage(width_in: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def small_resnet(width: int, depth: int) -> dict[str, int]:
    """Arguments of a :class:`CifarResNet` of any size that trains on a CPU.

    Its first convolution halves the image, and it keeps the quarters of the image apart.

    Raises
    ------
    InputError
        A width below 1, or a depth that is not 2 + 8 · blocks: 10, 18, 26, …
    """
    if depth < 10 or (depth - 2) % 8:
        raise InputError(f"`depth` is {depth}; choose 10, 18, 26 or another 2 + 8 · blocks")
    if width < 1:
        raise InputError(f"`width` is {width}; choose at least 1")
    return {"width": width, "blocks": (depth - 2) // 8, "stride": 2, "grid": 2}


class NormLinear(nn.Module):
    """A linear layer without bias whose weight, in × out, has columns of length 1."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        # The weight is used at length 1; the longer it is, the slower SGD turns it.
        columns = torch.empty(width_in, width).uniform_(-1, 1)
        self.weight = nn.Parameter(F.normalize(columns, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) to (n, out)."""
        return x @ F.normalize(self.weight, dim=0)


class CldEncoder(CifarResNet):
    """The encoder of released CLD checkpoints: L2-normalised output of ``linear``, (n, 128)."""

    out_dim = EMBEDDING

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.linear = NormLinear(self.dim, EMBEDDING)

    def features(self, x: Tensor) -> Tensor:
        """What the heads see, (n, dim)."""
        return CifarResNet.forward(self, x)

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.linear(self.features(x)))


class CldNetwork(CldEncoder):
    """CLD in training: the encoder and a second head, whose features are grouped."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.groupDis = nn.Sequential(NormLinear(self.dim, EMBEDDING))

    def forward(self, x: Tensor) -> Tensor:
        """Instance and group features, each of length 1, side by side: (n, 2, 128)."""
        features = self.features(x)
        both = torch.stack([self.linear(features), self.groupDis(features)], dim=1)
        return F.normalize(both, dim=2)


def mlp(dim: int, width: int) -> nn.Sequential:
    """A head of two layers: (n, dim) to (n, width)."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, width))


class Pretext(nn.Module):
    """A backbone, (n, dim), and the L2-normalised output of its contrastive head, (n, 128)."""

    out_dim = EMBEDDING

    def __init__(self, backbone: nn.Module, dim: int) -> None:
        super().__init__()
        self.backbone, self.dim = backbone, dim
        self.contrastive_head = mlp(dim, EMBEDDING)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (n, dim)."""
        out: Tensor = self.backbone(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.contrastive_head(self.features(x)))


class PretextEncoder(Pretext):
    """The encoder of SCAN's pretext checkpoints of CIFAR, (n, 3, 32, 32) to (n, 128)."""

    def __init__(self, **sizes: int) -> None:
        backbone = CifarResNet(**sizes)
        super().__init__(backbone, backbone.dim)


class UsltEncoder(nn.Module):
    """The encoder of USL-T checkpoints: the backbone's output as it is, (n, dim)."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.backbone = CifarResNet(**sizes)
        self.dim = self.out_dim = self.backbone.dim

    def features(self, x: Tensor) -> Tensor:
        """Features, (n, dim), of any length."""
        out: Tensor = self.backbone(x)
        return out

    forward = features
