"""Image files inside a zip or tar archive, read where they lie."""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
import zipfile
from pathlib import Path, PurePosixPath

from usl.errors import InputError

SUFFIXES = (".zip", ".tar")
# Larger members are no pictures, but something that would fill the memory.
LARGEST = 1 << 30


class Archive:
    """Files of a ``.zip`` or an uncompressed ``.tar``, such as a WebDataset shard.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    names : tuple of str
        Of its files, in the order of the archive.

    Raises
    ------
    InputError
        Unreadable, cut off, compressed as a whole, protected by a password, or with a file whose
        name leads out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        # Where each file of a tar begins; what each of a zip is called in it.
        self._starts: dict[str, int] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            if path.suffix.lower() == ".zip":
                self._zip = zipfile.ZipFile(path)
                for info in self._zip.infolist():
                    if info.flag_bits & 1:
                        raise InputError(f"{path} is protected by a password; unpack it yourself")
                    if not info.is_dir():
                        name = inside_of(self.path, info.filename)
                        self._sizes[name], self._members[name] = info.file_size, info
            else:
                with tarfile.open(path, "r:") as members:
                    for member in members:
                        if member.isfile():
                            name = inside_of(self.path, member.name)
                            self._sizes[name], self._starts[name] = member.size, member.offset_data
                self._file = path.open("rb")
                ends = [start + self._sizes[name] for name, start in self._starts.items()]
                if max(ends, default=0) > path.stat().st_size:
                    raise InputError(f"{path} ends in the middle of a file; copy it again")
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot read {path}: {reason}; give a .zip or an uncompressed .tar"
            ) from None
        self.names = tuple(self._sizes)

    def __reduce__(self) -> tuple[type[Archive], tuple[Path]]:
        # On another machine it is opened anew.
        return Archive, (self.path,)

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """SHA-256 of the archive's size and time of last change, and of some of its names."""
        found = os.stat(self.path)
        digest = hashlib.sha256(f"{found.st_size}\0{found.st_mtime_ns}\n".encode())
        digest.update("\n".join(names).encode())
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """The bytes of a file; from any thread.

        Raises
        ------
        InputError
            Damaged, or larger than a gibibyte.
        """
        size = self._sizes[name]
        if size > LARGEST:
            raise InputError(f"cannot read {self.path}/{name}: it has {size:,} bytes; leave it out")
        try:
            if name in self._starts:
                return os.pread(self._file.fileno(), size, self._starts[name])
            with self._lock:
                return self._zip.read(self._members[name])
        except Exception as error:  # zlib and zipfile raise errors of any kind on damaged files
            raise InputError(f"cannot read {self.path}/{name}: {error}; replace it") from None


def inside_of(place: Path | str, name: str) -> str:
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
