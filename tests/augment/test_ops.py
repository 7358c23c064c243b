"""Each operation of the strong views against PIL, bit for bit."""

import pytest
import torch
from helpers import tensor, varied_pictures
from oracles import randaugment_pil as pil
from PIL import Image
from torchvision.transforms import functional as F

from usl.augment import ops
from usl.augment.ops import NAMES

ENHANCE = [0, 0.05, 0.14, 0.5, 0.86, 0.95, 1]
SHEAR = [-0.3, -0.27, -0.1, 0, 0.03, 0.1, 0.27, 0.3]
MOVE = [-9.6, -8, -3.2, -0.5, 0, 0.49999997, 0.5, 1.5, 3.2, 8, 9.6]
AMOUNTS = {
    "identity": [0],
    "autocontrast": [0],
    "equalize": [0],
    "solarize": [0, 1, 26, 100.5, 128, 231, 255.5, 256],
    "posterize": [4, 5, 6, 7, 8],
    "brightness": ENHANCE,
    "contrast": ENHANCE,
    "color": ENHANCE,
    "sharpness": ENHANCE,
    "rotate": [-30, -27, -12.34, -3, 0, 0.7, 3, 27, 30],
    "shear_x": SHEAR,
    "shear_y": SHEAR,
    "translate_x": MOVE,
    "translate_y": MOVE,
}


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_equals_pil(images, name):
    images = images[:28]
    for amount in torch.tensor(AMOUNTS[name], dtype=torch.float32):
        number = torch.full((len(images), 1), NAMES.index(name))
        ours = ops.apply(tensor(images), number, amount.expand(len(images), 1))
        for row, image in enumerate(images):
            picture = Image.fromarray(image.squeeze())
            theirs = F.to_tensor(pil.OPERATIONS[name](picture, float(amount)))
            assert torch.equal(ours[row], theirs), (amount, row)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 3)])
def test_operations_on_tiny_images(size):
    images = varied_pictures(*size)[:14]
    number = torch.arange(len(NAMES))[:, None]
    amount = torch.tensor([[AMOUNTS[name][-2:][0]] for name in NAMES], dtype=torch.float32)
    ours = ops.apply(tensor(images), number, amount)
    for row, name in enumerate(NAMES):
        theirs = pil.OPERATIONS[name](Image.fromarray(images[row]), float(amount[row, 0]))
        assert torch.equal(ours[row], F.to_tensor(theirs)), name
