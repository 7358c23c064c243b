"""SimCLRv2's ResNets and projection head, with the parameter names of the released checkpoints.

Chen et al., Big Self-Supervised Models are Strong Semi-Supervised Learners, NeurIPS 2020; selective
kernels: Li et al., CVPR 2019.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from usl.errors import InputError
from usl.models.resnet_cifar import EMBEDDING

# Bottleneck blocks of the four stages, by depth. The first two train on a CPU.
BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
# Channels between the two convolutions that weigh the kernels, as a share, and at least.
SK_RATIO, SK_CHANNELS = 0.0625, 32
_SIZE = re.compile(r"r(\d+)_(\d+(?:\.\d+)?)x_sk([01])")


@dataclass(frozen=True)
class Size:
    """Of a network, as the names of the released files say it: ``r50_1x_sk0``.

    Attributes
    ----------
    depth : int
        A key of ``BLOCKS``.
    width : float
        Multiplies the channels; 64 of the stem at 1.
    selective : bool
        Whether 3×3 convolutions are selective kernels, and the stem is three of them.
    """

    depth: int
    width: float
    selective: bool

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            known = ", ".join(map(str, BLOCKS))
            raise InputError(f"`size` {self} has no such depth; choose one of {known}")
        if self.channels < 2 or self.channels % 2:
            raise InputError(f"`size` {self} has no such width; choose 1, 2, 3, or 0.25 for a CPU")

    def __str__(self) -> str:
        return f"r{self.depth}_{self.width:g}x_sk{int(self.selective)}"

    @property
    def channels(self) -> int:
        """Of the stem."""
        return int(64 * self.width)


def size_in(text: str) -> Size | None:
    """The size that a text, such as the name of a file, says; None where it says none."""
    found = _SIZE.search(text)
    return Size(int(found[1]), float(found[2]), found[3] == "1") if found else None


class SimclrResNet(nn.Module):
    """A SimCLRv2 ResNet: images (n, 3, H, W), float32 in [0, 1], to features (n, dim).

    Parameters
    ----------
    size : Size
    small_images : bool
        For 32-pixel images: the stem is one 3×3 convolution that keeps their size.

    Attributes
    ----------
    dim : int
        ``2048 · width``.
    recompute : bool
        Forget what is inside each block and compute it again in the backward pass: less memory,
        a third more time, the same gradients and running statistics.
    """

    def __init__(self, size: Size, *, small_images: bool = False) -> None:
        super().__init__()
        self.recompute = False
        channels = size.channels
        stages: list[nn.Module] = [_stem(channels, size.selective, small_images)]
        width_in = channels
        for number, blocks in enumerate(BLOCKS[size.depth]):
            width, stride = channels << number, 1 if number == 0 else 2
            stages.append(_Stage(width_in, width, blocks, stride, size.selective))
            width_in = 4 * width
        self.net = nn.Sequential(*stages)
        self.dim = width_in

    def forward(self, x: Tensor) -> Tensor:
        """Features, (n, dim): the last stage, averaged over positions."""
        for stage in self.net:
            if not isinstance(stage, _Stage):
                x = stage(x)
                continue
            for block in stage.blocks:
                if self.recompute and torch.is_grad_enabled():
                    contexts = _statistics_once(block)
                    x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
                else:
                    x = block(x)
        return x.mean(dim=(2, 3))


class ProjectionHead(nn.Module):
    """Linear layers, each followed by batch norm, with ReLU between: (n, dim) to (n, out).

    Parameters
    ----------
    dim : int
    blocks : int
        3 in pretraining, the last of 128 outputs. Fine-tuning keeps the first (section 2 of the
        paper), with its ReLU.
    """

    def __init__(self, dim: int, blocks: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(blocks):
            last = number == 2
            self.layers.append(nn.Linear(dim, EMBEDDING if last else dim, bias=False))
            self.layers.append(nn.BatchNorm1d(EMBEDDING if last else dim))
            if not last:
                self.layers.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(n, dim) to (n, 128), or (n, dim) of fewer blocks."""
        for layer in self.layers:
            x = layer(x)
        return x


class SimclrEncoder(nn.Module):
    """A pretrained ResNet with its whole head, under the names of released checkpoints.

    ``forward``: the head's output, scaled to length 1, (n, 128).
    """

    out_dim = EMBEDDING

    def __init__(self, size: Size, *, small_images: bool = False) -> None:
        super().__init__()
        self.resnet = SimclrResNet(size, small_images=small_images)
        self.dim = self.resnet.dim
        self.head = ProjectionHead(self.dim)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (n, dim)."""
        out: Tensor = self.resnet(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Features of length 1, (n, 128)."""
        return F.normalize(self.head(self.features(x)))


