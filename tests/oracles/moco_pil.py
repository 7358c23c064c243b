"""The same augmentations image by image, with PIL and torchvision: what ours must equal."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from usl.data.augment import BLUR_RADIUS, Draws


def apply(images: np.ndarray, draws: Draws, size: int) -> Tensor:
    """Augment images one by one.

    Parameters
    ----------
    images : ndarray (n, H, W, C), uint8
    draws : Draws
        For these n images.
    size : int
        Side of the result.

    Returns
    -------
    Tensor (n, C, size, size), float32 in [0, 1]
    """
    return torch.stack([_one(image, draws, row, size) for row, image in enumerate(images)])


def _one(image: np.ndarray, draws: Draws, row: int, size: int) -> Tensor:
    grey_image = image.shape[-1] == 1
    picture = Image.fromarray(image[..., 0] if grey_image else image)
    box = draws.box[row].tolist()
    picture = F.resized_crop(picture, *box, [size, size], InterpolationMode.BILINEAR)
    if draws.jitter[row]:
        for number in draws.order[row].tolist():
            picture = OPERATIONS[number](picture, float(draws.factors[row, number]))
    if draws.grey[row] and not grey_image:
        picture = F.to_grayscale(picture, 3)
    if draws.blur[row]:
        radius = min(BLUR_RADIUS, size - 1)
        picture = F.gaussian_blur(picture, [2 * radius + 1] * 2, [float(draws.sigma[row])] * 2)
    if draws.flip[row]:
        picture = F.hflip(picture)
    result: Tensor = F.to_tensor(picture)
    return result


OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
