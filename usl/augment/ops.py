"""The operations of SCAN's and FixMatch's strong views, on whole batches.

Images are (n, C, H, W), float32 in [0, 1] and on grey levels (k / 255), with C 1 or 3; each has an
amount of its own, (n,). Results are on grey levels too: those that PIL gives, bit for bit, because
PIL's arithmetic is repeated step by step. A grey level more or less would not stay one: equalize or
posterize may come next.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from usl.augment.moco import grey

# PIL walks through the source of a geometric operation in 65536ths of a pixel.
_FINE_BITS = 16


def _levels(x: Tensor) -> Tensor:
    """Whole numbers 0 to 255, float32, in a tensor of their own."""
    return (x * 255).round_()


def _image(levels: Tensor) -> Tensor:
    # On a GPU a division by a Python number is a product with 1 / 255, often the last bit off;
    # after a division by a tensor, x * 255 is the level again, exactly.
    return levels.div_(levels.new_full((), 255.0))


def on_levels(x: Tensor) -> Tensor:
    """Round images to grey levels, in a tensor of their own."""
    return _image(_levels(x))


def autocontrast(x: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the whole range; ``amount`` is not looked at."""
    levels = _levels(x).double()
    low, high = levels.amin(dim=(2, 3), keepdim=True), levels.amax(dim=(2, 3), keepdim=True)
    flat = high == low
    # Not 255 / extent: torch makes that a product with the reciprocal, PIL divides.
    scale = (torch.full_like(low, 255.0) / (high - low)).masked_fill_(flat, 1.0)
    start = (low * scale).masked_fill_(flat, 0.0)
    return _image(levels.mul_(scale).sub_(start).floor_().float())


def equalize(x: Tensor, amount: Tensor) -> Tensor:
    """Flatten each channel's histogram; ``amount`` is not looked at."""
    levels = _levels(x).flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    pixels = levels.shape[2]
    last = counts.gather(2, levels.amax(dim=2, keepdim=True))
    step = (pixels - last) // 255
    darker = counts.cumsum(dim=2) - counts
    table = ((darker + step // 2) // step.clamp_min(1)).clamp_max_(255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return _image(table.float().gather(2, levels).view_as(x))


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels from ``threshold`` (0 to 256) on."""
    levels = _levels(x)
    return _image(torch.where(levels < threshold[:, None, None, None], levels, 255 - levels))


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the ``bits`` (1 to 8, whole) highest bits of each level."""
    dropped = (8 - bits.int())[:, None, None, None]
    return _image(((_levels(x).int() >> dropped) << dropped).float())


def _blend(levels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """PIL's mixture: ``other`` at factor 0, ``levels`` at 1, cut off to a level."""
    # Product and sum apart, as PIL has them: lerp or addcmul would round once, not twice.
    mixed = (levels - other).mul_(factor[:, None, None, None]).add_(other)
    return _image(mixed.clamp_(0, 255).floor_())


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with black."""
    return _blend(_levels(x), x.new_zeros(()), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with the mean luminance."""
    pixels = x.shape[2] * x.shape[3]
    total = _levels(grey(x)).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.long)
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(_levels(x), mean.float(), factor)


def color(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with the luminance of each pixel."""
    return _blend(_levels(x), _levels(grey(x)), factor)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with the smoothed image; the outermost pixels stay."""
    levels = _levels(x)
    smooth = levels.clone()
    if min(x.shape[2:]) > 2:
        rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
        around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        smooth[inner] = ((around + 4 * levels[inner]) / 13 + 0.5).floor_()
    return _blend(levels, smooth, factor)


def geometric(x: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """Move pixels: nearest source, black where there is none.

    Parameters
    ----------
    x : Tensor (n, C, H, W)
        On grey levels or not.
    kind : Tensor (n,), int64
        Which, by image: 0 turns it anticlockwise, 1 shifts each row by a slope times its number, 2
        each column, 3 shifts it to the left, 4 upwards.
    amount : Tensor (n,)
        In degrees, pixels a pixel, or pixels.
    """
    height, width = x.shape[2:]
    turn, slope_x, slope_y, move_x, move_y = (
        torch.where(kind == number, amount, 0).double()[:, None, None] for number in range(5)
    )
    angle = turn.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    # Source of the middle of pixel (0, 0). PIL cuts x + 0.5 + move off, so a move is whole.
    left = (0.5 - width / 2) * cos - (0.5 - height / 2) * sin + width / 2
    top = (0.5 - width / 2) * sin + (0.5 - height / 2) * cos + height / 2
    left = left + slope_x / 2 + (move_x + 0.5).floor()
    top = top + slope_y / 2 + (move_y + 0.5).floor()
    # Black is a border of one pixel, to which all that lies outside is moved.
    across, along, scale, left, top = (
        (value * (1 << _FINE_BITS) + 0.5).floor().int()
        for value in (slope_x - sin, slope_y + sin, cos, left + 1, top + 1)
    )
    columns = torch.arange(width, device=x.device, dtype=torch.int32)
    rows = torch.arange(height, device=x.device, dtype=torch.int32)[:, None]
    from_x = (scale * columns + left) + across * rows
    from_y = (scale * rows + top) + along * columns
    from_x.bitwise_right_shift_(_FINE_BITS).clamp_(0, width + 1)
    from_y.bitwise_right_shift_(_FINE_BITS).clamp_(0, height + 1)
    source = from_y.mul_(width + 2).add_(from_x).long()
    return take(functional.pad(x, (1, 1, 1, 1)), source)


def take(x: Tensor, source: Tensor) -> Tensor:
    """Pixel ``source`` (n, H, W), row · width + column, of images (n, C, H, W)."""
    index = source.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view(*x.shape[:2], *source.shape[1:])


OPERATIONS = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "solarize": solarize,
    "posterize": posterize,
    "brightness": brightness,
    "contrast": contrast,
    "color": color,
    "sharpness": sharpness,
}
# In the order of `geometric`, which does all of them in one call.
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
NAMES = ("identity", *OPERATIONS, *GEOMETRIC)
_ROTATE = NAMES.index("rotate")


def apply(x: Tensor, operation: Tensor, amount: Tensor) -> Tensor:
    """Do k operations on each image, one after the other.

    Parameters
    ----------
    x : Tensor (n, C, H, W)
        May be off grey levels; it is rounded first.
    operation : Tensor (n, k), int64
        Numbers of operations, in the order of ``NAMES``.
    amount : Tensor (n, k)

    Returns
    -------
    Tensor (n, C, H, W), a new one
    """
    x = on_levels(x)
    group = operation.clamp_max(_ROTATE)
    order = group.argsort(dim=0)
    # One transfer says how many images each operation has, in all k turns.
    sizes = functional.one_hot(group, _ROTATE + 1).sum(dim=0).tolist()
    for turn, counts in enumerate(sizes):
        for number, rows in enumerate(order[:, turn].split_with_sizes(counts)):
            if number == 0 or not len(rows):
                continue
            some, much = x.index_select(0, rows), amount[rows, turn]
            if number == _ROTATE:
                some = geometric(some, operation[rows, turn] - _ROTATE, much)
            else:
                some = OPERATIONS[NAMES[number]](some, much)
            x.index_copy_(0, rows, some)
    return x
