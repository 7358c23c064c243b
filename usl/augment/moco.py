"""MoCo v2's augmentation of whole batches on the device, every image with parameters of its own.

Images are float32 in [0, 1], (n, C, H, W). Each operation equals that of torchvision on PIL images
within one of 255 grey levels at the same parameters (Chen et al., arXiv 2003.04297).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from usl.augment.rng import Key, uniform
from usl.errors import InputError

# Box blurs that PIL makes a Gaussian one of.
BLUR_PASSES = 3
# Weights of PIL's luminance, in 65536ths.
_GREY = (19595.0, 38470.0, 7471.0)
# Random numbers that one view of one image uses: 10 tries of a crop with 4 each, then 13.
_TRIES = 10
_NUMBERS = 4 * _TRIES + 13


@dataclass(frozen=True)
class Params:
    """Parameters of one view of n images; every field has one row an image.

    Attributes
    ----------
    box : Tensor (n, 4), int64
        Top, left, height and width of the crop.
    flip, jitter, grey, blur : Tensor (n,), bool
    order : Tensor (n, 4), int64
        Which of brightness, contrast, saturation, hue (0 to 3) comes first, second, …
    factors : Tensor (n, 4)
        Of brightness, contrast and saturation; shift of hue.
    sigma : Tensor (n,)
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    grey: Tensor
    blur: Tensor
    order: Tensor
    factors: Tensor
    sigma: Tensor

    def to(self, device: torch.device | str) -> Params:
        """The same parameters on another device."""
        return Params(
            **{field.name: getattr(self, field.name).to(device) for field in fields(self)}
        )


@dataclass(frozen=True, kw_only=True)
class MocoTransform:
    """MoCo v2's random view: crop and resize, jitter, grey, blur, flip.

    Attributes
    ----------
    size : int
        Side of the result, in pixels.
    scale : (low, high)
        Share of the image's area that is cropped; aspect ratios from 3/4 to 4/3.
    flip, jitter, grey, blur : float
        Probabilities.
    brightness, contrast, saturation, hue : float
        Largest changes: factors from 1 - x to 1 + x; hue by -x to x of the colour circle.
    sigma : (low, high)
        Of the blur, in pixels.
    """

    size: int = 32
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; choose 0 to 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"`scale` is {self.scale} of the area; choose 0 < low ≤ high ≤ 1")

    def sample(self, key: Key, size: tuple[int | Tensor, int | Tensor]) -> Params:
        """Draw the parameters of one view of each image.

        Parameters
        ----------
        key : Key
            Of n images.
        size : (height, width)
            Of the images, in pixels; tensors (n,), int64, where not all have the same.
        """
        u = uniform(key, _NUMBERS)
        rest = u[:, 4 * _TRIES :]
        reach = torch.tensor(
            [self.brightness, self.contrast, self.saturation, self.hue], device=u.device
        )
        centre = torch.tensor([1.0, 1.0, 1.0, 0.0], device=u.device)
        low, high = self.sigma
        return Params(
            box=_crops(self.scale, u[:, : 4 * _TRIES].reshape(-1, _TRIES, 4), *size),
            flip=rest[:, 0] < self.flip,
            jitter=rest[:, 1] < self.jitter,
            grey=rest[:, 2] < self.grey,
            blur=rest[:, 3] < self.blur,
            sigma=low + rest[:, 4] * (high - low),
            factors=(centre + (2 * rest[:, 5:9] - 1) * reach).clamp_min(-0.5),
            order=rest[:, 9:13].argsort(dim=1),
        )

    def apply(self, images: Tensor, params: Params) -> Tensor:
        """Augment a batch, (n, C, H, W), float32 in [0, 1], C 1 or 3, to (n, C, size, size)."""
        return self.recolour(resized_crop(images, params.box, self.size), params)

    def recolour(self, x: Tensor, params: Params) -> Tensor:
        """What comes after the crop; ``x`` (n, C, size, size) may be changed in place."""
        for position in range(4):
            for number, operation in enumerate(OPERATIONS):
                if number >= 2 and x.shape[1] == 1:
                    continue  # grey images have neither saturation nor hue
                rows = (params.jitter & (params.order[:, position] == number)).nonzero()[:, 0]
                if len(rows):
                    x[rows] = operation(x[rows], params.factors[rows, number])
        if x.shape[1] == 3:
            rows = params.grey.nonzero()[:, 0]
            x[rows] = grey(x[rows]).expand(-1, 3, -1, -1)
        rows = params.blur.nonzero()[:, 0]
        if len(rows):
            x[rows] = blur(x[rows], params.sigma[rows])
        return torch.where(params.flip[:, None, None, None], x.flip(3), x)


