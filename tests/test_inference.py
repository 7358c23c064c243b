"""Features: extraction that goes on where it stopped, of images in memory and in files."""

import threading

import numpy as np
import pytest
import torch
from helpers import SIDE, make_folder

from usl import InputError
from usl.data.datasets import ImageDataset, open_dataset
from usl.encoders.preprocess import NORMALIZATION, Preprocess
from usl.inference import SHARD_BATCHES, ahead, extract
from usl.models.resnet_cifar import PretextEncoder, small_resnet

SEEN = Preprocess(SIDE, round(SIDE * 256 / 224), *NORMALIZATION["imagenet"])
NATIVE = Preprocess(4, 4, native=True)


class Counting(torch.nn.Module):
    def __init__(self, stop_after=10**9):
        super().__init__()
        self.seen, self.stop_after = 0, stop_after

    def forward(self, x):
        self.seen += 1
        if self.seen > self.stop_after:
            raise KeyboardInterrupt
        return x.flatten(1)[:, :5] * 2


def test_extraction_goes_on_where_it_stopped(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (90, 4, 4, 1)).astype(np.uint8)
    data = ImageDataset("x", "train", images, None, ())
    options = {"preprocess": NATIVE, "batch_size": 3, "shards": tmp_path / "s", "source": {"a": 1}}
    with pytest.raises(KeyboardInterrupt):
        extract(Counting(2 * SHARD_BATCHES + 3), data, **options)
    rest = Counting()
    found = extract(rest, data, **options)
    assert rest.seen == 30 - 2 * SHARD_BATCHES
    assert np.array_equal(found, extract(Counting(), data, preprocess=NATIVE, batch_size=3))
    # Shards of another source are not used.
    other = Counting()
    extract(other, data, **(options | {"source": {"a": 2}}))
    assert other.seen == 30


def test_bad_extraction():
    data = open_dataset("digits", "", "test")
    with pytest.raises(InputError, match="`batch_size` is 0; choose at least 1"):
        extract(Counting(), data, preprocess=NATIVE, batch_size=0)


def test_features_of_a_folder(folder_images, tmp_path):
    torch.manual_seed(0)
    encoder = PretextEncoder(**small_resnet(4, 10)).eval()
    options = {"preprocess": SEEN, "batch_size": 4}
    found = extract(encoder, folder_images, **options)
    with torch.no_grad():
        expected = encoder(SEEN.normalize(SEEN.read(folder_images, 0, len(folder_images))))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    memory = ImageDataset("x", "train", np.zeros((3, 32, 32, 3), np.uint8), None, ())
    assert extract(encoder, memory, **options).shape == (3, 128)


def test_extraction_of_a_folder_goes_on_where_it_stopped(folder_images, tmp_path):
    count = 2 * SHARD_BATCHES + 3
    names = {f"{i:03}.png": ("RGB", (40, 36)) for i in range(count)}
    some = open_dataset("folder", make_folder(tmp_path, names), workers=2)
    encoder = PretextEncoder(**small_resnet(2, 10)).eval()
    options = {"preprocess": SEEN, "batch_size": 1}
    whole = extract(encoder, some, **options)
    path = some.folder / some.paths[SHARD_BATCHES + 4]
    good = path.read_bytes()
    path.write_bytes(b"")
    threads = threading.active_count()
    shards = {"shards": tmp_path / "shards", "source": {"a": 1}}
    with pytest.raises(InputError, match="012.png: it is in no known format"):
        extract(encoder, some, **options, **shards)
    assert threading.active_count() == threads
    path.write_bytes(good)
    first = some.folder / some.paths[0]
    first.unlink()  # its shard is there already
    assert np.array_equal(extract(encoder, some, **options, **shards), whole)


def test_one_block_is_loaded_ahead():
    loaded, seen = [], []

    def load(item):
        loaded.append(item)
        if item == 4:
            raise InputError("four")
        return item * 10

    assert list(ahead(load, [])) == []
    blocks = ahead(load, range(9))
    with pytest.raises(InputError, match="four"):
        for block in blocks:
            seen.append(block)
    assert seen == [0, 10, 20, 30] and loaded[:5] == [0, 1, 2, 3, 4] and len(loaded) <= 6
    loaded.clear()
    blocks = ahead(load, range(4))
    assert next(blocks) == 0
    blocks.close()
    assert len(loaded) <= 2
