"""Data sets in memory: what networks see of them, and their names."""

import gzip
import struct

import numpy as np
import pytest
from helpers import make_cifar, make_folder

from usl import InputError
from usl.data.datasets import DATASETS, ImageDataset, open_dataset


def test_digits():
    train, test = (open_dataset("digits", "", split) for split in ("train", "test"))
    assert (len(train), len(test), train.max_value) == (1437, 360, 16)
    assert float(train.native(0, 1437).max()) == 1.0
    seen = train.for_networks(0, 2)
    assert seen.shape == (2, 3, 32, 32)
    for y, x in [(0, 0), (5, 9), (31, 17)]:
        assert (seen[0, :, y, x] == train.images[0, y // 4, x // 4, 0] / 16).all()


def test_unknown_data_set():
    with pytest.raises(InputError, match="'mnist'; choose one of cifar10, cifar100"):
        open_dataset("mnist", "")


def test_pictures_of_sets_in_memory():
    digits = open_dataset("digits", "")
    assert np.array_equal(digits.picture(7), digits.images[7].astype(int) * 255 // 16)
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert np.array_equal(ImageDataset("x", "train", image, None, ()).picture(0), image[0])


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A folder with files of every data set in its own format, with made-up content."""
    root = tmp_path_factory.mktemp("all")
    make_cifar(root, per_file=6)
    make_cifar(root, per_file=6, classes=100)
    for stem, count in (("train", 9), ("t10k", 4)):
        pixels = np.random.RandomState(0).randint(0, 256, (count, 28, 28)).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", pixels[:, 0, 0] % 10)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            path = root / f"{stem}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
    kinds = {f"{c}/{i}.png": ("RGB", (40, 36)) for c in "ab" for i in range(3)}
    make_folder(root, kinds)
    make_folder(root, kinds, split="val")
    return root


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"images"}))
def test_what_every_data_set_offers(name, roots):
    for split in ("train", "test"):
        images = open_dataset(name, roots, split, workers=2)
        assert (images.name, images.split) == (name, split) and len(images) > 3
        assert images.labels.shape == (len(images),) and images.labels.dtype == np.int64
        assert images.labels.min() >= 0 and images.labels.max() < len(images.classes)
        picture = images.picture(1)
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] in (1, 3)
        again = open_dataset(name, roots, split, workers=1)
        assert again.fingerprint() == images.fingerprint() and len(images.fingerprint()) == 64
    train = open_dataset(name, roots, "train")
    assert train.fingerprint() != open_dataset(name, roots, "test").fingerprint()
    assert train.classes == open_dataset(name, roots, "test").classes
