"""Files of data sets in their published formats, read without executing anything."""

from __future__ import annotations

import gzip
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from usl.config.paths import is_file
from usl.errors import InputError

# Images (N, H, W, C), uint8; labels (N,), int64; names of the classes.
Contents = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# What CIFAR's pickles of arrays and lists are made of; nothing here can run code.
SAFE_PICKLES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class CifarFiles:
    """Where a CIFAR set keeps what, in torchvision's layout."""

    name: str
    torchvision: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    meta: str
    names: str
    classes: int


CIFAR10 = CifarFiles(
    name="cifar10",
    torchvision="CIFAR10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    labels="labels",
    meta="batches.meta",
    names="label_names",
    classes=10,
)
CIFAR100 = CifarFiles(
    name="cifar100",
    torchvision="CIFAR100",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    labels="fine_labels",
    meta="meta",
    names="fine_label_names",
    classes=100,
)


def read_cifar(files: CifarFiles, root: Path, split: str) -> Contents:
    """A split of CIFAR-10 or CIFAR-100, from torchvision's files, which are downloaded if missing.

    Raises
    ------
    InputError
        Missing and not to be downloaded, damaged, or another file.
    """
    folder = root / files.folder
    names = files.train if split == "train" else files.test
    if not all(is_file(folder / name) for name in names):
        _download(files.torchvision, root)
    images: list[np.ndarray] = []
    labels: list[Any] = []
    for path in (folder / name for name in names):
        batch = _unpickle(path)
        data, targets = batch.get("data"), batch.get(files.labels)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
            raise InputError(f"{path} is not a {files.name} file: it has no uint8 table 'data'")
        if data.shape[1] != 3072 or not isinstance(targets, list) or len(targets) != len(data):
            raise InputError(f"{path} is not a {files.name} file: its sizes do not fit")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += targets
    meta = folder / files.meta
    classes = _unpickle(meta).get(files.names) if is_file(meta) else range(files.classes)
    if not isinstance(classes, list | range) or len(classes) != files.classes:
        raise InputError(f"{meta} does not name {files.classes} classes; put torchvision's there")
    known = _checked_labels(labels, len(classes), folder)
    together = np.ascontiguousarray(np.concatenate(images))
    return together, known, tuple(map(str, classes))


def read_fashion_mnist(root: Path, split: str) -> Contents:
    """A split of Fashion-MNIST: from ``root``, from Debian's package, or downloaded.

    Raises
    ------
    InputError
        Missing and not to be downloaded, or damaged.
    """
    stem = "train" if split == "train" else "t10k"
    files = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    folders = [root, root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    found = [_idx_files(folder, files) for folder in folders]
    if not any(found):
        _download("FashionMNIST", root)
        found = [_idx_files(folders[1], files)]
    images, labels = next(pair for pair in found if pair)
    pixels = _read_idx(images, 3)[..., None]
    targets = _checked_labels(_read_idx(labels, 1).tolist(), len(FASHION_CLASSES), labels)
    if len(pixels) != len(targets):
        raise InputError(f"{images} has {len(pixels)} images, {labels} {len(targets)} labels")
    return pixels, targets, FASHION_CLASSES


def _download(name: str, root: Path) -> None:
    import torchvision
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        # One process at a time; for those that waited, torchvision finds the files complete.
        with FileLock(root / f".{name}.lock"):
            getattr(torchvision.datasets, name)(str(root), download=True)
    except Exception as error:
        raise InputError(
            f"{name} is not in `root` {root} and cannot be downloaded "
            f"({type(error).__name__}: {error}); put torchvision's files there"
        ) from None


class _ArraysOnly(pickle.Unpickler):
    """Reads ``SAFE_PICKLES`` only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in SAFE_PICKLES:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise errors of any kind
        raise InputError(f"cannot read {path}: {error}; put torchvision's file there") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a CIFAR file; put torchvision's file there")
    return {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}


def _checked_labels(labels: list[Any], classes: int, where: Path) -> np.ndarray:
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise InputError(
            f"{where} has labels other than 0 to {classes - 1}; put the original there"
        )
    return np.array(labels, dtype=np.int64)


def _idx_files(folder: Path, names: list[str]) -> list[Path]:
    """The files of these names in a folder, gzipped or not; none unless all are there."""
    found = []
    for name in names:
        both = [path for path in (folder / name, folder / f"{name}.gz") if is_file(path)]
        found += both[:1]
    return found if len(found) == len(names) else []


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read the MNIST format: two zero bytes, type 8 (bytes), rank, sizes, then the values."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if raw[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError("it does not begin like an idx file")
        start = 4 + 4 * dimensions
        sizes = np.frombuffer(raw[4:start], dtype=">u4").astype(np.int64)
        return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(sizes).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}; put the published file there") from None
