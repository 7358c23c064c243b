"""Data sets that are folders of image files, in ImageNet's layout or without labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from usl.errors import InputError

# Those of torchvision's ImageFolder.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Longest side of a picture in a report, in pixels.
PICTURE = 128
# Images whose mean is computed at a time.
BLOCK = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FolderDataset:
    """Image files of any sizes, in the order of their indices; decoded when they are asked for.

    Attributes
    ----------
    name : str
    split : {"train", "test"}
    folder : Path
        Where ``paths`` start.
    paths : tuple of str
        One an image: ``class/file``, or ``file`` where there are no classes.
    labels : ndarray (N,), int64, or None
    classes : tuple of str
        Names of the classes, which are those of their folders.
    side : int
        Of the square that networks see, in pixels.
    workers : int
        Threads that decode.
    """

    name: str
    split: str
    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    side: int = 224
    workers: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def short(self) -> int:
        """Short side that images are resized to before they are cropped: 256 for a side of 224."""
        return round(self.side * 256 / 224)

    def native(self, start: int, stop: int) -> Tensor:
        """What :meth:`for_networks` returns: files have no size in common."""
        return self.for_networks(start, stop)

    def for_networks(self, start: int, stop: int) -> Tensor:
        """Images as networks take them: (n, 3, side, side), float32 in [0, 1].

        Resized to ``short``, bilinear with PIL, and cropped in the middle, as by torchvision.

        Raises
        ------
        InputError
            A file that is no readable image, by its name.
        """
        rows = range(start, stop)
        return as_floats(
            in_threads(lambda row: centre(self._resized(row), self.side), rows, self.workers)
        )

    def resized(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Images (h, w, 3), uint8, whose shorter side is ``short``."""
        return in_threads(self._resized, rows, self.workers)

    def _resized(self, row: int) -> np.ndarray:
        path = self.folder / self.paths[row]
        picture = read_image(path)
        width, height = picture.size
        low, high = min(width, height), max(width, height)
        long = int(self.short * high / low)
        if Image.MAX_IMAGE_PIXELS and self.short * long > Image.MAX_IMAGE_PIXELS:
            raise InputError(
                f"{path} is too long for its width, {width} × {height} pixels; crop or remove it"
            )
        size = (self.short, long) if width <= height else (long, self.short)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))

    def mean(self) -> Tensor:
        """The mean image, (3, side, side), float32, from sums in float64."""
        total = torch.zeros(3, self.side, self.side, dtype=torch.float64)
        for start in range(0, len(self), BLOCK):
            total += self.native(start, min(start + BLOCK, len(self))).double().sum(dim=0)
        return (total / len(self)).float()

    def picture(self, index: int) -> np.ndarray:
        """A small picture of one image for people: (H, W, 3), uint8, at most 128 pixels wide."""
        small = read_image(self.folder / self.paths[index], at_least=2 * PICTURE)
        small.thumbnail((PICTURE, PICTURE))
        return np.asarray(small)

    def fingerprint(self) -> str:
        """SHA-256 of what tells the images apart without reading them.

        That is each file's name, size in bytes and time of last change, and ``side``. A file that
        is changed in place while both stay the same goes unnoticed; one that is only touched, or
        copied without its time, counts as changed.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.side}\n".encode())
        for path in self.paths:
            try:
                found = os.stat(os.path.join(self.folder, path))
            except OSError as error:
                raise _unreadable(error) from None
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def open_folder(
    name: str, root: Path, split: str, *, side: int = 224, workers: int | None = None
) -> FolderDataset:
    """Open ROOT/train or, for the test split, ROOT/val.

    With ``class/file`` below, images and labels are in the order of torchvision's ImageFolder.
    Images side by side, with no folders, are in the order of their names and have no labels.

    Parameters
    ----------
    name : str
        What the data set is called.
    root : Path
    split : {"train", "test"}
    side : int
        Of the square that networks see, in pixels.
    workers : int, optional
        Threads that decode; default as many as there are cores.

    Returns
    -------
    FolderDataset

    Raises
    ------
    InputError
        No such folder, no images, a class without images, images beside folders, or classes that
        are not those of the training images.
    """
    if side < 1:
        raise InputError(f"images of {side} pixels a side; choose at least 1")
    if workers is not None and workers < 0:
        raise InputError(f"DATALOADER.WORKERS is {workers}; choose at least 0")
    folder = root / ("train" if split == "train" else "val")
    if not folder.is_dir():
        raise InputError(
            f"{name} is not in DATASET.ROOT_DIR {root}: there is no folder {folder}; put the "
            "images there, in one folder a class, or side by side if they have no labels"
        )
    try:
        classes, loose = _listed(folder)
        paths, labels = list(loose), []
        for label, name_ in enumerate(classes):
            inside = _images_below(folder, name_)
            if not inside:
                raise InputError(f"class folder {folder / name_} has no images; remove it")
            paths += inside
            labels += [label] * len(inside)
    except OSError as error:
        raise _unreadable(error) from None
    if not paths:
        raise InputError(f"{folder} has no images ({', '.join(EXTENSIONS)}); put some there")
    if loose and classes:
        raise InputError(
            f"{folder} has images, such as {loose[0]}, beside folders, such as {classes[0]}; put "
            "every image into the folder of its class, or take the folders away"
        )
    if split != "train":
        _check_classes(folder, classes, root / "train")
    for path in paths:
        if not _is_text(path):
            raise InputError(f"the name of {path!r} in {folder} is not UTF-8; rename it")
    return FolderDataset(
        name,
        split,
        folder,
        tuple(paths),
        np.array(labels, dtype=np.int64) if classes else None,
        tuple(classes),
        side,
        max(1, (os.cpu_count() or 1) if workers is None else workers),
    )


def _check_classes(folder: Path, classes: list[str], train: Path) -> None:
    """Raise InputError if labels, which are places in the list of classes, would be misread."""
    try:
        known = _listed(train)[0] if train.is_dir() else []
    except OSError as error:
        raise _unreadable(error) from None
    if known and classes and classes != known:
        odd = min(set(classes) ^ set(known))
        raise InputError(
            f"class folder {odd} is in one of {folder} and {train} only; give both the same"
        )


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders in a folder, and of its images, each sorted."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries]
    folders = sorted(name for name, is_folder in found if is_folder)
    return folders, sorted(name for name, is_folder in found if not is_folder and _is_image(name))


def _images_below(folder: Path, name: str) -> list[str]:
    """Paths of the images of one class, from ``folder`` on, in ImageFolder's order."""
    return [
        f"{Path(where).relative_to(folder).as_posix()}/{file}"
        for where, files in sorted(_walk(folder / name))
        for file in sorted(files)
        if _is_image(file)
    ]


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from ``top`` down, links followed, with its files."""

    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(top, followlinks=True, onerror=fail):
        here = Path(where).resolve()
        for inner in (Path(where, name) for name in folders):
            if inner.is_symlink() and here.is_relative_to(inner.resolve()):
                raise InputError(f"{inner} leads back to a folder above it; remove that link")
        yield where, files


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_text(name: str) -> bool:
    """Whether a file's name can be written to a CSV and a report."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unreadable(error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"cannot read {error.filename}: {reason}; see that it can be read")


