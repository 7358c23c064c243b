"""Copies of the picks, for people who label files."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from usl.artifacts import replacing, set_aside
from usl.data.folder import FolderDataset
from usl.errors import InputError

log = logging.getLogger("usl")

FORMS = ("", "folder", "zip")


def check_form(form: str) -> None:
    """Raise InputError unless copies can be made in this form."""
    if form not in FORMS:
        raise InputError(f"unknown `picks_to` {form!r}; choose folder or zip, or leave it empty")


def write_zip(target: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files, by name and content, into a zip; the same files make the same bytes."""
    with replacing(target) as file, zipfile.ZipFile(file, "w") as archive:
        written = set()
        for name, content in files:
            if name not in written:
                # With a fixed time in place of the clock's.
                archive.writestr(zipfile.ZipInfo(name), content)
            written.add(name)


def copy_picks(images: FolderDataset, picks: Sequence[int], target: Path, form: str) -> Path:
    """Copy the files of picks, under the names that they have in the data set.

    Parameters
    ----------
    images : FolderDataset
    picks : sequence of int
    target : Path
        The folder to be; for ``zip`` with that suffix added. What was there is replaced; a folder
        with other files than images of the data set is kept under another name.
    form : {"folder", "zip"}

    Returns
    -------
    Path
        Of the folder or the zip.

    Raises
    ------
    InputError
        A file that cannot be read, or a place that cannot be written.
    """
    if form == "zip":
        target = target.with_name(target.name + ".zip")
        write_zip(target, ((images.paths[pick], images.content(pick)) for pick in picks))
        return target
    files = ((images.paths[pick], images.content(pick)) for pick in picks)
    write_folder(target, files, set(images.paths))
    return target


def write_folder(target: Path, files: Iterable[tuple[str, bytes]], ours: Container[str]) -> None:
    """Write files, by name and content, into a folder, all or none.

    What was there is replaced; with files whose names are not ``ours`` it is kept beside the new.

    Raises
    ------
    InputError
        A place that cannot be written.
    """
    partial = target.with_name(f".{target.name}.copies")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in files:
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        there = (path for path in target.rglob("*") if not path.is_dir())
        if any(path.relative_to(target).as_posix() not in ours for path in there):
            log.warning("%s has other files, too; kept as %s", target, set_aside(target, ".kept"))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; free it") from None
