"""The views of USL-T and FixMatch against PIL, bit for bit; and their draws against method.md.

Exactly, not within a level: posterize or equalize may come next and would widen any gap.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import functional as F
from usl.data.pool import NAMES
from usl.data.strong import RandAugmentChain, ScanChain, WeakChain
from usl.data.transforms import normalize

from usl import InputError
from usl.data import pool, strong_pil

MEAN = (0.4914, 0.4822, 0.4465)
CHAINS = [ScanChain(fill=MEAN), WeakChain(), RandAugmentChain()]
N = 420


def pictures(height, width):
    """Noise, low contrast, slopes, flat, grey and two-level images, (N, H, W, 3), uint8."""
    r = np.random.RandomState(0)
    noise = r.randint(0, 256, (N, height, width, 3))
    slope = np.linspace(0, 255, width)[None, None, :, None] * r.rand(N, 1, 1, 3)
    kinds = [
        noise,
        noise // 4 + 90,
        slope + noise // 20,
        slope,
        noise[:, :1, :1],
        noise[..., :1],
        np.where(noise < 128, 10, 200),
    ]
    kinds = [np.broadcast_to(kind, noise.shape)[i::7] for i, kind in enumerate(kinds)]
    return np.stack(kinds, axis=1).reshape(noise.shape).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[(32, 32, 3), (32, 32, 1), (20, 27, 3)], ids=str)
def images(request):
    height, width, channels = request.param
    return pictures(height, width)[..., :channels]


def tensor(images):
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


def draw(chain, images, **changes):
    options = {"seed": 1, "epoch": 2, "view": 0} | changes
    return chain.draw(torch.arange(len(images)), *images.shape[1:3], **options)


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
        ours = pool.OPERATIONS[name](tensor(images), amount.expand(len(images)))
        for row, image in enumerate(images):
            picture = Image.fromarray(image.squeeze())
            theirs = F.to_tensor(strong_pil.OPERATIONS[name](picture, float(amount)))
            assert torch.equal(ours[row], theirs), (amount, row)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 3)])
def test_operations_on_tiny_images(size):
    images = pictures(*size)[:14]
    number = torch.arange(len(NAMES))[:, None]
    amount = torch.tensor([[AMOUNTS[name][-2:][0]] for name in NAMES], dtype=torch.float32)
    ours = pool.apply(tensor(images), number, amount)
    for row, name in enumerate(NAMES):
        theirs = strong_pil.OPERATIONS[name](Image.fromarray(images[row]), float(amount[row, 0]))
        assert torch.equal(ours[row], F.to_tensor(theirs)), name


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: type(chain).__name__)
def test_whole_chains_equal_pil(images, chain):
    before = tensor(images)
    draws = draw(chain, images)
    ours = chain.apply(before, draws)
    assert torch.equal(before, tensor(images))
    assert torch.equal(ours, chain.apply_pil(images, draws))
    changed = (ours != before).flatten(1).any(dim=1).float().mean()
    assert changed > 0.7


def test_longer_chains_equal_pil(images):
    for chain in (
        ScanChain(operations=9, cutout=5, fill=0.3),
        RandAugmentChain(operations=6, magnitude=4, padding=9, cutout=7),
    ):
        draws = draw(chain, images)
        assert torch.equal(chain.apply(tensor(images), draws), chain.apply_pil(images, draws))


def test_images_of_few_levels_are_rounded_as_for_pil():
    sixteenths = torch.randint(0, 17, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    levels = (sixteenths * 255 / 16).round().byte().permute(0, 2, 3, 1).numpy()
    for chain in CHAINS[::2]:
        draws = draw(chain, levels)
        ours = chain.apply(sixteenths / 16, draws)
        touched = (draws.operation > 0).any(dim=1)
        theirs = chain.apply_pil(levels, draws)
        torch.testing.assert_close(ours[touched], theirs[touched], atol=1e-6, rtol=0)


def test_nothing_drawn_changes_nothing(images):
    x = tensor(images) * 0.77  # off grey levels
    for chain in (
        ScanChain(flip=0, operations=0, cutout=0, fill=0.5),
        WeakChain(flip=0, padding=0),
        RandAugmentChain(flip=0, padding=0, operations=0, cutout=0),
    ):
        assert torch.equal(chain.apply(x, draw(chain, images)), x)
    mirrored = WeakChain(flip=1, padding=0)
    assert torch.equal(mirrored.apply(x, draw(mirrored, images)), x.flip(3))


def test_scans_hole_is_zero_after_normalising():
    images = pictures(32, 32)
    x = tensor(images)
    chain = ScanChain(flip=0, operations=0, fill=MEAN)
    draws = draw(chain, images)
    out = normalize(chain.apply(x, draws), "SCAN-cifar10")
    for row, (top, left, bottom, right) in enumerate(draws.hole.tolist()):
        assert not out[row, :, top:bottom, left:right].any()
    height, width = (draws.hole[:, 2:] - draws.hole[:, :2]).unbind(dim=1)
    assert (out != normalize(x, "SCAN-cifar10")).any(dim=1).sum() == (height * width).sum()


# What follows draws views as method.md describes them, one by one, in plain Python.
SCAN_POOL = {
    "identity": None,
    "autocontrast": None,
    "equalize": None,
    "rotate": (-30, 30),
    "solarize": (0, 256),
    "color": (0.05, 0.95),
    "contrast": (0.05, 0.95),
    "brightness": (0.05, 0.95),
    "sharpness": (0.05, 0.95),
    "shear_x": (-0.1, 0.1),
    "translate_x": (-0.1, 0.1),
    "translate_y": (-0.1, 0.1),
    "posterize": (4, 8),
    "shear_y": (-0.1, 0.1),
}
FIXMATCH_POOL = {
    "autocontrast": None,
    "brightness": (0.9, 0.05),
    "color": (0.9, 0.05),
    "contrast": (0.9, 0.05),
    "equalize": None,
    "identity": None,
    "posterize": (4, 4),
    "rotate": (30, 0),
    "sharpness": (0.9, 0.05),
    "shear_x": (0.3, 0),
    "shear_y": (0.3, 0),
    "solarize": (256, 0),
    "translate_x": (0.3, 0),
    "translate_y": (0.3, 0),
}
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def scan_operation(r, width):
    name = r.choice(list(SCAN_POOL))
    if SCAN_POOL[name] is None:
        return name, None
    value = r.uniform(*SCAN_POOL[name])
    if name == "posterize":
        value = int(value)
    if name in SIGNED and r.random() < 0.5:
        value = -value
    return name, value * width if "translate" in name else value


def fixmatch_operation(r, width):
    name, level = r.choice(list(FIXMATCH_POOL)), r.randint(1, 9)
    if r.random() < 0.5:
        return "identity", None
    if FIXMATCH_POOL[name] is None:
        return name, None
    largest, bias = FIXMATCH_POOL[name]
    value = level * largest / 10 + bias
    if name in ("rotate", "posterize", "solarize"):
        value = int(value)
    if name == "solarize":
        value = 256 - value
    if name in SIGNED and r.random() < 0.5:
        value = -value
    return name, int(value * width) if "translate" in name else value


def scan_hole(r, height, width):
    half = r.randint(1, 16) // 2
    y, x = r.randrange(height), r.randrange(width)
    return max(y - half, 0), max(x - half, 0), min(y + half, height), min(x + half, width)


def fixmatch_hole(r, height, width):
    x, y = r.uniform(0, width), r.uniform(0, height)
    x0, y0 = int(max(0, x - 8)), int(max(0, y - 8))
    x1, y1 = int(min(width, x0 + 16)), int(min(height, y0 + 16))
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((x0, y0, x1, y1), 255)
    left, top, right, bottom = mask.getbbox()
    return top, left, bottom, right


def assert_same_distribution(ours, theirs):
    """Kolmogorov-Smirnov, p < 0.0001."""
    ours, theirs = (np.sort(np.asarray(x, dtype=np.float64)) for x in (ours, theirs))
    # Amounts are float32 and Python's are not: equal ones must not count as different.
    grid = np.concatenate([ours, theirs]) + 1e-5
    a, b = (np.searchsorted(x, grid) / len(x) for x in (ours, theirs))
    assert np.abs(a - b).max() < 2.23 * np.sqrt(1 / len(ours) + 1 / len(theirs))


@pytest.mark.parametrize(
    ("chain", "operation", "hole"),
    [
        (ScanChain(fill=MEAN), scan_operation, scan_hole),
        (RandAugmentChain(), fixmatch_operation, fixmatch_hole),
    ],
    ids=["scan", "fixmatch"],
)
def test_draws_have_the_distributions_of_method(chain, operation, hole):
    n, height, width, r = 20000, 32, 36, random.Random(0)
    draws = chain.draw(torch.arange(n), height, width, seed=1, epoch=0, view=0)
    theirs = [operation(r, width) for _ in range(n)]
    for turn in range(chain.operations):
        numbers, amounts = draws.operation[:, turn], draws.amount[:, turn]
        for number, name in enumerate(NAMES):
            some, same = amounts[numbers == number], [v for other, v in theirs if other == name]
            share = len(same) / n
            assert len(some) / n == pytest.approx(share, abs=6 * (share / n) ** 0.5)
            if same[0] is not None:
                assert_same_distribution(some, same)
                assert some.min() == pytest.approx(min(same), abs=0.02 * np.ptp(same))
                assert some.max() == pytest.approx(max(same), abs=0.02 * np.ptp(same))
    # The turns are unrelated.
    first, second = draws.operation[:, 0], draws.operation[:, 1]
    share = (first > 0).float().mean() * (second > 0).float().mean()
    assert ((first > 0) & (second > 0)).float().mean() == pytest.approx(float(share), abs=0.015)
    holes = np.array([hole(r, height, width) for _ in range(n)])
    for ours, other in zip(draws.hole.T, holes.T, strict=True):
        assert_same_distribution(ours, other)
    sides = [np.asarray(x[:, 2:] - x[:, :2]) for x in (draws.hole, holes)]
    assert_same_distribution(*(side.prod(axis=1) for side in sides))
    assert sides[0].max() == sides[1].max() == (16 if operation is scan_operation else 17)
    assert draws.flip.float().mean() == pytest.approx(0.5, abs=0.015)


def test_fixmatchs_amounts_are_those_of_its_formula():
    """Every level, at a width of which 32-bit arithmetic would get a pixel wrong."""
    n, r = 20000, random.Random(1)
    draws = RandAugmentChain().draw(torch.arange(n), 100, 100, seed=0, epoch=0, view=0)
    drawn = zip(draws.operation.flatten().tolist(), draws.amount.flatten().tolist(), strict=True)
    ours = {(NAMES[number], round(v, 5)) for number, v in drawn}
    theirs = {(name, v) for name, v in (fixmatch_operation(r, 100) for _ in range(n)) if v}
    assert {(name, round(v, 5)) for name, v in theirs} == {
        (name, v) for name, v in ours if FIXMATCH_POOL[name]
    }


def test_crops_are_uniform():
    n = 20000
    for chain in (WeakChain(), RandAugmentChain()):
        draws = chain.draw(torch.arange(n), 32, 32, seed=1, epoch=0, view=0)
        places, counts = draws.shift.unique(dim=0, return_counts=True)
        assert len(places) == 81 and places.abs().max() == 4
        assert (((counts - n / 81) ** 2) / (n / 81)).sum() < 135  # 80 degrees: p < 0.0001
        assert draws.flip.float().mean() == pytest.approx(0.5, abs=0.015)
    assert (ScanChain(fill=0).draw(torch.arange(9), 8, 8, seed=0, epoch=0, view=0).shift == 0).all()


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: type(chain).__name__)
def test_draws_depend_on_seed_epoch_view_and_image_alone(chain):
    def one(images, **changes):
        options = {"seed": 1, "epoch": 2, "view": 0} | changes
        draws = chain.draw(images, 32, 32, **options)
        rows = (draws.flip, draws.shift, draws.operation, draws.amount, draws.hole)
        return torch.cat([part.reshape(len(images), -1).double() for part in rows], dim=1)

    images = torch.randperm(60000, generator=torch.Generator().manual_seed(0))[:200]
    together = one(images)
    assert torch.equal(together[[7]], one(images[[7]]))
    assert torch.equal(together.flip(0), one(images.flip(0)))
    assert len(together.unique(dim=0)) > 90
    for change in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        assert (one(images, **change) != together).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScanChain(flip=-1, fill=0), "the probability flip is -1; choose 0 to 1"),
        (lambda: WeakChain(flip=1.5), "the probability flip is 1.5"),
        (lambda: RandAugmentChain(flip=2), "the probability flip is 2"),
        (lambda: ScanChain(operations=-1, fill=0), "operations is -1; choose a whole number"),
        (lambda: ScanChain(cutout=2.5, fill=0), "cutout is 2.5; choose a whole number"),
        (lambda: ScanChain(fill=(0.1, 0.2)), r"the fill is \(0.1, 0.2\); choose one number or"),
        (lambda: ScanChain(fill=127), "the fill is 127"),
        (lambda: WeakChain(padding=-4), "padding is -4"),
        (lambda: RandAugmentChain(cutout=-1), "cutout is -1"),
        (lambda: RandAugmentChain(magnitude=1), "magnitude is 1; choose 2 to 10"),
        (lambda: RandAugmentChain(magnitude=11), "magnitude is 11"),
        (lambda: draw(WeakChain(), pictures(4, 9)), "padding of 4 around images of 4 by 9"),
    ],
)
def test_impossible_chains(make, message):
    with pytest.raises(InputError, match=message):
        make()
