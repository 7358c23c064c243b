"""Files of CIFAR and Fashion-MNIST: read as torchvision does, downloaded, damaged."""

import gzip
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Evil, make_cifar
from torchvision import datasets as tv_datasets

from usl import InputError
from usl.data.datasets import open_dataset


def write_idx(path, array, compress):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)


def test_cifar_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    make_cifar(tmp_path)
    monkeypatch.setattr(tv_datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    for split in ("train", "test"):
        ours = open_dataset("cifar10", tmp_path, split)
        theirs = tv_datasets.CIFAR10(tmp_path, train=split == "train")
        assert np.array_equal(ours.images, theirs.data)
        assert ours.labels.tolist() == theirs.targets and list(ours.classes) == theirs.classes


def test_cifar100(tmp_path):
    data = open_dataset("cifar100", make_cifar(tmp_path, classes=100))
    assert data.images.shape == (200, 32, 32, 3) and len(data.classes) == 100


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path, compress, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.RandomState(0).randint(0, 256, (6, 28, 28))
    suffix = ".gz" if compress else ""
    write_idx(folder / f"train-images-idx3-ubyte{suffix}", images, compress)
    write_idx(folder / f"train-labels-idx1-ubyte{suffix}", np.arange(6), compress)
    data = open_dataset("fashion-mnist", tmp_path)
    assert np.array_equal(data.images[..., 0], images) and data.labels.tolist() == [*range(6)]
    seen = data.for_networks(0, 6)
    assert seen.shape == (6, 3, 32, 32) and float(seen[:, :, :2].max()) == 0.0
    assert torch.equal(seen[:, 1, 2:30, 2:30], torch.from_numpy(images).float() / 255)


def test_damaged_fashion_mnist(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((6, 28, 28)), False)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(5), False)
    with pytest.raises(InputError, match="has 6 images, .* 5 labels"):
        open_dataset("fashion-mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="does not begin like an idx file"):
        open_dataset("fashion-mnist", tmp_path)
    raw = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(raw[:-100])
    with pytest.raises(InputError, match="cannot read"):
        open_dataset("fashion-mnist", tmp_path)


def test_missing_data_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(tv_datasets, "CIFAR10", offline)
    with pytest.raises(InputError, match="CIFAR10 is not in `root` .* no network"):
        open_dataset("cifar10", tmp_path)


def test_processes_download_one_after_the_other(tmp_path, monkeypatch):
    gate = threading.Lock()

    def fetch(root, download):
        assert gate.acquire(blocking=False), "two at once"
        time.sleep(0.1)
        if not (Path(root) / "cifar-10-batches-py").exists():
            make_cifar(Path(root), per_file=10)
        gate.release()

    monkeypatch.setattr(tv_datasets, "CIFAR10", fetch)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: open_dataset("cifar10", tmp_path / "new"), range(3)))
    assert [len(images) for images in found] == [50] * 3


def test_cifar_files_cannot_run_code(tmp_path, capsys):
    make_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    for content, message in [
        (pickle.dumps({"data": Evil()}), "it holds builtins.exec"),
        (b"", "cannot read"),
        (pickle.dumps([1]), "is not a CIFAR file"),
        (pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]}), "sizes do not fit"),
        (pickle.dumps({"labels": [1]}), "has no uint8 table 'data'"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
            "labels other than 0 to 9",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            open_dataset("cifar10", tmp_path)
    assert capsys.readouterr().out == ""