def _crops(
    scale: tuple[float, float], u: Tensor, height: int | Tensor, width: int | Tensor
) -> Tensor:
    """Boxes drawn as torchvision draws them: the first of ten tries that fits, else the middle."""
    height, width = (torch.as_tensor(x, device=u.device).expand(len(u)) for x in (height, width))
    area = (height * width)[:, None] * (scale[0] + u[..., 0] * (scale[1] - scale[0]))
    limit = torch.log(torch.tensor(4.0 / 3.0))
    ratio = torch.exp((2 * u[..., 1] - 1) * limit)
    w = torch.round(torch.sqrt(area * ratio)).long()
    h = torch.round(torch.sqrt(area / ratio)).long()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    # argmax gives the first True; where there is none, the fall-back is taken instead.
    first = fits.int().argmax(dim=1, keepdim=True)
    w, h = (x.gather(1, first)[:, 0] for x in (w, h))
    top, left = (u[..., i].gather(1, first)[:, 0] for i in (2, 3))
    none = ~fits.any(dim=1)
    w_all = torch.minimum(width, (height.double() * 4 / 3).round().long())
    h_all = torch.minimum(height, (width.double() * 4 / 3).round().long())
    w, h = torch.where(none, w_all, w), torch.where(none, h_all, h)
    top = torch.where(none, (height - h) // 2, (top * (height - h + 1)).long())
    left = torch.where(none, (width - w) // 2, (left * (width - w + 1)).long())
    return torch.stack([top, left, h, w], dim=1)


def resized_crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """Cut boxes (n, 4) out and resize them to ``size``, bilinear with PIL's antialiasing."""
    rows = _resizing(box[:, 0], box[:, 2], images.shape[2], size)
    columns = _resizing(box[:, 1], box[:, 3], images.shape[3], size)
    return (rows[:, None] @ images @ columns[:, None].transpose(2, 3)).clamp_(0, 1)


def _resizing(start: Tensor, length: Tensor, whole: int, size: int) -> Tensor:
    """Weights (n, size, whole) that resize ``length`` pixels from ``start`` on, as PIL does."""
    device = start.device
    step = (length.float() / size)[:, None, None]
    centre = (torch.arange(size, device=device)[None, :, None] + 0.5) * step
    position = torch.arange(whole, device=device)[None, None] - start[:, None, None] + 0.5
    weights = (1 - ((position - centre) / step.clamp_min(1)).abs()).clamp_min(0)
    weights *= (position > 0) & (position < length[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def grey(x: Tensor) -> Tensor:
    """Luminance, (n, 1, H, W), rounded to a grey level as PIL rounds it."""
    if x.shape[1] == 1:
        return x
    weights = torch.tensor(_GREY, device=x.device)[:, None, None]
    return ((x * 255 * weights).sum(dim=1, keepdim=True) / 65536 + 0.5).floor_() / 255


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with black; factor 1 changes nothing. ``x`` (n, C, H, W), ``factor`` (n,)."""
    return _blend(x, torch.zeros((), device=x.device), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with the mean luminance, rounded to a grey level as PIL rounds it."""
    mean = (grey(x).mean(dim=(1, 2, 3), keepdim=True) * 255 + 0.5).floor() / 255
    return _blend(x, mean, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Mix with the luminance of each pixel."""
    return _blend(x, grey(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by ``shift`` (n,), in turns, with PIL's eight-bit hue."""
    levels = (x * 255).round()
    high, low = levels.amax(dim=1), levels.amin(dim=1)
    extent = high - low
    rest = ((high[:, None] - levels) / extent.clamp_min(1)[:, None]).double()
    red, green, blue = rest.unbind(dim=1)
    turn = torch.where(
        levels[:, 0] == high,
        blue - green,
        torch.where(levels[:, 1] == high, 2 + red - blue, 4 + green - red),
    )
    # PIL holds hue and saturation in a byte each, cut off after a product in double precision.
    h = ((turn.float().double() / 6 + 1) % 1).float()
    h = (torch.where(extent == 0, 0, h).double() * 255).floor().float()
    s = ((extent / high.clamp_min(1)).double() * 255).floor().float() / 255
    h = (h + (shift[:, None, None] * 255).trunc()) % 256
    channels = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    k = (channels + (h * 6 / 255)[:, None]) % 6
    fall = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (high[:, None] * (1 - s[:, None] * fall)).round_() / 255


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """PIL's Gaussian blur, (n, C, H, W) with ``sigma`` (n,) in pixels; the border is continued.

    Three box blurs along the rows, then three along the columns, each rounded to grey levels, whose
    boxes have fractional ends (Gwosdek et al., SSVM 2011). In whole numbers, as PIL: float64 holds
    them exactly, so that no level depends on the order of a sum.
    """
    radius = _box_radius(sigma)
    whole = radius.floor()
    # In 2^24ths: the weight of each pixel of the box, and of the two at its ends.
    inner = (2**24 / (2 * radius + 1)).floor()
    ends = ((2**24 - (2 * whole + 1) * inner) / 2).floor()
    reach = int(whole.max()) + 1
    steps = torch.arange(-reach, reach + 1, device=x.device).abs()
    weights = torch.where(steps == whole[:, None] + 1, ends[:, None], 0)
    weights = torch.where(steps <= whole[:, None], inner[:, None], weights).double()
    levels = (x * 255).round().double()
    for _ in range(2):
        for _ in range(BLUR_PASSES):
            wide = F.pad(levels, (reach, reach, 0, 0), mode="replicate")
            levels = torch.full_like(levels, 2.0**23)
            for start, weight in enumerate(weights.T):
                shifted = wide[..., start : start + levels.shape[3]]
                levels += shifted * weight[:, None, None, None]
            levels = (levels / 2**24).floor_()
        levels = levels.transpose(2, 3)
    return levels.to(x.dtype) / 255


def _box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box whose three-fold blur has this standard deviation (ibid., Eqs. 7 to 14)."""
    variance = sigma * sigma / BLUR_PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) ** 2))


OPERATIONS = (brightness, contrast, saturation, hue)
