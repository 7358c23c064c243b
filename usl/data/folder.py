"""Data sets that are folders of image files, in ImageNet's layout or without labels."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from usl.errors import InputError

# Those of torchvision's ImageFolder.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Longest side of a picture in a report, in pixels.
PICTURE = 128
# What systems and programs leave in folders, beside names that begin with a dot.
LEFTOVERS = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "icon\r",
}

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
    as_seen : bool
        Read pictures as people see them, see :func:`read_image`; else as torchvision does.
    workers : int
        Threads that decode.
    remarks : tuple of str
        What a person should know, such as the files that are left out.
    """

    name: str
    split: str
    folder: Path
    paths: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    as_seen: bool = False
    workers: int = 1
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def resized(self, rows: Sequence[int], short: int) -> list[np.ndarray]:
        """Images (h, w, 3), uint8, whose shorter side is ``short``: bilinear with PIL.

        Raises
        ------
        InputError
            A file that is no readable image, by its name.
        """
        return in_threads(lambda row: self._resized(row, short), rows, self.workers)

    def middles(self, rows: Sequence[int], short: int, side: int) -> Tensor:
        """The squares in the middle of :meth:`resized`, (n, 3, side, side), float32 in [0, 1].

        As torchvision's Resize and CenterCrop.
        """
        return as_floats(
            in_threads(lambda row: centre(self._resized(row, short), side), rows, self.workers)
        )

    def _resized(self, row: int, short: int) -> np.ndarray:
        path = self.folder / self.paths[row]
        picture = read_image(path, as_seen=self.as_seen)
        width, height = picture.size
        low, high = min(width, height), max(width, height)
        long = int(short * high / low)
        if Image.MAX_IMAGE_PIXELS and short * long > Image.MAX_IMAGE_PIXELS:
            raise InputError(
                f"{path} is too long for its width, {width} × {height} pixels; crop it, or move it "
                "elsewhere"
            )
        size = (short, long) if width <= height else (long, short)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))

    def picture(self, index: int) -> np.ndarray:
        """A small picture of one image for people: (H, W, 3), uint8, at most 128 pixels wide."""
        path = self.folder / self.paths[index]
        small = read_image(path, as_seen=self.as_seen, at_least=2 * PICTURE)
        small.thumbnail((PICTURE, PICTURE))
        return np.asarray(small)

    def fingerprint(self) -> str:
        """SHA-256 of what tells the images apart without reading them.

        That is each file's name, size in bytes and time of last change. A file that is changed in
        place while both stay the same goes unnoticed; one that is only touched, or copied without
        its time, counts as changed.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # The two readings make different pixels of the same files.
        digest = hashlib.sha256(b"as seen\n" if self.as_seen else b"")
        for path in self.paths:
            try:
                found = os.stat(os.path.join(self.folder, path))
            except OSError as error:
                raise _unreadable(error) from None
            digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def open_folder(
    name: str, root: Path, split: str, *, workers: int | None = None, as_seen: bool = False
) -> FolderDataset:
    """Open ROOT/train or, for the test split, ROOT/val.

    With ``class/file`` below, images and labels are in the order of torchvision's ImageFolder.
    Images side by side, with no folders, are in the order of their names and have no labels. What
    systems and programs leave behind is no image and no class; other files that are no images are
    counted in ``remarks``.

    Parameters
    ----------
    name : str
        What the data set is called.
    root : Path
    split : {"train", "test"}
    workers : int, optional
        Threads that decode; default as many as there are cores.
    as_seen : bool
        See :class:`FolderDataset`.

    Returns
    -------
    FolderDataset

    Raises
    ------
    InputError
        No such folder, no images, a class without images, images beside folders, or classes that
        are not those of the training images.
    """
    if workers is not None and workers < 0:
        raise InputError(f"`workers` is {workers}; choose at least 0")
    folder = root / ("train" if split == "train" else "val")
    if not folder.is_dir():
        raise InputError(
            f"{name} is not in `root` {root}: there is no folder {folder}; put the images there, "
            "in one folder a class, or side by side if they have no labels"
        )
    try:
        classes, loose = _listed(folder)
        paths, labels, others = [], [], Counter[str]()
        for label, class_name in enumerate(classes):
            inside = sorted_files(folder, class_name)
            images = [path for path in inside if _is_image(path)]
            left = Counter(_kind(path) for path in inside if not _is_image(path))
            if not images:
                found = f", only {_counted(left)}" if left else ""
                raise InputError(
                    f"class folder {folder / class_name} has no images ({', '.join(EXTENSIONS)})"
                    f"{found}; convert its files, or move the folder out of {folder}"
                )
            paths += images
            labels += [label] * len(images)
            others += left
    except OSError as error:
        raise _unreadable(error) from None
    side_by_side = [file for file in loose if _is_image(file)]
    others += Counter(_kind(file) for file in loose if not _is_image(file))
    if side_by_side and classes:
        raise InputError(
            f"{folder} has images, such as {side_by_side[0]}, beside folders, such as {classes[0]};"
            " put every image into the folder of its class, or move the folders elsewhere"
        )
    paths += side_by_side
    if not paths:
        found = f", only {_counted(others)}" if others else ""
        raise InputError(f"{folder} has no images ({', '.join(EXTENSIONS)}){found}; put some there")
    if split != "train":
        _check_classes(folder, classes, root / "train")
    for path in paths:
        if not _is_text(path):
            raise InputError(f"the name of {path!r} in {folder} is not UTF-8; rename it")
    remarks = (f"{folder}: left out {_counted(others)}",) if others else ()
    return FolderDataset(
        name,
        split,
        folder,
        tuple(paths),
        np.array(labels, dtype=np.int64) if classes else None,
        tuple(classes),
        as_seen,
        max(1, (os.cpu_count() or 1) if workers is None else workers),
        remarks,
    )


def _check_classes(folder: Path, classes: list[str], train: Path) -> None:
    """Raise InputError if labels, which are ranks in the list of classes, would be misread."""
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
    """Names of the folders in a folder, and of its files, each sorted; no leftovers."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not is_leftover(entry.name)]
    folders = sorted(name for name, is_folder in found if is_folder)
    return folders, sorted(name for name, is_folder in found if not is_folder)


