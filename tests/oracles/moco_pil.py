"""The same augmentations image by image, with PIL and torchvision: what ours must equal."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from usl.augment.moco import Params


def apply(images: np.ndarray, params: Params, size: int) -> Tensor:
    """Augment images one by one.

    Parameters
    ----------
    images : ndarray (n, H, W, C), uint8
    params : Params
        For these n images.
    size : int
        Side of the result.

    Returns
    -------
    Tensor (n, C, size, size), float32 in [0, 1]
    """
    return torch.stack([_one(image, params, row, size) for row, image in enumerate(images)])


def _one(image: np.ndarray, params: Params, row: int, size: int) -> Tensor:
    grey_image = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey_image else image)
    box = params.box[row].tolist()
    picture = F.resized_crop(picture, *box, [size, size], InterpolationMode.BILINEAR)
    if params.jitter[row]:
        for number in params.order[row].tolist():
            picture = OPERATIONS[number](picture, float(params.factors[row, number]))
    if params.grey[row] and not grey_image:
        picture = F.to_grayscale(picture, 3)
    if params.blur[row]:
        picture = picture.filter(ImageFilter.GaussianBlur(float(params.sigma[row])))
    if params.flip[row]:
        picture = F.hflip(picture)
    result: Tensor = F.to_tensor(picture)
    return result


OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
