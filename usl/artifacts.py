"""Arrays and texts on disk: written atomically, read without executing anything, fingerprinted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np

from usl.errors import InputError

HASH_BYTES = 1 << 24


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` only once it is complete.

    Raises
    ------
    InputError
        It cannot be written; ``path`` is then as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, atomically."""
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def save_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def set_aside(path: Path, ending: str) -> Path:
    """Rename a file or folder to the first free of ``name.ending``, ``name.ending.1``, … ."""
    kept = path.with_name(path.name + ending)
    for number in count(1):
        if not kept.exists():
            break
        kept = path.with_name(f"{path.name}{ending}.{number}")
    os.replace(path, kept)
    return kept


def load_array(
    path: Path,
    *,
    shape: tuple[int | None, ...] | None = None,
    kind: str = "fiu",
    limits: tuple[float, float] | None = None,
    advice: str = "give another file",
) -> np.ndarray:
    """Map a ``.npy`` file into memory, or read a ``.npz`` of one array, and check it.

    Parameters
    ----------
    path : Path
    shape : tuple, optional
        Expected shape; None stands for any length.
    kind : str
        NumPy kinds of dtype that are accepted.
    limits : (low, high), optional
        All values must be finite and lie in low ≤ value ≤ high.
    advice : str
        What to do, for the end of the error.

    Returns
    -------
    ndarray
        Mapped copy-on-write: the file never changes.

    Raises
    ------
    InputError
        Missing, unreadable, truncated, pickled, or not as expected.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; {advice}") from None
    except Exception as error:  # damaged headers raise errors of any kind
        reason = getattr(error, "strerror", None) or "it is damaged or not .npy"
        if "pickle" in str(error) or "Python objects" in str(error):
            reason = "it holds pickled objects or is not .npy"
        if path.is_dir():
            reason = "it is a folder"
        raise InputError(
            f"cannot read {path}: {disguise_of(path) or f'{reason}; {advice}'}"
        ) from None
    if not isinstance(array, np.ndarray):
        array = _only_array(path, array, advice)
    if array.dtype.kind in "fi" and (not array.dtype.isnative or array.dtype.itemsize > 8):
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
    if array.dtype.kind not in kind:
        raise InputError(f"{path} holds {array.dtype} values; {advice}")
    if shape is not None:
        fits = len(shape) == array.ndim and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise InputError(f"{path} has shape {array.shape}, needed is ({wanted}); {advice}")
    if limits is not None and array.size:
        low, high = float(array.min()), float(array.max())
        if not (limits[0] <= low and high <= limits[1] and np.isfinite([low, high]).all()):
            raise InputError(
                f"{path} has values from {low:g} to {high:g}, "
                f"needed are {limits[0]:g} to {limits[1]:g}; {advice}"
            )
    return array


def _only_array(path: Path, archive: np.lib.npyio.NpzFile, advice: str) -> np.ndarray:
    """The array of an archive that has one."""
    with archive:
        if len(archive.files) != 1:
            names = ", ".join(archive.files)
            raise InputError(
                f"{path} is an archive of {len(archive.files)} arrays ({names}); {advice}"
            )
        try:
            return np.asarray(archive[archive.files[0]])
        except Exception:  # damaged archives raise errors of any kind
            raise InputError(f"cannot read {path}: it is damaged; {advice}") from None


def disguise_of(path: Path) -> str:
    """What a file is that was saved in the place of another, and what to do; else empty."""
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError:
        return ""
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "it is a web page, perhaps the one that offers the file; download the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the file; fetch the file with git lfs pull"
    return ""


def fingerprint(source: Path | np.ndarray) -> str:
    """SHA-256 of a file's bytes, or of an array's dtype, shape and values."""
    digest = hashlib.sha256()
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                while chunk := file.read(HASH_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror or error}") from None
    else:
        digest.update(f"{source.dtype.str}{source.shape}".encode())
        digest.update(np.ascontiguousarray(source).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
