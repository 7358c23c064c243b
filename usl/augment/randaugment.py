"""The views of USL-T and FixMatch on CIFAR, in batches: SCAN's strong view, FixMatch's two.

SCAN: Van Gansbeke et al., arXiv 2005.12320. FixMatch: Sohn et al., arXiv 2001.07685. The ranges
are those of the released implementations. On grey levels the views equal PIL's bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from usl.augment import ops
from usl.augment.rng import Key, uniform
from usl.errors import InputError

# By operation: SCAN's (low, high), between which amounts are uniform; FixMatch's (max, bias), an
# amount being level · max / 10 + bias. Moves are shares of the width.
POOL = {
    "identity": ((0.0, 0.0), (0, 0)),
    "autocontrast": ((0.0, 0.0), (0, 0)),
    "equalize": ((0.0, 0.0), (0, 0)),
    "solarize": ((0.0, 256.0), (256, 0)),
    "posterize": ((4.0, 8.0), (4, 4)),
    "brightness": ((0.05, 0.95), (0.9, 0.05)),
    "contrast": ((0.05, 0.95), (0.9, 0.05)),
    "color": ((0.05, 0.95), (0.9, 0.05)),
    "sharpness": ((0.05, 0.95), (0.9, 0.05)),
    "rotate": ((-30.0, 30.0), (30, 0)),
    "shear_x": ((-0.1, 0.1), (0.3, 0)),
    "shear_y": ((-0.1, 0.1), (0.3, 0)),
    "translate_x": ((-0.1, 0.1), (0.3, 0)),
    "translate_y": ((-0.1, 0.1), (0.3, 0)),
}
_POSTERIZE, _ROTATE, _TRANSLATE = map(ops.NAMES.index, ("posterize", "rotate", "translate_x"))
# What FixMatch fills its square with.
_GREY = 127 / 255


@dataclass(frozen=True)
class Params:
    """Parameters of one view of n images.

    Attributes
    ----------
    flip : Tensor (n,), bool
    shift : Tensor (n, 2), int64
        Crop: how far down and to the right, in pixels; beyond the border the image is mirrored.
    operation : Tensor (n, k), int64
        Numbers of ``ops.NAMES``, in the order of doing.
    amount : Tensor (n, k)
    hole : Tensor (n, 4), int64
        Top, left, bottom and right of the square cut out, the last two exclusive.
    fill : Tensor (1,) or (3,)
        What it is filled with, by channel.
    """

    flip: Tensor
    shift: Tensor
    operation: Tensor
    amount: Tensor
    hole: Tensor
    fill: Tensor


class _Transform:
    """What the transforms share: the parameters say all about a view."""

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Augment a batch, (n, C, H, W), float32 in [0, 1], C 1 or 3, into one of that shape."""
        height, width = images.shape[2:]
        rows, columns = _mirrored(params.shift[:, 0], height), _mirrored(params.shift[:, 1], width)
        columns = torch.where(params.flip[:, None], width - 1 - columns, columns)
        x = ops.take(images, rows[:, :, None] * width + columns[:, None])
        if params.operation.shape[1]:
            x = ops.apply(x, params.operation, params.amount)
        top, left, bottom, right = params.hole[..., None].unbind(dim=1)
        hole = _between(top, bottom, height)[:, :, None] & _between(left, right, width)[:, None]
        return torch.where(hole[:, None], params.fill[: x.shape[1], None, None], x)


@dataclass(frozen=True, kw_only=True)
class ScanTransform(_Transform):
    """SCAN's strong view: flip, operations of its pool, one cut-out.

    Attributes
    ----------
    flip : float
        Probability; 0 where mirroring changes the class, as it does with digits.
    operations : int
        How many, drawn with replacement.
    cutout : int
        Largest length L; the square has a side of 2 · floor(L / 2). 0: no square.
    fill : float, or one for each of 3 channels
        Of the square, in [0, 1]: the mean that normalisation takes off, so that 0 remains.
        Grey images take the first.
    """

    flip: float = 0.5
    operations: int = 4
    cutout: int = 16
    fill: float | Sequence[float]

    def __post_init__(self) -> None:
        _check(self.flip, operations=self.operations, cutout=self.cutout)
        levels = _listed(self.fill)
        if len(levels) not in (1, 3) or not all(0 <= level <= 1 for level in levels):
            raise InputError(f"`fill` is {self.fill}; choose one number or three, from 0 to 1")

    def sample(self, key: Key, size: tuple[int, int]) -> Params:
        """Draw the parameters of one view of each image.

        Parameters
        ----------
        key : Key
            Of n images.
        size : (height, width)
            Of the images, in pixels.
        """
        u = uniform(key, 4 + 3 * self.operations)
        which, where, sign = u[:, 4:].reshape(len(u), -1, 3).unbind(dim=2)
        operation = (which * len(POOL)).long()
        low, high = torch.tensor([POOL[name][0] for name in ops.NAMES], device=u.device).T
        amount = low[operation] + where * (high - low)[operation]
        amount = torch.where(operation == _POSTERIZE, amount.trunc(), amount)
        amount = torch.where(operation >= _TRANSLATE, amount * size[1], amount)
        limits = torch.tensor(size, device=u.device)
        centre = (u[:, 1:3] * limits).long()
        half = (1 + (u[:, 3:4] * self.cutout).long()) // 2
        return Params(
            flip=u[:, 0] < self.flip,
            shift=torch.zeros_like(centre),
            operation=operation,
            amount=_signed(amount, operation, sign),
            hole=torch.cat([(centre - half).clamp_min(0), (centre + half).minimum(limits)], dim=1),
            fill=torch.tensor(_listed(self.fill), device=u.device),
        )