class FineTuned(nn.Module):
    """A ResNet, the first block of its head, and a fresh linear classifier: logits (n, classes).

    The parts are called as in the checkpoints that the original's fine-tuning writes.
    """

    def __init__(self, encoder: SimclrEncoder, classes: int) -> None:
        super().__init__()
        self.model = encoder.resnet
        self.head = ProjectionHead(encoder.dim, blocks=1)
        self.head.layers.load_state_dict(encoder.head.layers[:3].state_dict())
        self.linear = nn.Linear(encoder.dim, classes)

    def freeze_backbone(self) -> None:
        """Let gradients reach head and classifier only; running statistics move in training."""
        self.model.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        out: Tensor = self.linear(self.head(self.model(x)))
        return out


class _NormRelu(nn.Sequential):
    """Batch norm, and ReLU or not."""

    def __init__(self, channels: int, *, relu: bool = True) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU() if relu else nn.Identity())


def _conv(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, bias=False)


def _stem(channels: int, selective: bool, small_images: bool) -> nn.Sequential:
    if small_images:
        return nn.Sequential(_conv(3, channels, 3), _NormRelu(channels))
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    if not selective:
        return nn.Sequential(_conv(3, channels, 7, 2), _NormRelu(channels), pool)
    half = channels // 2
    return nn.Sequential(
        _conv(3, half, 3, 2),
        _NormRelu(half),
        _conv(half, half, 3),
        _NormRelu(half),
        _conv(half, channels, 3),
        _NormRelu(channels),
        pool,
    )


class _SelectiveKernel(nn.Module):
    """Two 3×3 convolutions, mixed channel by channel by weights that depend on the image."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        between = max(int(width * SK_RATIO), SK_CHANNELS)
        self.main_conv = nn.Sequential(_conv(width, 2 * width, 3, stride), _NormRelu(2 * width))
        self.mixing_conv = nn.Sequential(
            _conv(width, between, 1), _NormRelu(between), _conv(between, 2 * width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to (n, width, h / stride, w / stride)."""
        both = self.main_conv(x).unflatten(1, (2, -1))
        mean = both.sum(dim=1).mean(dim=(2, 3), keepdim=True)
        share = self.mixing_conv(mean).unflatten(1, (2, -1)).softmax(dim=1)
        mixed: Tensor = (both * share).sum(dim=1)
        return mixed


class _Projection(nn.Module):
    """The shortcut of a stage's first block, where width and size change."""

    def __init__(self, width_in: int, width: int, stride: int, selective: bool) -> None:
        super().__init__()
        # The zeros beside and below the image count in the averages, as in the released networks.
        self.shortcut: nn.Module = _conv(width_in, width, 1, stride)
        if selective:
            pool = nn.AvgPool2d(2, stride)
            self.shortcut = nn.Sequential(
                nn.ZeroPad2d((0, 1, 0, 1)), pool, _conv(width_in, width, 1)
            )
        self.bn = _NormRelu(width, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, width, h / stride, w / stride)."""
        out: Tensor = self.bn(self.shortcut(x))
        return out


class _Block(nn.Module):
    """A bottleneck: 1×1, 3×3 or selective kernels, 1×1, and a shortcut."""

    def __init__(
        self, width_in: int, width: int, stride: int, selective: bool, *, first: bool
    ) -> None:
        super().__init__()
        self.projection = _Projection(width_in, 4 * width, stride, selective) if first else None
        middle: list[nn.Module] = [_conv(width, width, 3, stride), _NormRelu(width)]
        if selective:
            middle = [_SelectiveKernel(width, stride)]
        self.net = nn.Sequential(
            _conv(width_in, width, 1),
            _NormRelu(width),
            *middle,
            _conv(width, 4 * width, 1),
            _NormRelu(4 * width, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, width_in, h, w) to (n, 4 · width, h / stride, w / stride)."""
        shortcut = x if self.projection is None else self.projection(x)
        return F.relu(shortcut + self.net(x))


class _Stage(nn.Module):
    def __init__(
        self, width_in: int, width: int, blocks: int, stride: int, selective: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(width_in, width, stride, selective, first=True)])
        for _ in range(blocks - 1):
            self.blocks.append(_Block(4 * width, width, 1, selective, first=False))


def _statistics_once(
    block: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Contexts for ``checkpoint``: what it computes again moves no running statistics again."""
    return lambda: (nullcontext(), _still(block))


@contextmanager
def _still(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
