import argparse
import gzip
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_cifar, make_cld_checkpoint
from torchvision import datasets as tv_datasets
from torchvision import transforms as T
from usl.data.transforms import NORMALIZATION, normalize
from usl.features import SHARD_BATCHES, extract
from usl.models.encoders import load_encoder, pixels_encoder

from usl import InputError
from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.data.datasets import ImageDataset, open_dataset
from usl.models.resnet_cifar import CifarResNet, CldEncoder, PretextEncoder, UsltEncoder

NAMES = json.loads((Path(__file__).parent / "state_dicts.json").read_text())


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


@pytest.mark.parametrize("name", ["CLD-cifar10", "FixMatch-cifar100"])
def test_images_reach_networks_as_through_torchvision(tmp_path, name):
    data = open_dataset("cifar10", make_cifar(tmp_path))
    chain = T.Compose([T.ToTensor(), T.Normalize(*NORMALIZATION[name])])
    expected = torch.stack([chain(image) for image in data.images[3:9]])
    assert torch.equal(normalize(data.for_networks(3, 9), name), expected)


def test_cifar100(tmp_path):
    data = open_dataset("cifar100", make_cifar(tmp_path, classes=100))
    assert data.images.shape == (200, 32, 32, 3) and len(data.classes) == 100


def test_normalisation_constants_are_the_published_ones():
    cifar10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    cifar100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = {
        "imagenet": imagenet, "imagenet100": imagenet,
        "CLD-cifar10": cifar10, "CLD-cifar100": cifar10, "SCAN-cifar10": cifar10,
        "SCAN-cifar100": cifar100, "FixMatch-cifar100": cifar100,
        "FixMatch-cifar10": (cifar10[0], (0.2471, 0.2435, 0.2616)),
    }  # fmt: skip
    assert {k: NORMALIZATION[k] for k in expected} == expected


