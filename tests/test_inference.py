"""Features: extraction that goes on where it stopped, of images in memory and in files."""

import threading

import numpy as np
import pytest
import torch
from helpers import SIDE, make_folder

from usl import InputError
from usl.data.datasets import ImageDataset, open_dataset
from usl.encoders.preprocess import NORMALIZATION, Preprocess
from usl.inference import SHARD_BATCHES, extract
from usl.models.resnet_cifar import PretextEncoder, small_resnet

MEAN, STD = NORMALIZATION["imagenet"]
SEEN = Preprocess(SIDE, round(SIDE * 256 / 224), mean=MEAN, std=STD)
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


def test_rows_of_broken_files_are_nan_where_they_may_be(tmp_path):
    names = {f"{i}.png": ("RGB", (40, 36)) for i in range(7)}
    some = open_dataset("folder", make_folder(tmp_path, names), workers=2)
    encoder = PretextEncoder(**small_resnet(2, 10)).eval()
    options = {"preprocess": SEEN, "batch_size": 3, "skip_unreadable": True}
    whole = extract(encoder, some, **options)
    for name in ("2.png", "6.png"):
        (some.folder / name).write_bytes(b"")
    found = extract(encoder, some, **options)
    assert np.isnan(found[[2, 6]]).all()
    kept = [0, 1, 3, 4, 5]
    assert np.array_equal(found[kept], whole[kept])
    for path in some.paths:
        (some.folder / path).write_bytes(b"")
    with pytest.raises(InputError, match="none of the 7 images can be read; see the first: 0.png"):
        extract(encoder, some, **options)


def test_half_precision_is_near_and_others_are_unknown(folder_images):
    torch.manual_seed(0)
    encoder = PretextEncoder(**small_resnet(8, 10)).eval()
    options = {"preprocess": SEEN, "batch_size": 5}
    exact = extract(encoder, folder_images, **options)
    near = extract(encoder, folder_images, precision="bfloat16", **options)
    assert near.dtype == np.float32 and not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, atol=2e-2)
    with pytest.raises(InputError, match="unknown `precision` 'int4'; choose one of float32, bfl"):
        extract(encoder, folder_images, precision="int4", **options)


def test_large_images_go_through_the_network_a_few_at_a_time():
    seen = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.mean(dim=(2, 3))

    images = ImageDataset("x", "train", np.zeros((9, 32, 32, 3), np.uint8), None, ())
    large = Preprocess(512, 512, mean=MEAN, std=STD)
    found = extract(Counting(), images, preprocess=large, batch_size=7)
    assert found.shape == (9, 3) and seen == [2, 2, 2, 1, 2]


def test_shards_with_broken_files_are_no_answer_where_these_stop_a_run(tmp_path):
    names = {f"{i:02}.png": ("RGB", (40, 36)) for i in range(2 * SHARD_BATCHES + 1)}
    some = open_dataset("folder", make_folder(tmp_path, names), workers=2)
    (some.folder / "03.png").write_bytes(b"")
    encoder = PretextEncoder(**small_resnet(2, 10)).eval()
    options = {"preprocess": SEEN, "batch_size": 1, "shards": tmp_path / "s", "source": {"a": 1}}
    skipped = extract(encoder, some, skip_unreadable=True, **options)
    assert np.isnan(skipped[3]).all()
    with pytest.raises(InputError, match="03.png: it is in no known format"):
        extract(encoder, some, **options)
    # The other way round every finished shard is taken: broken files are found late.
    for path in some.paths[SHARD_BATCHES:]:
        (some.folder / path).unlink()
    assert np.array_equal(extract(encoder, some, skip_unreadable=True, **options), skipped, True)


def test_a_network_that_makes_nan_is_an_error_of_its_own():
    class Broken(torch.nn.Module):
        def forward(self, x):
            features = x.mean(dim=(2, 3))
            return torch.where(features > 0.5, torch.inf, features)

    images = np.zeros((9, 32, 32, 3), np.uint8)
    images[7] = 255
    data = ImageDataset("x", "train", images, None, ())
    for skip in (False, True):
        with pytest.raises(InputError, match="NaN or infinite features of image 7; set `pre"):
            extract(
                Broken(), data, preprocess=Preprocess(32, 32), batch_size=4, skip_unreadable=skip,
                finite=True,
            )  # fmt: skip
