"""Picks as other tools read them.

To add one, write a function like those below and enter it in ``EXPORTS``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from usl.artifacts import replacing, save_array, save_text
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.errors import InputError
from usl.lists.copies import copy_picks, write_folder, write_zip
from usl.lists.cvat import write_task
from usl.lists.labelstudio import LOCAL_FILES, write_tasks
from usl.lists.write import index_csvs, picture_name, seeded

# Where the picks lie that are to be moved into the folders of their classes.
UNLABELLED = "unlabelled"
# Exports that read images, or at least their sizes.
NEED_FILES = ("cvat", "coco", "folders")


@dataclass(frozen=True)
class Picked:
    """Picks and what files call them.

    Attributes
    ----------
    indices : ndarray (B,), int64
    name : str
        Of the run.
    seed : int
        Or, for USL-T, the head.
    classes : tuple of str
        What people may answer; without any the data set's classes.
    prefix : str
        What Label Studio finds before the names of files.
    unreadable : ndarray, int, optional
        Images whose files are none: they are not among all others.
    """

    indices: np.ndarray
    name: str
    seed: int
    classes: tuple[str, ...] = ()
    prefix: str = LOCAL_FILES
    unreadable: np.ndarray | None = None


def check_exports(
    names: Sequence[str], classes: Sequence[str] = (), images: AnyDataset | None = None
) -> None:
    """Raise InputError, with the known names, unless there are exports of these names.

    Or where a folder could not be called like one of the classes, or the images have no files here.
    """
    absent = isinstance(images, FolderDataset) and not images.present
    for name in classes:
        if not name or classes.count(name) > 1:
            raise InputError(f"`classes` has {name!r}; give different names")
        odd = name in (".", "..", UNLABELLED) or "/" in name or "\0" in name
        if "folders" in names and (odd or len(name.encode()) > 200):
            raise InputError(f"`classes` has {name!r}; give names that a folder can have")
    for name in names:
        if name not in EXPORTS:
            known = ", ".join(EXPORTS)
            raise InputError(f"unknown `export` {name!r}; choose from {known}")
        if absent and name in NEED_FILES:
            raise InputError(
                f"`export` {name} needs the images, of which only names are here; leave it out"
            )


def _eman(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The CSVs that EMAN's FixMatch reads: the labelled images, and all others."""
    name = seeded(picks.name, picks.seed)
    csvs = index_csvs(images, picks.indices, name, unreadable=picks.unreadable)
    for file, text in csvs.items():
        save_text(folder / file, text)


def _usb(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The pair of arrays that USB looks for in ``data/<dataset>/labeled_idx``."""
    others = np.setdiff1d(np.arange(len(images)), picks.indices)
    if picks.unreadable is not None:
        others = np.setdiff1d(others, picks.unreadable)
    end = f"labels{len(picks.indices)}_1_seed{picks.seed}_idx.npy"
    save_array(folder / f"lb_{end}", picks.indices)
    save_array(folder / f"ulb_{end}", others)


def _torchssl(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """The array that TorchSSL reads, one folder a seed."""
    inner = folder / f"seed{picks.seed}"
    inner.mkdir(exist_ok=True)
    save_array(inner / "sampled_label_idx.npy", picks.indices)


def _labelstudio(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """Tasks and interface for a project of Label Studio, one folder a seed."""
    inner = folder / f"seed{picks.seed}"
    inner.mkdir(exist_ok=True)
    write_tasks(
        inner, _files(images, picks, inner), classes=picks.classes or images.classes,
        prefix=picks.prefix,
    )  # fmt: skip


def _cvat(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """An archive of images, their order and the tags for a task of CVAT, one folder a seed."""
    inner = folder / f"seed{picks.seed}"
    inner.mkdir(exist_ok=True)
    if isinstance(images, FolderDataset):
        copy_picks(images, picks.indices.tolist(), inner / "images", "zip")
        names = [images.paths[index] for index in picks.indices.tolist()]
    else:
        names = [picture_name(index) for index in picks.indices.tolist()]
        pictures = (_png(images, index) for index in picks.indices.tolist())
        write_zip(inner / "images.zip", zip(names, pictures, strict=True))
    # Of several rows with one picture the task has it once.
    rows = dict(zip(names, picks.indices.tolist(), strict=True))
    sized = [(name, images.size_of(row)) for name, row in rows.items()]
    write_task(inner, sized, classes=picks.classes or images.classes)


def _coco(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """COCO's JSON of the picks, without annotations, one file a seed."""
    rows = []
    for index, name in _files(images, picks, folder):
        picture = images.size_of(index)
        rows.append({"id": index, "file_name": name, "width": picture[0], "height": picture[1]})
    kinds = [{"id": i, "name": name} for i, name in enumerate(picks.classes or images.classes)]
    content = {"images": rows, "annotations": [], "categories": kinds}
    save_text(folder / f"picks_seed{picks.seed}.json", json.dumps(content, indent=1) + "\n")


def _folders(images: AnyDataset, picks: Picked, folder: Path) -> None:
    """Copies of the picks in ``unlabelled/``, to be moved into the folder of their class."""
    inner = folder / f"seed{picks.seed}"
    inner.mkdir(exist_ok=True)
    for name in picks.classes or images.classes:
        (inner / name.replace("/", "-")).mkdir(exist_ok=True)
    if isinstance(images, FolderDataset):
        copy_picks(images, picks.indices.tolist(), inner / UNLABELLED, "folder")
    else:
        files = ((picture_name(i), _png(images, i)) for i in picks.indices.tolist())
        write_folder(inner / UNLABELLED, files, set(map(picture_name, range(len(images)))))


def _files(images: AnyDataset, picks: Picked, folder: Path) -> list[tuple[int, str]]:
    """Index and file of each pick; images in memory are written to ``folder/images``."""
    if isinstance(images, FolderDataset):
        return [(index, images.paths[index]) for index in picks.indices.tolist()]
    pictures = folder / "images"
    pictures.mkdir(exist_ok=True)
    rows = []
    for index in picks.indices.tolist():
        name = picture_name(index)
        with replacing(pictures / name) as file:
            file.write(_png(images, index))
        rows.append((index, name))
    return rows


def _png(images: AnyDataset, index: int) -> bytes:
    picture = images.picture(index)
    assert picture is not None
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
    return buffer.getvalue()


# By name: ``f(images, picks, folder)``, which writes files into a folder that is there.
EXPORTS: dict[str, Callable[[AnyDataset, Picked, Path], None]] = {
    "eman": _eman,
    "usb": _usb,
    "torchssl": _torchssl,
    "labelstudio": _labelstudio,
    "cvat": _cvat,
    "coco": _coco,
    "folders": _folders,
}
