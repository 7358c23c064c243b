"""The image data sets, each by its name: held in memory as bytes, or folders of files."""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from usl.artifacts import fingerprint
from usl.data.folder import FolderDataset, open_folder
from usl.errors import InputError

# Where Debian's package dataset-fashion-mnist puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGITS_TRAIN = 1437
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
class ImageDataset:
    """Images of one size, in the order of their indices.

    Attributes
    ----------
    name : str
    split : {"train", "test"}
    images : ndarray (N, H, W, C), uint8
    labels : ndarray (N,), int64, or None
    classes : tuple of str
        Names of the classes.
    white : int
        Value of the brightest possible pixel.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    white: int = 255

    def __len__(self) -> int:
        return len(self.images)

    def native(self, start: int, stop: int) -> Tensor:
        """Images as they are: (n, C, H, W), float32 in [0, 1]."""
        block = torch.from_numpy(self.images[start:stop]).permute(0, 3, 1, 2)
        return block.float() / self.white

    def for_networks(self, start: int, stop: int) -> Tensor:
        """Images as CIFAR networks take them: (n, 3, 32, 32), float32 in [0, 1].

        Grey images are repeated to three channels; 28×28 is padded with black, 8×8 is enlarged
        by nearest neighbours.
        """
        return self._fitted(self.native(start, stop)).expand(-1, 3, -1, -1)

    def resident(self, device: torch.device | str = "cpu") -> Tensor:
        """All images for training: (N, C, 32, 32), uint8 up to ``white``, C as it is."""
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2)
        return self._fitted(images).contiguous().to(device)

    def _fitted(self, images: Tensor) -> Tensor:
        side = images.shape[-1]
        if side < 16:
            images = F.interpolate(images, size=32, mode="nearest")
        elif side < 32:
            images = F.pad(images, [(32 - side) // 2] * 4)
        return images

    @property
    def side(self) -> int:
        """Of the square that networks see, in pixels."""
        return int(self._fitted(torch.from_numpy(self.images[:1]).permute(0, 3, 1, 2)).shape[-1])

    def mean(self) -> Tensor:
        """The mean of the images as they are, (C, H, W), float32, from sums in float64."""
        mean = self.images.mean(axis=0, dtype=np.float64) / self.white
        return torch.from_numpy(mean).permute(2, 0, 1).float()

    def picture(self, index: int) -> np.ndarray:
        """One image for people: (H, W, C), uint8 up to 255."""
        picture: np.ndarray = self.images[index].astype(np.uint16) * 255 // self.white
        return picture.astype(np.uint8)

    def fingerprint(self) -> str:
        """SHA-256 of the images; labels do not matter to a selection."""
        return fingerprint(self.images)


AnyDataset = ImageDataset | FolderDataset


def open_dataset(
    name: str,
    root: str | Path,
    split: str = "train",
    *,
    side: int = 224,
    workers: int | None = None,
) -> AnyDataset:
    """Open a data set, downloading it where it is missing and its home can be reached.

    Parameters
    ----------
    name : {"cifar10", "cifar100", "fashion-mnist", "digits", "imagenet", "imagenet100", "folder"}
    root : path
        Folder of the data; torchvision's layout. digits come with scikit-learn.
    split : {"train", "test"}
    side, workers : int
        For folders of files, see :func:`usl.data.folder.open_folder`; the other data sets have a
        size of their own and need no workers.

    Returns
    -------
    ImageDataset, or FolderDataset for the last three

    Raises
    ------
    InputError
        Unknown name, or data that are missing and cannot be downloaded, or damaged.
    """
    if name not in DATASETS:
        raise InputError(f"unknown DATASET.NAME {name!r}; choose one of {', '.join(DATASETS)}")
    options = {"side": side, "workers": workers} if name in FOLDERS else {}
    return DATASETS[name](Path(root), split, **options)


@dataclass(frozen=True)
class _CifarFiles:
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


_CIFAR10 = _CifarFiles(
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
_CIFAR100 = _CifarFiles(
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


def _cifar(files: _CifarFiles, root: Path, split: str) -> ImageDataset:
    folder = root / files.folder
    names = files.train if split == "train" else files.test
    if not all((folder / name).is_file() for name in names):
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
    classes = _unpickle(meta).get(files.names) if meta.is_file() else range(files.classes)
    if not isinstance(classes, list | range) or len(classes) != files.classes:
        raise InputError(f"{meta} does not name {files.classes} classes; put torchvision's there")
    known = _checked_labels(labels, len(classes), folder)
    together = np.ascontiguousarray(np.concatenate(images))
    return ImageDataset(files.name, split, together, known, tuple(map(str, classes)))


def _fashion_mnist(root: Path, split: str) -> ImageDataset:
    stem = "train" if split == "train" else "t10k"
    files = [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    places = [root, root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    found = [_idx_files(place, files) for place in places]
    if not any(found):
        _download("FashionMNIST", root)
        found = [_idx_files(places[1], files)]
    images, labels = next(pair for pair in found if pair)
    pixels = _read_idx(images, 3)[..., None]
    targets = _checked_labels(_read_idx(labels, 1).tolist(), len(FASHION_CLASSES), labels)
    if len(pixels) != len(targets):
        raise InputError(f"{images} has {len(pixels)} images, {labels} {len(targets)} labels")
    return ImageDataset("fashion-mnist", split, pixels, targets, FASHION_CLASSES)


def _digits(root: Path, split: str) -> ImageDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    images = digits.images[part].astype(np.uint8)[..., None]
    labels = digits.target[part].astype(np.int64)
    return ImageDataset("digits", split, images, labels, tuple("0123456789"), white=16)


FOLDERS = ("imagenet", "imagenet100", "folder")
DATASETS: dict[str, Callable[..., AnyDataset]] = {
    "cifar10": partial(_cifar, _CIFAR10),
    "cifar100": partial(_cifar, _CIFAR100),
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    **{name: partial(open_folder, name) for name in FOLDERS},
}


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
            f"{name} is not in DATASET.ROOT_DIR {root} and cannot be downloaded "
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
    except Exception as error:  # damaged pickles fail in every way there is
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
        both = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
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
