"""Data sets that are folders of image files, in ImageNet's layout or without labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from usl.data.archive import Source
from usl.data.decode import read_image
from usl.data.listing import (
    find_images,
    folders_and_files,
    read_image_list,
    read_subset,
    unreadable,
)
from usl.errors import InputError, Unreachable

# Longest side of a picture in a report, in pixels.
PICTURE = 128

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
        Read pictures as people see them, see :func:`usl.data.decode.read_image`; else as
        torchvision does.
    workers : int
        Threads that decode.
    remarks : tuple of str
        What a person should know, such as the files that are left out.
    present : bool
        Whether the files are there; else only their names are known.
    source : Archive, Archives or Bucket, optional
        Where the files are, instead of ``folder``, which is then its path.
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
    present: bool = True
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> FolderDataset:
        """Images ``start`` to ``stop`` as a data set."""
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, paths=self.paths[start:stop], labels=labels)

    def each(
        self,
        rows: Sequence[int],
        use: Callable[[Image.Image], Result],
        *,
        instead: Callable[[int, InputError], Result] | None = None,
    ) -> list[Result]:
        """Decode images, and hand each, of mode RGB, to a function; in threads.

        Parameters
        ----------
        rows : sequence of int
        use : callable
        instead : callable, optional
            Gives the result for the row of a file that cannot be read; without it that is an error.
            A place that does not answer always is.

        Raises
        ------
        InputError
            A file that is no readable image, or that the function refuses, by its name.
        """
        if not self.present:
            raise InputError(
                f"there are no images in {self.folder}, only their names (`image_list`); put them "
                "there"
            )

        def result(row: int) -> Result:
            picture = self._image(row)
            try:
                return use(picture)
            except InputError as error:
                raise InputError(
                    f"image {self._place(row)} {error}, or move it elsewhere"
                ) from None

        def some_result(row: int) -> Result:
            try:
                return result(row)
            except Unreachable:
                raise
            except InputError as error:
                assert instead is not None
                return instead(row, error)

        return in_threads(result if instead is None else some_result, rows, self.workers)

    def picture(self, index: int) -> np.ndarray | None:
        """A small picture of one image for people: (H, W, 3), uint8, at most 128 pixels wide.

        None where the file is not there.
        """
        if not self.present:
            return None
        small = self._image(index, at_least=2 * PICTURE)
        small.thumbnail((PICTURE, PICTURE))
        return np.asarray(small)

    def size_of(self, index: int) -> tuple[int, int]:
        """Width and height of an image, in pixels, as it is read."""
        return self._image(index).size

    def content(self, index: int) -> bytes:
        """The bytes of a file.

        Raises
        ------
        InputError
            It cannot be read.
        """
        if self.source is not None:
            return self.source.read(self.paths[index])
        try:
            return (self.folder / self.paths[index]).read_bytes()
        except OSError as error:
            raise unreadable(error) from None

    def _image(self, row: int, *, at_least: int | None = None) -> Image.Image:
        content = None if self.source is None else self.source.read(self.paths[row])
        place = self._place(row)
        return read_image(place, content=content, as_seen=self.as_seen, at_least=at_least)

    def _place(self, row: int) -> Path | str:
        """A file's path or URL."""
        if self.source is None:
            return self.folder / self.paths[row]
        return f"{self.source.label}/{self.paths[row]}"

    def fingerprint(self) -> str:
        """SHA-256 of what tells the images apart without reading them.

        That is each file's name, size in bytes and time of last change. A file that is changed in
        place while both stay the same goes unnoticed; one that is only touched, or copied without
        its time, counts as changed. Of files that are not there only the names count.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # The two readings make different pixels of the same files.
        digest = hashlib.sha256(b"as seen\n" if self.as_seen else b"")
        if not self.present:
            return self.names_fingerprint()
        if self.source is not None:
            digest.update(self.source.fingerprint(self.paths).encode())
            return digest.hexdigest()
        for path in self.paths:
            try:
                found = os.stat(os.path.join(self.folder, path))
                digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
            except OSError:
                # Whoever decodes it says so.
                digest.update(f"{path}\0absent\n".encode())
        return digest.hexdigest()

    def names_fingerprint(self) -> str:
        """SHA-256 of the names of the files, whatever is in them."""
        return hashlib.sha256("\n".join(self.paths).encode()).hexdigest()


def open_folder(
    name: str,
    root: Path,
    split: str,
    *,
    workers: int | None = None,
    as_seen: bool = False,
    image_list: Path | None = None,
    subset: Path | None = None,
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
    image_list : Path, optional
        The training images by name, see :func:`usl.data.listing.read_image_list`, instead of all
        that are in the folder. Without the folder only their names are known.
    subset : Path, optional
        The classes to keep, see :func:`usl.data.listing.read_subset`.

    Returns
    -------
    FolderDataset

    Raises
    ------
    InputError
        No such folder, a list that is none, classes that are not those of the training images, or
        see :func:`usl.data.listing.find_images`.
    """
    threads = thread_count(workers)
    folder = root / ("train" if split == "train" else "val")
    kept = None if subset is None else read_subset(subset)
    present = os.path.isdir(folder)
    if image_list is not None:
        listing = read_image_list(image_list, kept)
        # The labels of both splits are ranks among the classes of the list.
        kept = list(listing.classes) or None
    if image_list is not None and split == "train":
        if present:
            _check_files(listing.paths, folder, image_list)
    elif not present:
        raise InputError(
            f"{name} is not in `root` {root}: there is no folder {folder}; put the images there, "
            "in one folder a class, or side by side if they have no labels"
        )
    else:
        listing = find_images(folder, kept)
    if split != "train" and kept is None:
        _check_classes(folder, listing.classes, root / "train")
    return FolderDataset(
        name,
        split,
        folder,
        listing.paths,
        None if listing.labels is None else np.array(listing.labels, dtype=np.int64),
        listing.classes,
        as_seen,
        threads,
        listing.remarks,
        present,
    )


def thread_count(workers: int | None) -> int:
    """Threads that decode, at least 1; None: as many as there are cores.

    Raises
    ------
    InputError
        Fewer than 0.
    """
    if workers is not None and workers < 0:
        raise InputError(f"`workers` is {workers}; choose at least 0")
    return max(1, (os.cpu_count() or 1) if workers is None else workers)


def _check_files(paths: Sequence[str], folder: Path, image_list: Path) -> None:
    """Raise InputError if a list names files that are not there."""
    absent = [path for path in paths if not os.path.lexists(os.path.join(folder, path))]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"{image_list} (`image_list`) names {absent[0]}{more}, not in {folder}; mend the list"
        )


def _check_classes(folder: Path, classes: Sequence[str], train: Path) -> None:
    """Raise InputError if labels, which are ranks in the list of classes, would be misread."""
    try:
        known = folders_and_files(train)[0] if os.path.isdir(train) else []
    except OSError as error:
        raise unreadable(error) from None
    if known and classes and list(classes) != known:
        odd = min(set(classes) ^ set(known))
        raise InputError(
            f"class folder {odd} is in one of {folder} and {train} only; give both the same"
        )


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