def sorted_files(folder: Path, name: str) -> list[str]:
    """Paths of all files below ``folder/name``, from ``folder`` on, in ImageFolder's order."""
    return [
        f"{Path(where).relative_to(folder).as_posix()}/{file}"
        for where, files in sorted(_walk(folder / name))
        for file in sorted(files)
        if not is_leftover(file)
    ]


def is_leftover(name: str) -> bool:
    """Whether a file or folder was left by a system or a program, and by nobody who has images."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def _kind(path: str) -> str:
    return Path(path).suffix.lower() or "without an extension"


def _counted(kinds: Counter[str]) -> str:
    """How many files of each extension, the commonest first: ``3 .heic, 1 .txt``."""
    common = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kind}" for kind, count in common)


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder from ``top`` down, links followed, with its files."""

    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(top, followlinks=True, onerror=fail):
        folders[:] = [name for name in folders if not is_leftover(name)]
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


def read_image(path: Path, *, as_seen: bool = False, at_least: int | None = None) -> Image.Image:
    """Decode an image file of any mode as RGB.

    Parameters
    ----------
    path : Path
    as_seen : bool
        As people see the picture: turned as its EXIF orientation says, levels of more than 8 bits
        scaled down, transparent parts on white. Else as torchvision's ImageFolder reads it: not
        turned, deep levels cut off at 255, colours hidden under transparency shown.
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
            if as_seen:
                return _as_seen(picture)
            # Colours are kept as they are; PIL would warn of the transparency that is lost.
            picture.info.pop("transparency", None)
            return picture.convert("RGB")
    except UnidentifiedImageError:
        reason = "it is in no known format"
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # decoders raise errors of any kind on damaged files
        reason = f"{error or type(error).__name__}"
    reason = " ".join(reason.split()).rstrip(".")
    raise InputError(f"cannot read image {path}: {reason}; replace it, or move it elsewhere")


def _as_seen(picture: Image.Image) -> Image.Image:
    upright: Image.Image = ImageOps.exif_transpose(picture)
    if upright.mode.startswith(("I", "F")):
        return _eight_bits(upright)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits, or floating-point ones, as 8 bits.

    Whole numbers up to 65535 are taken for 16 bits, larger ones for 32; floating-point ones for
    shares of white, or where one is above 1, of the largest.
    """
    levels = np.asarray(picture).astype(np.float64)
    high = float(levels[np.isfinite(levels)].max(initial=0.0))
    if picture.mode.startswith("F"):
        largest = max(high, 1.0)
    else:
        largest = 65535.0 if high <= 65535 else 2.0**31 - 1
    grey = np.nan_to_num(levels / largest).clip(0, 1) * 255
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


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
