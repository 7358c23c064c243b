"""Wide ResNets for 32×32 images, as FixMatch trains them, with their released parameter names."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from usl.errors import InputError

SLOPE = 0.1
# Weight of a batch in the running statistics: small, since steps are many and batches differ.
MOMENTUM = 0.001


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after batch norm and LeakyReLU, and a shortcut.

    Where the width changes, the shortcut is a 1×1 convolution. In the first stage it sees what the
    first convolution sees. In later stages the first convolution sees the input as it is: the
    implementation that the published results come from computes its activation and leaves it
    unused, so it has no parameters here.
    """

    def __init__(self, width_in: int, width: int, stride: int, *, activate: bool) -> None:
        super().__init__()
        same = width_in == width
        self.bn1 = nn.BatchNorm2d(width_in, momentum=MOMENTUM) if same or activate else None
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, momentum=MOMENTUM)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = None if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, width, h / stride, w / stride)."""
        seen = x if self.bn1 is None else F.leaky_relu(self.bn1(x), SLOPE, inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(seen)
        out = F.leaky_relu(self.bn2(self.conv1(seen)), SLOPE, inplace=True)
        result: Tensor = shortcut + self.conv2(out)
        return result


class WideStage(nn.Module):
    """Blocks one after the other, the first with a stride."""

    def __init__(
        self, width_in: int, width: int, blocks: int, stride: int, *, activate: bool
    ) -> None:
        super().__init__()
        first = WideBlock(width_in, width, stride, activate=activate)
        rest = (WideBlock(width, width, 1, activate=True) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, width, h / stride, w / stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-``depth``-``width`` (Zagoruyko and Komodakis, BMVC 2016) in FixMatch's form.

    (n, 3, 32, 32) float32 to logits (n, classes).

    Parameters
    ----------
    depth : int
        Layers, 4 + 6 · blocks: 28 in the paper; 10 trains on a CPU.
    width : int
        The three stages have 16, 32 and 64 times as many channels.
    classes : int

    Attributes
    ----------
    dim : int
        Width of the features before the last layer, ``64 · width``.

    Raises
    ------
    InputError
        A depth or a width that makes no network.
    """

    def __init__(self, depth: int = 28, width: int = 2, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"`depth` is {depth}; choose 10, 16, 28 or another 4 + 6 · blocks")
        if width < 1:
            raise InputError(f"`width` is {width}; choose at least 1")
        blocks = (depth - 4) // 6
        self.dim = 64 * width
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, 16 * width, blocks, 1, activate=True)
        self.block2 = WideStage(16 * width, 32 * width, blocks, 2, activate=False)
        self.block3 = WideStage(32 * width, self.dim, blocks, 2, activate=False)
        self.bn1 = nn.BatchNorm2d(self.dim, momentum=MOMENTUM)
        self.fc = nn.Linear(self.dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.leaky_relu(self.bn1(out), SLOPE, inplace=True)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits
