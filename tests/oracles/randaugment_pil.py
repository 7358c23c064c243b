"""Strong and weak views image by image, with PIL: what ours must equal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

from usl.augment.ops import NAMES
from usl.augment.randaugment import Params


def _affine(picture: Image.Image, *matrix: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda picture, _: picture,
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    # SCAN's threshold is a fraction, which PIL takes but does not declare.
    "solarize": lambda picture, v: ImageOps.solarize(picture, v),  # type: ignore[arg-type]
    "posterize": lambda picture, bits: ImageOps.posterize(picture, int(bits)),
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
    "rotate": lambda picture, degrees: picture.rotate(degrees),
    "shear_x": lambda picture, v: _affine(picture, 1, v, 0, 0, 1, 0),
    "shear_y": lambda picture, v: _affine(picture, 1, 0, 0, v, 1, 0),
    "translate_x": lambda picture, v: _affine(picture, 1, 0, v, 0, 1, 0),
    "translate_y": lambda picture, v: _affine(picture, 1, 0, 0, 0, 1, v),
}


def apply(images: np.ndarray, params: Params) -> Tensor:
    """Augment images one by one.

    Parameters
    ----------
    images : ndarray (n, H, W, C), uint8
    params : Params
        For these n images.

    Returns
    -------
    Tensor (n, C, H, W), float32 in [0, 1]
    """
    return torch.stack([_one(image, params, row) for row, image in enumerate(images)])


def _one(image: np.ndarray, params: Params, row: int) -> Tensor:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if params.flip[row]:
        picture = F.hflip(picture)
    down, right = params.shift[row].tolist()
    if down or right:
        size, padding = picture.size, max(abs(down), abs(right))
        picture = F.pad(picture, padding, padding_mode="reflect")
        picture = F.crop(picture, padding + down, padding + right, size[1], size[0])
    for number, amount in zip(
        params.operation[row].tolist(), params.amount[row].tolist(), strict=True
    ):
        picture = OPERATIONS[NAMES[number]](picture, amount)
    result: Tensor = F.to_tensor(picture)
    top, left, bottom, right = params.hole[row].tolist()
    result[:, top:bottom, left:right] = params.fill[: len(result), None, None]
    return result
