"""Batched augmentation against PIL, image by image; and its params."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SIDE, tensor
from oracles import moco_pil as pil
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

from usl import InputError
from usl.augment import moco
from usl.augment.moco import MocoTransform, Params
from usl.augment.rng import Key

N = 96
LEVEL = 1.0 / 255 + 1e-5


@pytest.fixture(scope="module")
def images():
    random = np.random.RandomState(0)
    noise = random.randint(0, 256, (N, 32, 32, 3)) // 3
    slope = np.linspace(0, 170, 32)[None, :, None, None] * random.rand(N, 1, 1, 3)
    together = (noise + slope).astype(np.uint8)
    together[:8] = random.randint(0, 256, (8, 1, 1, 3))  # flat
    together[8:12] = random.randint(0, 256, (4, 32, 32, 1))  # grey
    return together


@pytest.fixture(scope="module")
def params():
    return MocoTransform().sample(Key(torch.arange(N), 3, 1), (32, 32))


def pictures(images):
    return [Image.fromarray(image) for image in images]


@pytest.mark.parametrize("number", range(4))
def test_each_jitter_equals_pil_within_a_grey_level(images, params, number):
    ours = moco.OPERATIONS[number](tensor(images), params.factors[:, number])
    operation = pil.OPERATIONS[number]
    for row, picture in enumerate(pictures(images)):
        theirs = F.to_tensor(operation(picture, float(params.factors[row, number])))
        assert (ours[row] - theirs).abs().max() <= LEVEL


@pytest.mark.parametrize("size", [32, 16, 40])
def test_crops_equal_pil_within_a_grey_level(images, params, size):
    ours = moco.resized_crop(tensor(images), params.box, size)
    for row, picture in enumerate(pictures(images)):
        theirs = F.to_tensor(F.resized_crop(picture, *params.box[row].tolist(), [size, size]))
        assert (ours[row] - theirs).abs().max() <= LEVEL


def test_grey_and_blur_equal_pil_within_a_grey_level(images, params):
    grey = moco.grey(tensor(images))
    blurred = moco.blur(tensor(images), params.sigma)
    for row, picture in enumerate(pictures(images)):
        assert (grey[row] - F.to_tensor(F.to_grayscale(picture))).abs().max() <= LEVEL
        theirs = F.to_tensor(picture.filter(ImageFilter.GaussianBlur(float(params.sigma[row]))))
        assert (blurred[row] - theirs).abs().max() <= LEVEL


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (2, 7), (3, 50), (100, 41)])
def test_blur_is_pils_for_any_size_and_radius(size):
    random = np.random.RandomState(1)
    images = random.randint(0, 256, (40, *size, 3)).astype(np.uint8)
    sigma = torch.linspace(0.05, 6, len(images))
    ours = moco.blur(tensor(images), sigma)
    theirs = [
        F.to_tensor(picture.filter(ImageFilter.GaussianBlur(float(radius))))
        for picture, radius in zip(pictures(images), sigma, strict=True)
    ]
    gap = (ours - torch.stack(theirs)).abs()
    assert gap.max() <= LEVEL
    # Fixed-point rounding decides in few pixels.
    assert (gap > 0.5 / 255).float().mean() < 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_chain_equals_pil_but_for_its_roundings(images, channels):
    # PIL cuts off after each of up to seven operations; hue, which does so most, is left out.
    images = images[..., :channels]
    some = MocoTransform(hue=0.0).sample(Key(torch.arange(N), 5, view=1), (32, 32))
    ours = MocoTransform().apply(tensor(images), some)
    theirs = pil.apply(images, some, 32)
    assert (ours - theirs).abs().max() <= 8 / 255
    assert (ours - theirs).abs().mean() <= 1.5 / 255


def test_nothing_drawn_changes_nothing(images):
    transform = MocoTransform(scale=(1.0, 1.0), flip=0, jitter=0, grey=0, blur=0)
    none = transform.sample(Key(torch.arange(N), 0), (32, 32))
    none.box[:] = torch.tensor([0, 0, 32, 32])
    before = tensor(images)
    out = transform.apply(before, none)
    torch.testing.assert_close(out, tensor(images), atol=1e-6, rtol=0)
    flipped = MocoTransform(flip=1.0).sample(Key(torch.arange(N), 0), (32, 32))
    assert flipped.flip.all()
    assert torch.equal(before, tensor(images))


def test_draws_have_torchvisions_distributions():
    n = 20000
    transform = MocoTransform()
    ours = transform.sample(Key(torch.arange(n), 1), (32, 32))
    torch.manual_seed(0)
    image = torch.empty(1, 32, 32)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(5000)]
    )
    for column in range(4):
        a, b = ours.box[:, column].double(), theirs[:, column].double()
        grid = torch.arange(33)
        gap = [(a <= g).double().mean() - (b <= g).double().mean() for g in grid]
        assert max(map(abs, gap)) < 0.03  # Kolmogorov-Smirnov, 5000 against 20000: p < 0.001
    for name in ("flip", "jitter", "grey", "blur"):
        assert getattr(ours, name).float().mean() == pytest.approx(
            getattr(transform, name), abs=0.015
        )
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        f = ours.factors[:, column]
        assert low <= f.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < f.max() <= high
        assert f.mean() == pytest.approx((low + high) / 2, abs=0.01)
    assert ours.sigma.mean() == pytest.approx(1.05, abs=0.02)
    orders, counts = ours.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > n / 24 * 0.8


def test_impossible_chains():
    with pytest.raises(InputError, match="`flip` is 2"):
        MocoTransform(flip=2)
    with pytest.raises(InputError, match="choose 0 < low"):
        MocoTransform(scale=(0.0, 1.0))


def test_sizes_may_differ_between_the_images_of_a_draw():
    heights, widths = torch.randint(1, 400, (2, 500))
    transform = MocoTransform(size=SIDE)
    together = transform.sample(Key(torch.arange(500), 1, 2), (heights, widths))
    for row in range(500):
        h, w = int(heights[row]), int(widths[row])
        one = transform.sample(Key(torch.tensor([row]), 1, 2), (h, w))
        for field in dataclasses.fields(Params):
            assert torch.equal(getattr(together, field.name)[row], getattr(one, field.name)[0]), (
                field.name
            )
        top, left, height, width = one.box[0].tolist()
        assert height >= 1 and width >= 1 and top + height <= h and left + width <= w