@dataclass(frozen=True, kw_only=True)
class WeakTransform(_Transform):
    """FixMatch's weak view: flip, then a crop of the mirror-padded image.

    Attributes
    ----------
    flip : float
        Probability.
    padding : int
        Largest shift, in pixels.
    """

    flip: float = 0.5
    padding: int = 4

    def __post_init__(self) -> None:
        _check(self.flip, padding=self.padding)

    def sample(self, key: Key, size: tuple[int, int]) -> Params:
        """Draw the parameters of one view of each image, as :meth:`ScanTransform.sample` does."""
        u = uniform(key, 3)
        return Params(
            flip=u[:, 0] < self.flip,
            shift=_shift(u[:, 1:3], self.padding, size),
            operation=torch.zeros(len(u), 0, dtype=torch.long, device=u.device),
            amount=u[:, :0],
            hole=torch.zeros(len(u), 4, dtype=torch.long, device=u.device),
            fill=torch.zeros(1, device=u.device),
        )


@dataclass(frozen=True, kw_only=True)
class RandAugmentTransform(_Transform):
    """FixMatch's strong view: the weak one, operations of its pool, a grey cut-out.

    Attributes
    ----------
    flip : float
        Probability.
    padding : int
        Largest shift, in pixels.
    operations : int
        How many, drawn with replacement; each is done with probability 1/2.
    magnitude : int
        Levels are 1 to ``magnitude`` - 1, of 10.
    cutout : int
        Side of the square, in pixels. 0: no square.
    """

    flip: float = 0.5
    padding: int = 4
    operations: int = 2
    magnitude: int = 10
    cutout: int = 16

    def __post_init__(self) -> None:
        _check(self.flip, padding=self.padding, operations=self.operations, cutout=self.cutout)
        if self.magnitude not in range(2, 11):
            raise InputError(f"`magnitude` is {self.magnitude}; choose 2 to 10")

    def sample(self, key: Key, size: tuple[int, int]) -> Params:
        """Draw the parameters of one view of each image, as :meth:`ScanTransform.sample` does."""
        u = uniform(key, 5 + 4 * self.operations)
        which, level, sign, done = u[:, 5:].reshape(len(u), -1, 4).unbind(dim=2)
        operation = torch.where(done < 0.5, (which * len(POOL)).long(), 0)
        amounts = torch.tensor(_amounts(self.magnitude, size[1]), device=u.device)
        amount = amounts[operation, (level * (self.magnitude - 1)).long()]
        limits = torch.tensor(size, device=u.device)
        start = (u[:, 3:5] * limits - self.cutout / 2).clamp_min(0).long()
        # PIL draws both ends of a rectangle: in the middle of an image it is a pixel larger.
        side = self.cutout + 1 if self.cutout else 0
        return Params(
            flip=u[:, 0] < self.flip,
            shift=_shift(u[:, 1:3], self.padding, size),
            operation=operation,
            amount=_signed(amount, operation, sign),
            hole=torch.cat([start, (start + side).minimum(limits)], dim=1),
            fill=torch.tensor([_GREY], device=u.device),
        )


def _check(flip: float, **counts: int) -> None:
    if not 0 <= flip <= 1:
        raise InputError(f"`flip` is {flip}; choose 0 to 1")
    for name, count in counts.items():
        if count < 0 or count != int(count):
            raise InputError(f"`{name}` is {count}; choose a whole number from 0 on")


def _listed(fill: float | Sequence[float]) -> list[float]:
    return [float(level) for level in fill] if isinstance(fill, Sequence) else [float(fill)]


def _shift(u: Tensor, padding: int, size: tuple[int, int]) -> Tensor:
    if padding >= min(size):
        raise InputError(
            f"`padding` is {padding}, and the images have {size[0]} by {size[1]} pixels; "
            "choose less than the shorter side"
        )
    return (u * (2 * padding + 1)).long() - padding


def _mirrored(start: Tensor, length: int) -> Tensor:
    """Pixels (n, length) from ``start`` on; those outside are mirrored at the border pixel."""
    pixels = (start[:, None] + torch.arange(length, device=start.device)).abs()
    return torch.where(pixels >= length, 2 * (length - 1) - pixels, pixels)


def _between(start: Tensor, end: Tensor, length: int) -> Tensor:
    """Which of the pixels 0 to ``length`` - 1 lie in ranges, (n, 1) each; (n, length), bool."""
    pixels = torch.arange(length, device=start.device)
    return (pixels >= start) & (pixels < end)


def _signed(amount: Tensor, operation: Tensor, u: Tensor) -> Tensor:
    """Half of the geometric operations go the other way."""
    return torch.where((operation >= _ROTATE) & (u < 0.5), -amount, amount)


def _amounts(magnitude: int, width: int) -> list[list[float]]:
    """FixMatch's amounts, by operation and level, in Python's arithmetic as the original's."""
    table = []
    for name in ops.NAMES:
        most, bias = POOL[name][1]
        amounts = [level * most / 10 + bias for level in range(1, magnitude)]
        if name.startswith("translate"):
            amounts = [int(amount * width) for amount in amounts]
        elif name in ("rotate", "posterize", "solarize"):
            amounts = [int(amount) for amount in amounts]
        if name == "solarize":
            amounts = [256 - amount for amount in amounts]
        table.append([float(amount) for amount in amounts])
    return table
