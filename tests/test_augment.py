"""Batched augmentation against PIL, image by image; and what draws may depend on."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F
from usl.data.augment import BLUR_RADIUS, MocoChain
from usl.data.draws import permutation, uniform

from usl import InputError
from usl.data import augment, augment_pil

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
def draws():
    return MocoChain().draw(torch.arange(N), 32, 32, seed=3, epoch=1, view=0)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def pictures(images):
    return [Image.fromarray(image) for image in images]


@pytest.mark.parametrize("number", range(4))
def test_each_jitter_equals_pil_within_a_grey_level(images, draws, number):
    ours = augment.OPERATIONS[number](tensor(images), draws.factors[:, number])
    operation = augment_pil.OPERATIONS[number]
    for row, picture in enumerate(pictures(images)):
        theirs = F.to_tensor(operation(picture, float(draws.factors[row, number])))
        assert (ours[row] - theirs).abs().max() <= LEVEL


@pytest.mark.parametrize("size", [32, 16, 40])
def test_crops_equal_pil_within_a_grey_level(images, draws, size):
    ours = augment.resized_crop(tensor(images), draws.box, size)
    for row, picture in enumerate(pictures(images)):
        theirs = F.to_tensor(F.resized_crop(picture, *draws.box[row].tolist(), [size, size]))
        assert (ours[row] - theirs).abs().max() <= LEVEL


def test_grey_and_blur_equal_pil_within_a_grey_level(images, draws):
    grey = augment.grey(tensor(images))
    blurred = augment.blur(tensor(images), draws.sigma)
    kernel = [2 * BLUR_RADIUS + 1] * 2
    for row, picture in enumerate(pictures(images)):
        assert (grey[row] - F.to_tensor(F.to_grayscale(picture))).abs().max() <= LEVEL
        theirs = F.to_tensor(F.gaussian_blur(picture, kernel, [float(draws.sigma[row])] * 2))
        assert (blurred[row] - theirs).abs().max() <= LEVEL


@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_chain_equals_pil_but_for_its_roundings(images, channels):
    # PIL cuts off after each of up to seven operations; hue, which does so most, is left out.
    images = images[..., :channels]
    some = MocoChain(hue=0.0).draw(torch.arange(N), 32, 32, seed=5, epoch=0, view=1)
    ours = MocoChain().apply(tensor(images), some)
    theirs = MocoChain().apply_pil(images, some)
    assert (ours - theirs).abs().max() <= 8 / 255
    assert (ours - theirs).abs().mean() <= 1.5 / 255


def test_nothing_drawn_changes_nothing(images):
    chain = MocoChain(scale=(1.0, 1.0), flip=0, jitter=0, grey=0, blur=0)
    none = chain.draw(torch.arange(N), 32, 32, seed=0, epoch=0, view=0)
    none.box[:] = torch.tensor([0, 0, 32, 32])
    before = tensor(images)
    out = chain.apply(before, none)
    torch.testing.assert_close(out, tensor(images), atol=1e-6, rtol=0)
    flipped = MocoChain(flip=1.0).draw(torch.arange(N), 32, 32, seed=0, epoch=0, view=0)
    assert flipped.flip.all()
    assert torch.equal(before, tensor(images))


def test_draws_have_torchvisions_distributions():
    n = 20000
    chain = MocoChain()
    ours = chain.draw(torch.arange(n), 32, 32, seed=1, epoch=0, view=0)
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
        assert getattr(ours, name).float().mean() == pytest.approx(getattr(chain, name), abs=0.015)
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        f = ours.factors[:, column]
        assert low <= f.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < f.max() <= high
        assert f.mean() == pytest.approx((low + high) / 2, abs=0.01)
    assert ours.sigma.mean() == pytest.approx(1.05, abs=0.02)
    orders, counts = ours.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > n / 24 * 0.8


def test_draws_depend_on_seed_epoch_view_and_image_alone():
    def one(images, **changes):
        return uniform(images, 7, **({"seed": 1, "epoch": 2, "view": 0} | changes))

    images = torch.tensor([5, 900, 3, 59999])
    together = one(images)
    assert torch.equal(together[[2]], one(torch.tensor([3])))
    assert torch.equal(together.flip(0), one(images.flip(0)))
    for change in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        assert not (one(images, **change) == together).any()


def test_draws_are_uniform_and_unrelated():
    u = uniform(torch.arange(5000), 6, seed=0, epoch=0, view=0).double()
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        counts = torch.histc(column, 20, 0, 1)
        assert ((counts - 250) ** 2 / 250).sum() < 45  # chi squared, 19 degrees: p < 0.001
    related = torch.corrcoef(u.T) - torch.eye(6)
    assert related.abs().max() < 0.05
    assert torch.corrcoef(torch.stack([u[1:, 0], u[:-1, 0]]))[0, 1].abs() < 0.05


def test_each_epoch_has_an_order_of_its_own():
    first, second = (permutation(100, seed=0, epoch=e) for e in (0, 1))
    assert sorted(first.tolist()) == list(range(100)) and not torch.equal(first, second)
    assert torch.equal(first, permutation(100, seed=0, epoch=0))


def test_impossible_chains():
    with pytest.raises(InputError, match="the probability flip is 2"):
        MocoChain(flip=2)
    with pytest.raises(InputError, match="choose 0 < low"):
        MocoChain(scale=(0.0, 1.0))
