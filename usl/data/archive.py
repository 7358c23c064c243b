"""Image files inside another, read where they lie: a zip, or a tar such as WebDataset's shards."""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, Protocol

from usl.data.listing import unreadable
from usl.errors import InputError, Unreachable

# Larger members are no pictures, but something that would fill the memory.
LARGEST = 1 << 30
# Bytes that are read at a time to list a tar that lies elsewhere.
CHUNK = 1 << 20
ADVICE = "give a .zip, an uncompressed .tar, or a .parquet with a column of image files"


class Source(Protocol):
    """Where files are that are none of a local folder."""

    # What people call it: a path or a URL.
    label: str
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of a file; from any thread.

        Raises
        ------
        InputError
            Damaged, gone, or larger than a gibibyte.
        Unreachable
            Nobody answers.
        """

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """SHA-256 of what tells whether some of its files are still the same."""


class File(Protocol):
    """An archive as it lies somewhere; it travels to other processes."""

    label: str
    size: int
    # Of its contents: its size and its time of last change.
    stamp: str
    # Whether it costs nothing to go from one place in it to another.
    near: bool

    def open(self) -> BinaryIO:
        """Open it, to read it from any place in it."""

    def read_at(self, start: int, size: int) -> bytes:
        """Some of its bytes; from any thread."""


class LocalFile:
    """A file of this machine.

    Raises
    ------
    InputError
        It is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, str(path)
        try:
            found = os.stat(path)
        except OSError as error:
            raise unreadable(error) from None
        self.size, self.near = found.st_size, True
        self.stamp = f"{found.st_size}\0{found.st_mtime_ns}"

    def __getstate__(self) -> dict[str, Any]:
        # On another machine it is opened anew.
        return {name: value for name, value in vars(self).items() if name != "_opened"}

    def open(self) -> BinaryIO:
        """See :class:`File`."""
        return self.path.open("rb")

    def read_at(self, start: int, size: int) -> bytes:
        """See :class:`File`."""
        return os.pread(self._opened.fileno(), size, start)

    @cached_property
    def _opened(self) -> BinaryIO:
        return self.open()


class Archive(ABC):
    """Image files inside a file.

    Parameters
    ----------
    file : File

    Attributes
    ----------
    names : tuple of str
        Of its files, in the order of the archive.

    Raises
    ------
    InputError
        Unreadable, cut off, compressed as a whole, protected by a password, without images, or with
        a file whose name leads out.
    """

    def __init__(self, file: File) -> None:
        self.file, self.label = file, file.label
        self._lock = threading.Lock()
        try:
            self.names = self._listed()
        except (InputError, Unreachable):
            raise
        except Exception as error:  # parsers raise errors of any kind on damaged files
            reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
            raise InputError(
                f"cannot read {self.label}: {reason or type(error).__name__}; {ADVICE}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        # On another machine it is opened anew, but not listed.
        return {name: value for name, value in vars(self).items() if name not in UNSENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """See :class:`Source`."""
        return fingerprint_of([self.file], names)

    def read(self, name: str) -> bytes:
        """See :class:`Source`."""
        try:
            return self._read(name)
        except Unreachable:
            raise
        except InputError as error:
            raise InputError(f"cannot read {self.label}/{name}: {error}") from None
        except Exception as error:  # decompressors raise errors of any kind on damaged files
            if isinstance(error, OSError) and not self.file.near:
                raise Unreachable(
                    f"cannot read {self.label}: {error}; run the command again, which goes on"
                ) from None
            raise InputError(f"cannot read {self.label}/{name}: {error}; replace it") from None

    @abstractmethod
    def _listed(self) -> tuple[str, ...]: ...

    @abstractmethod
    def _read(self, name: str) -> bytes: ...


# What an archive has open.
UNSENT = ("_lock", "_zip", "_parquet", "_groups")


class Zip(Archive):
    """A ``.zip``."""

    def _listed(self) -> tuple[str, ...]:
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.flag_bits & 1:
                raise InputError(f"{self.label} is protected by a password; unpack it yourself")
            if not info.is_dir():
                self._members[inside_of(self.label, info.filename)] = info
        return tuple(self._members)

    def _read(self, name: str) -> bytes:
        _check_size(self._members[name].file_size)
        with self._lock:
            return self._zip.read(self._members[name])

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.file.open())


class Tar(Archive):
    """An uncompressed ``.tar``; a WebDataset's shard is one.

    One that lies elsewhere is read once from its beginning to its end, to list it.
    """

    def _listed(self) -> tuple[str, ...]:
        # Where each file begins, and its size.
        self._places: dict[str, tuple[int, int]] = {}
        mode: Literal["r:", "r|"] = "r:" if self.file.near else "r|"
        with (
            self.file.open() as stream,
            tarfile.open(fileobj=stream, mode=mode, bufsize=CHUNK) as members,
        ):
            for member in members:
                if member.isfile():
                    name = inside_of(self.label, member.name)
                    self._places[name] = (member.offset_data, member.size)
        if max((sum(place) for place in self._places.values()), default=0) > self.file.size:
            raise InputError(f"{self.label} ends in the middle of a file; copy it again")
        return tuple(self._places)

    def _read(self, name: str) -> bytes:
        start, size = self._places[name]
        _check_size(size)
        return self.file.read_at(start, size)


def fingerprint_of(files: Sequence[File], names: tuple[str, ...]) -> str:
    """SHA-256 of the sizes and times of last change of archives, and of some of their names."""
    digest = hashlib.sha256("".join(f"{file.stamp}\n" for file in files).encode())
    digest.update("\n".join(names).encode())
    return digest.hexdigest()


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise InputError(f"it has {size:,} bytes; leave it out")


def inside_of(place: str, name: str) -> str:
    """A file's name without ``./``; copies under it must not leave their folder.

    Raises
    ------
    InputError
        They would.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"{place} has the file {name!r}, outside itself; give one of relative names"
        )
    return path.as_posix()
