"""Copies of the picks, for people who label files."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from usl.artifacts import replacing
from usl.data.folder import FolderDataset
from usl.errors import InputError

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
        The folder to be; for ``zip`` with that suffix added. What was there is replaced.
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
    partial = target.with_name(f".{target.name}.copies")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for pick in picks:
            path = partial / images.paths[pick]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.content(pick))
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; free it") from None
    return target