def test_digits():
    train, test = (open_dataset("digits", "", split) for split in ("train", "test"))
    assert (len(train), len(test), train.white) == (1437, 360, 16)
    assert float(train.native(0, 1437).max()) == 1.0
    seen = train.for_networks(0, 2)
    assert seen.shape == (2, 3, 32, 32)
    for y, x in [(0, 0), (5, 9), (31, 17)]:
        assert (seen[0, :, y, x] == train.images[0, y // 4, x // 4, 0] / 16).all()


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
    with pytest.raises(InputError, match="CIFAR10 is not in DATASET.ROOT_DIR .* no network"):
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


def test_unknown_data_set():
    with pytest.raises(InputError, match="'mnist'; choose one of cifar10, cifar100"):
        open_dataset("mnist", "")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_cifar_files_cannot_run_code(tmp_path, capsys):
    make_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    for content, message in [
        (pickle.dumps({"data": Evil()}), "it holds builtins.print"),
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


def shapes(network, prefix=""):
    return {f"{prefix}{k}": list(v.shape) for k, v in network.state_dict().items()}


def test_parameter_names_are_the_released_ones():
    cld = NAMES["cld_resnet18_normlinear"]
    assert shapes(CldEncoder()) == {k: v for k, v in cld.items() if not k.startswith("groupDis")}
    assert shapes(CifarResNet()) == NAMES["resnet_cifar18"]
    uslt = {k: v for k, v in NAMES["uslt_cifar10"].items() if not k.startswith("cluster_head")}
    assert shapes(UsltEncoder()) == uslt


def random_weights(names):
    torch.manual_seed(1)
    return {k: 0.05 * torch.rand(s) - (0.02 if len(s) > 1 else 0) for k, s in names.items()}


def checkpoint(layout):
    if layout == "cld":
        weights = random_weights(NAMES["cld_resnet18_normlinear"])
        return {"model": {f"module.{k}": v for k, v in weights.items()}, "epoch": 200}
    if layout == "uslt":
        weights = random_weights(NAMES["uslt_cifar10"])
        return {"model": weights, "ema_model": None, "epoch": 3, "criterion_local": {}}
    weights = random_weights(shapes(PretextEncoder()))
    return {f"module.{k}": v for k, v in weights.items()} if layout == "scan-module" else weights


@pytest.mark.parametrize(
    ("layout", "kind", "dim", "length"),
    [
        ("cld", CldEncoder, 128, 1.0),
        ("scan", PretextEncoder, 128, 1.0),
        ("scan-module", PretextEncoder, 128, 1.0),
        ("uslt", UsltEncoder, 512, None),
    ],
)
def test_released_layouts_load(tmp_path, layout, kind, dim, length):
    content = checkpoint(layout)
    torch.save(content, tmp_path / "c.pth")
    encoder = load_encoder(tmp_path / "c.pth")
    assert type(encoder) is kind and not encoder.training
    given = weights_in(content)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, given[name].to(value.dtype)), name
    out = encoder(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, dim)
    if length:
        torch.testing.assert_close(out.norm(dim=1), torch.ones(2))


def test_cld_head_by_hand():
    encoder = CldEncoder().eval()
    x = torch.randn(3, 3, 32, 32)
    w = encoder.linear.weight
    hidden = CifarResNet.forward(encoder, x)
    logits = hidden @ (w / (w * w).sum(0).sqrt())
    expected = logits / (logits * logits).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(encoder(x), expected)


def test_a_checkpoint_of_another_network(tmp_path):
    weights = CldEncoder().state_dict()
    del weights["bn1.bias"]
    weights |= {"fc.weight": torch.zeros(2), "conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save({"model": weights}, tmp_path / "c.pth")
    with pytest.raises(InputError) as error:
        load_encoder(tmp_path / "c.pth")
    assert str(error.value).endswith(
        "c.pth is of another network; missing: bn1.bias; left over: fc.weight; "
        "of another shape: conv1.weight (64, 3, 7, 7) instead of (64, 3, 3, 3)"
    )
    with pytest.raises(InputError, match="and 95 more"):
        load_weights(CldEncoder(), {}, where="x")


def test_weights_that_old_checkpoints_lack_or_that_are_not_finite(tmp_path):
    weights = CldEncoder().state_dict()
    counters = [k for k in weights if k.endswith("num_batches_tracked")]
    torch.save({"model": {k: v for k, v in weights.items() if k not in counters}}, tmp_path / "c")
    load_encoder(tmp_path / "c")
    weights["linear.weight"][3] = torch.nan
    torch.save({"model": weights, "x": {0: torch.zeros(1)}}, tmp_path / "c")
    with pytest.raises(InputError, match="not finite: linear.weight"):
        load_encoder(tmp_path / "c")


def test_backbone_dim_is_checked(tmp_path):
    make_cld_checkpoint(tmp_path / "c.pth")
    with pytest.raises(InputError, match="MODEL.BACKBONE_DIM is 100, ResNet18 has 512"):
        load_encoder(tmp_path / "c.pth", backbone_dim=100)


def test_old_pickles_inside_checkpoints(tmp_path):
    content = {
        "n": np.int64(1),
        "s": np.str_("a"),
        "best": np.float64(3),
        "lr": np.float32(1),
        "opt": argparse.Namespace(lr=0.1),
    }
    make_cld_checkpoint(tmp_path / "c.pth", **content)
    assert read_checkpoint(tmp_path / "c.pth")["opt"].lr == 0.1
    # Saved under NumPy 1, whose modules had other names.
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "old.pth").read_bytes().replace(b"numpy._core", b"numpy.core")
    (tmp_path / "old.pth").write_bytes(raw)
    assert read_checkpoint(tmp_path / "old.pth")["best"] == 3.0


def test_checkpoints_cannot_run_code(tmp_path, capsys):
    torch.save({"model": {}, "evil": Evil()}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="holds print, .* MODEL.TRUST_CHECKPOINT True"):
        read_checkpoint(tmp_path / "c.pth")
    assert capsys.readouterr().out == ""
    torch.save({"evil": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="old.pth holds print"):
        read_checkpoint(tmp_path / "old.pth")
    read_checkpoint(tmp_path / "c.pth", trust=True)
    assert capsys.readouterr().out == "executed\n"


def test_damaged_checkpoints(tmp_path):
    make_cld_checkpoint(tmp_path / "c.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save([1], tmp_path / "list.pth")
    for name, message in [
        ("cut.pth", "it is damaged"),
        ("text.pth", "it is damaged"),
        ("empty.pth", "it is damaged"),
        ("list.pth", "holds a list, not a dict"),
        ("none.pth", "there is no checkpoint"),
    ]:
        with pytest.raises(InputError, match=message):
            read_checkpoint(tmp_path / name)


def test_pixels_by_hand():
    train = open_dataset("digits", "", "train")
    found = extract(pixels_encoder(train), train, transform="", batch_size=100)
    raw = train.images[..., 0].reshape(1437, 64) / 16.0
    raw = raw - raw.mean(0)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-7)


class Counting(torch.nn.Module):
    sees_native = True

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
    options = {"transform": "", "batch_size": 3, "shards": tmp_path / "s", "source": {"a": 1}}
    with pytest.raises(KeyboardInterrupt):
        extract(Counting(2 * SHARD_BATCHES + 3), data, **options)
    rest = Counting()
    found = extract(rest, data, **options)
    assert rest.seen == 30 - 2 * SHARD_BATCHES
    assert np.array_equal(found, extract(Counting(), data, transform="", batch_size=3))
    # Shards of another source are not used.
    other = Counting()
    extract(other, data, **(options | {"source": {"a": 2}}))
    assert other.seen == 30


def test_bad_extraction():
    data = open_dataset("digits", "", "test")
    with pytest.raises(InputError, match="DATALOADER.BATCH_SIZE is 0"):
        extract(Counting(), data, transform="", batch_size=0)
    with pytest.raises(InputError, match="unknown DATASET.TRANSFORM_NAME 'x'; choose one of CLD"):
        extract(CldEncoder(), data, transform="x", batch_size=10)
