"""Image files inside another, read where they lie: a zip, or a tar such as WebDataset's shards."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import tarfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, Protocol

from usl.data.listing import unreadable
from usl.errors import InputError, Unreachable

log = logging.getLogger("usl")

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

    def open(self) -> BinaryIO:
        """See :class:`File`."""
        return self.path.open("rb")


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
        Unreadable, cut off, compressed as a whole, protected by a password, or with a file whose
        name leads out.
    Unreachable
        Nobody answers.
    """

    def __init__(self, file: File) -> None:
        self.file, self.label = file, file.label
        self._start()
        try:
            self.names = self._listed()
        except (InputError, MemoryError):
            raise
        except Exception as error:  # parsers raise errors of any kind on damaged files
            raise InputError(f"cannot read {self.label}: {_reason(error)}; {ADVICE}") from None
        finally:
            self.close()

    def _start(self) -> None:
        self._lock = threading.Lock()
        # What reads it, and the file that reads from.
        self._open: tuple[Any, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # On another machine it is opened anew, but not listed.
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """See :class:`Source`."""
        return fingerprint_of([self.file], names)

    def read(self, name: str) -> bytes:
        """See :class:`Source`."""
        try:
            return self._read(name)
        except (Unreachable, MemoryError):
            raise
        except InputError as error:
            raise InputError(f"cannot read {self.label}/{name}: {error}") from None
        except Exception as error:  # decompressors raise errors of any kind on damaged files
            reason = _reason(error)
            raise InputError(f"cannot read {self.label}/{name}: {reason}; replace it") from None

    def close(self) -> None:
        """Close what is open; the next to read opens it again."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
                self._open = None

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        """What reads it, open, for one thread at a time."""
        with self._lock:
            if self._open is None:
                file = self._file()
                try:
                    self._open = self._opened(file), file
                except BaseException:
                    file.close()
                    raise
            yield self._open[0]

    def _file(self) -> BinaryIO:
        """The file, open; that it cannot be opened says nothing of what is in it."""
        try:
            return self.file.open()
        except OSError as error:
            raise Unreachable(
                f"cannot open {self.label}: {_reason(error)}; mend that and run the command again, "
                "which goes on"
            ) from None

    @abstractmethod
    def _opened(self, file: BinaryIO) -> Any:
        """What reads from the file."""

    @abstractmethod
    def _listed(self) -> tuple[str, ...]: ...

    @abstractmethod
    def _read(self, name: str) -> bytes: ...


class Zip(Archive):
    """A ``.zip``."""

    def _opened(self, file: BinaryIO) -> zipfile.ZipFile:
        return zipfile.ZipFile(file)

    def _listed(self) -> tuple[str, ...]:
        self._members: dict[str, zipfile.ZipInfo] = {}
        with self._reader() as reader:
            for info in reader.infolist():
                if info.flag_bits & 1:
                    raise InputError(f"{self.label} is protected by a password; unpack it yourself")
                if not info.is_dir():
                    self._members[inside_of(self.label, info.filename)] = info
        return tuple(self._members)

    def _read(self, name: str) -> bytes:
        _check_size(self._members[name].file_size)
        with self._reader() as reader:
            content: bytes = reader.read(self._members[name])
            return content


class Tar(Archive):
    """An uncompressed ``.tar``; a WebDataset's shard is one.

    One that lies elsewhere is read once from its beginning to its end, to list it.
    """

    def _opened(self, file: BinaryIO) -> BinaryIO:
        return file

    def _listed(self) -> tuple[str, ...]:
        # Where each file begins, and its size.
        self._places: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        mode: Literal["r:", "r|"] = "r:" if self.file.near else "r|"
        with (
            self._file() as stream,
            tarfile.open(fileobj=stream, mode=mode, bufsize=CHUNK) as members,
        ):
            for member in members:
                if member.isdir():
                    continue
                name = inside_of(self.label, member.name)
                if member.isfile():
                    self._places[name] = (member.offset_data, member.size)
                elif member.islnk():
                    links[name] = member.linkname
                elif member.issym():
                    links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
        lost = 0
        # In the order of the archive, so that links to links find theirs.
        for name, target in links.items():
            place = self._places.get(posixpath.normpath(target))
            if place is None:
                lost += 1
            else:
                self._places[name] = place
        if lost:
            log.warning("%s: left out %d links to what is not in it", self.label, lost)
        if max((sum(place) for place in self._places.values()), default=0) > self.file.size:
            raise InputError(f"{self.label} ends in the middle of a file; copy it again")
        return tuple(self._places)

    def _read(self, name: str) -> bytes:
        start, size = self._places[name]
        _check_size(size)
        # Of its own, so that threads read at once.
        with self._file() as file:
            file.seek(start)
            return file.read(size)


def fingerprint_of(files: Sequence[File], names: tuple[str, ...]) -> str:
    """SHA-256 of the sizes and times of last change of archives, and of some of their names."""
    digest = hashlib.sha256("".join(f"{file.stamp}\n" for file in files).encode())
    digest.update("\n".join(names).encode())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split()).rstrip(".")


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
