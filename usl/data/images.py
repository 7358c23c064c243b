"""People's own images, wherever they lie: a folder, a list, a table, an archive, a bucket."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from PIL import features

from usl.config.paths import is_file
from usl.data.archive import File, LocalFile, Source
from usl.data.archives import Archives, is_archive, open_archive
from usl.data.bucket import URL, Bucket
from usl.data.decode import HEIF, register_heif
from usl.data.folder import FolderDataset, thread_count
from usl.data.listing import (
    EXTENSIONS,
    check_text,
    counted,
    inside,
    is_leftover,
    kind,
    unreadable,
    walk,
)
from usl.data.parquet import has_images
from usl.data.tables import read_frame
from usl.errors import InputError

# What people call the column of a table that names files.
COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "ImageID")


def extensions() -> tuple[str, ...]:
    """Of the images that can be read on this machine."""
    more = [".gif", ".jfif"]
    if features.check("avif"):
        more.append(".avif")
    if register_heif():
        more += HEIF
    return (*EXTENSIONS, *more)


def open_images(root: Path | str, split: str, *, workers: int | None = None) -> FolderDataset:
    """Open all images of a place; they have no labels.

    In the order of their paths, as Python sorts texts. What systems and programs leave behind is no
    image; other files that are no images are counted in ``remarks``.

    Parameters
    ----------
    root : Path, or str for a URL
        A folder, with all folders below; a ``.zip``, a ``.tar``, or a ``.parquet`` with a column of
        image files; a ``.txt`` of one path a line; a ``.csv`` or ``.parquet`` with a column of
        ``COLUMNS``. Paths of lists start at the list's folder, and do not leave it. A URL: that of
        a folder or an archive in an object store, see :class:`usl.data.bucket.Bucket`. Where there
        are archives and no images, such as WebDataset's or Hugging Face's shards, the images are
        those in the archives.
    split : {"train"}
    workers : int, optional
        Threads that decode; default as many as there are cores.

    Returns
    -------
    FolderDataset

    Raises
    ------
    InputError
        Nothing there, no images, a list that names none, or a path that leads out.
    """
    if split != "train":
        raise InputError(
            "images without labels have no test images; choose another `dataset`, in folders "
            "train and val"
        )
    threads, readable = thread_count(workers), extensions()
    source, folder, found = _files_of(root, readable)
    place = root if source is None else source.label
    paths = sorted(name for name in found if name.lower().endswith(readable))
    for name in paths:
        check_text(name, place)
    others = Counter(kind(name) for name in found if not name.lower().endswith(readable))
    if not paths:
        only = f", only {counted(others)}" if others else ""
        raise InputError(f"{place} has no images ({', '.join(readable)}){only}; give another place")
    remarks = [f"{place}: left out {counted(others)}"] if others else []
    if any(others[extension] for extension in HEIF):
        remarks.append("HEIC is read where pillow-heif is installed: pip install pillow-heif")
    return FolderDataset(
        "images", "train", folder, tuple(paths), None, (), True,
        threads, tuple(remarks),
        source=source,
    )  # fmt: skip


def _files_of(
    root: Path | str, readable: tuple[str, ...]
) -> tuple[Source | None, Path, Sequence[str]]:
    """Where files are that are none of a folder; their folder, or what stands for it; all names."""
    source: Source | None = None
    file_of: Callable[[str], File]
    if isinstance(root, str) and URL.fullmatch(root):
        source = bucket = Bucket(root)
        folder, names, file_of = Path(bucket.label), _ours(bucket.names), bucket.file
    elif is_archive(str(root)) and _holds_files(Path(root)):
        source = open_archive(LocalFile(Path(root)))
        return source, Path(root), _ours(source.names)
    else:
        names, folder = _named_by(Path(root))
        file_of = partial(_local_file, folder)
    archives = sorted(filter(is_archive, names))
    if archives and not any(name.lower().endswith(readable) for name in names):
        label = str(folder) if source is None else source.label
        source = Archives(label, {name: file_of(name) for name in archives})
        names = [*_ours(source.names), *set(names).difference(archives)]
    return source, folder, names


def _ours(names: Iterable[str]) -> list[str]:
    """Without what systems and programs leave behind."""
    return [name for name in names if not any(map(is_leftover, name.split("/")))]


def _local_file(folder: Path, name: str) -> File:
    return LocalFile(folder / name)


def _holds_files(path: Path) -> bool:
    """Whether a file is an archive, and not a table of paths."""
    return is_file(path) and (path.suffix.lower() != ".parquet" or has_images(path, COLUMNS))


def _named_by(root: Path) -> tuple[list[str], Path]:
    """Paths of all files of a folder or a list, and where they start."""
    if os.path.isdir(root):
        try:
            return _below(root), root
        except OSError as error:
            raise unreadable(error) from None
    if not os.path.exists(root):
        raise InputError(f"there is no folder or file `root` {root}; give the place of the images")
    if root.suffix.lower() in (".txt", ".csv", ".parquet"):
        return _listed(root), root.parent
    raise InputError(
        f"`root` {root} is no folder, archive or list; give a folder, .zip, .tar, .txt, .csv or "
        ".parquet"
    )


def _below(folder: Path) -> list[str]:
    """Paths of all files below a folder, links followed."""
    return [
        (Path(where).relative_to(folder) / name).as_posix()
        for where, files in walk(folder)
        for name in files
        if not is_leftover(name)
    ]


def _listed(path: Path) -> list[str]:
    """Paths that a text file or a table names, from its folder on."""
    advice = "give a list of paths"
    if path.suffix.lower() == ".txt":
        try:
            names: Iterable[str] = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}; {advice}") from None
    else:
        table = read_frame(path, advice, texts=COLUMNS)
        column = next((name for name in COLUMNS if name in table), None)
        if column is None:
            raise InputError(f"{path} has no column {', '.join(COLUMNS)}; name its paths so")
        names = table[column].dropna().astype(str)
    found = []
    for name in filter(None, map(str.strip, names)):
        within = inside(name, path.parent)
        if within is None:
            raise InputError(f"{path} names {name!r}, outside its folder; move the list above it")
        found.append(within)
    return list(dict.fromkeys(found))
