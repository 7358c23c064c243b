"""The views of USL-T and FixMatch against PIL, bit for bit; and their params against method.md.

Exactly, not within a level: posterize or equalize may come next and would widen any gap.
"""

import random

import numpy as np
import pytest
import torch
from helpers import VARIED, tensor, varied_pictures
from oracles import randaugment_pil as pil
from PIL import Image, ImageDraw

from usl import InputError
from usl.augment.ops import NAMES
from usl.augment.randaugment import RandAugmentTransform, ScanTransform, WeakTransform
from usl.augment.rng import Key
from usl.encoders.preprocess import NORMALIZATION, Preprocess

MEAN = (0.4914, 0.4822, 0.4465)
MEAN, STD = NORMALIZATION["SCAN-cifar10"]
SEEN = Preprocess(32, 32, mean=MEAN, std=STD)
TRANSFORMS = [ScanTransform(fill=MEAN), WeakTransform(), RandAugmentTransform()]


def sample(transform, images):
    return transform.sample(Key(torch.arange(len(images)), 1, 2, 0), images.shape[1:3])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_whole_chains_equal_pil(images, transform):
    before = tensor(images)
    params = sample(transform, images)
    ours = transform.apply(before, params)
    assert torch.equal(before, tensor(images))
    assert torch.equal(ours, pil.apply(images, params))
    changed = (ours != before).flatten(1).any(dim=1).float().mean()
    assert changed > 0.7


def test_longer_chains_equal_pil(images):
    for transform in (
        ScanTransform(operations=9, cutout=5, fill=0.3),
        RandAugmentTransform(operations=6, magnitude=4, padding=9, cutout=7),
    ):
        params = sample(transform, images)
        assert torch.equal(transform.apply(tensor(images), params), pil.apply(images, params))