def read_image(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Decode an image file of any mode as RGB.

    Parameters
    ----------
    path : Path
    at_least : int, optional
        JPEGs may come out smaller, but no smaller than this: much faster.

    Raises
    ------
    InputError
        Not there, no image, damaged, truncated, or so large that PIL refuses it.
    """
    try:
        with Image.open(path) as picture:
            if at_least is not None:
                picture.draft("RGB", (at_least, at_least))
            # Colours are kept as they are; PIL would warn of the transparency that is lost.
            picture.info.pop("transparency", None)
            return picture.convert("RGB")
    except UnidentifiedImageError:
        reason = "it is in no known format"
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # damaged files fail in every way there is
        reason = f"{error or type(error).__name__}"
    reason = " ".join(reason.split()).rstrip(".")
    raise InputError(f"cannot read image {path}: {reason}; replace or remove it")


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle of an image (H, W, C), placed as torchvision's CenterCrop does."""
    height, width = image.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image[top : top + side, left : left + side]


def as_floats(images: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Images (H, W, 3), uint8, as a batch (n, 3, H, W), float32 in [0, 1]."""
    levels = torch.from_numpy(np.stack(images)).to(device)
    return levels.permute(0, 3, 1, 2).float() / 255


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """Apply a function to each item; worth it where PIL or the system works without Python's lock.

    Of several errors that of the first item is raised.
    """
    if workers < 2 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        return list(pool.map(function, items))