def test_images_of_few_levels_are_rounded_as_for_pil():
    sixteenths = torch.randint(0, 17, (VARIED, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    levels = (sixteenths * 255 / 16).round().byte().permute(0, 2, 3, 1).numpy()
    for transform in TRANSFORMS[::2]:
        params = sample(transform, levels)
        ours = transform.apply(sixteenths / 16, params)
        touched = (params.operation > 0).any(dim=1)
        theirs = pil.apply(levels, params)
        torch.testing.assert_close(ours[touched], theirs[touched], atol=1e-6, rtol=0)


def test_nothing_drawn_changes_nothing(images):
    x = tensor(images) * 0.77  # off grey levels
    for transform in (
        ScanTransform(flip=0, operations=0, cutout=0, fill=0.5),
        WeakTransform(flip=0, padding=0),
        RandAugmentTransform(flip=0, padding=0, operations=0, cutout=0),
    ):
        assert torch.equal(transform.apply(x, sample(transform, images)), x)
    mirrored = WeakTransform(flip=1, padding=0)
    assert torch.equal(mirrored.apply(x, sample(mirrored, images)), x.flip(3))


def test_scans_hole_is_zero_after_normalising():
    images = varied_pictures(32, 32)
    x = tensor(images)
    transform = ScanTransform(flip=0, operations=0, fill=MEAN)
    params = sample(transform, images)
    out = SEEN.normalize(transform.apply(x, params))
    for row, (top, left, bottom, right) in enumerate(params.hole.tolist()):
        assert not out[row, :, top:bottom, left:right].any()
    height, width = (params.hole[:, 2:] - params.hole[:, :2]).unbind(dim=1)
    assert (out != SEEN.normalize(x)).any(dim=1).sum() == (height * width).sum()


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
    ("transform", "operation", "hole"),
    [
        (ScanTransform(fill=MEAN), scan_operation, scan_hole),
        (RandAugmentTransform(), fixmatch_operation, fixmatch_hole),
    ],
    ids=["scan", "fixmatch"],
)
def test_draws_have_the_distributions_of_method(transform, operation, hole):
    n, height, width, r = 20000, 32, 36, random.Random(0)
    params = transform.sample(Key(torch.arange(n), 1), (height, width))
    theirs = [operation(r, width) for _ in range(n)]
    for turn in range(transform.operations):
        numbers, amounts = params.operation[:, turn], params.amount[:, turn]
        for number, name in enumerate(NAMES):
            some, same = amounts[numbers == number], [v for other, v in theirs if other == name]
            share = len(same) / n
            assert len(some) / n == pytest.approx(share, abs=6 * (share / n) ** 0.5)
            if same[0] is not None:
                assert_same_distribution(some, same)
                assert some.min() == pytest.approx(min(same), abs=0.02 * np.ptp(same))
                assert some.max() == pytest.approx(max(same), abs=0.02 * np.ptp(same))
    # The turns are unrelated.
    first, second = params.operation[:, 0], params.operation[:, 1]
    share = (first > 0).float().mean() * (second > 0).float().mean()
    assert ((first > 0) & (second > 0)).float().mean() == pytest.approx(float(share), abs=0.015)
    holes = np.array([hole(r, height, width) for _ in range(n)])
    for ours, other in zip(params.hole.T, holes.T, strict=True):
        assert_same_distribution(ours, other)
    sides = [np.asarray(x[:, 2:] - x[:, :2]) for x in (params.hole, holes)]
    assert_same_distribution(*(side.prod(axis=1) for side in sides))
    assert sides[0].max() == sides[1].max() == (16 if operation is scan_operation else 17)
    assert params.flip.float().mean() == pytest.approx(0.5, abs=0.015)


def test_fixmatchs_amounts_are_those_of_its_formula():
    """Every level, at a width of which 32-bit arithmetic would get a pixel wrong."""
    n, r = 20000, random.Random(1)
    params = RandAugmentTransform().sample(Key(torch.arange(n), 0), (100, 100))
    drawn = zip(params.operation.flatten().tolist(), params.amount.flatten().tolist(), strict=True)
    ours = {(NAMES[number], round(v, 5)) for number, v in drawn}
    theirs = {(name, v) for name, v in (fixmatch_operation(r, 100) for _ in range(n)) if v}
    assert {(name, round(v, 5)) for name, v in theirs} == {
        (name, v) for name, v in ours if FIXMATCH_POOL[name]
    }


def test_crops_are_uniform():
    n = 20000
    for transform in (WeakTransform(), RandAugmentTransform()):
        params = transform.sample(Key(torch.arange(n), 1), (32, 32))
        shifts, counts = params.shift.unique(dim=0, return_counts=True)
        assert len(shifts) == 81 and shifts.abs().max() == 4
        assert (((counts - n / 81) ** 2) / (n / 81)).sum() < 135  # 80 degrees: p < 0.0001
        assert params.flip.float().mean() == pytest.approx(0.5, abs=0.015)
    assert (ScanTransform(fill=0).sample(Key(torch.arange(9), 0), (8, 8)).shift == 0).all()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_draws_depend_on_seed_epoch_view_and_image_alone(transform):
    def one(images, **changes):
        options = {"seed": 1, "epoch": 2, "view": 0} | changes
        params = transform.sample(Key(images, **options), (32, 32))
        rows = (params.flip, params.shift, params.operation, params.amount, params.hole)
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
        (lambda: ScanTransform(flip=-1, fill=0), "`flip` is -1; choose 0 to 1"),
        (lambda: WeakTransform(flip=1.5), "`flip` is 1.5"),
        (lambda: RandAugmentTransform(flip=2), "`flip` is 2"),
        (lambda: ScanTransform(operations=-1, fill=0), "`operations` is -1; choose a whole number"),
        (lambda: ScanTransform(cutout=2.5, fill=0), "`cutout` is 2.5; choose a whole number"),
        (lambda: ScanTransform(fill=(0.1, 0.2)), r"`fill` is \(0.1, 0.2\); choose one number or"),
        (lambda: ScanTransform(fill=127), "`fill` is 127"),
        (lambda: WeakTransform(padding=-4), "`padding` is -4"),
        (lambda: RandAugmentTransform(cutout=-1), "`cutout` is -1"),
        (lambda: RandAugmentTransform(magnitude=1), "`magnitude` is 1; choose 2 to 10"),
        (lambda: RandAugmentTransform(magnitude=11), "`magnitude` is 11"),
        (
            lambda: sample(WeakTransform(), varied_pictures(4, 9)),
            "`padding` is 4, and the images have 4 by 9",
        ),
    ],
)
def test_impossible_chains(make, message):
    with pytest.raises(InputError, match=message):
        make()
