"""Image files inside a zip or tar archive, read where they lie."""

from __future__ import annotations

import os
import tarfile
import threading
import zipfile
from pathlib import Path

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
        Unreadable, compressed as a whole, or protected by a password.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        # Where each file of a tar begins.
        self._starts: dict[str, int] = {}
        try:
            if path.suffix.lower() == ".zip":
                self._zip = zipfile.ZipFile(path)
                for info in self._zip.infolist():
                    if info.flag_bits & 1:
                        raise InputError(f"{path} is protected by a password; unpack it yourself")
                    if not info.is_dir():
                        self._sizes[info.filename] = info.file_size
            else:
                with tarfile.open(path, "r:") as members:
                    for member in members:
                        if member.isfile():
                            self._sizes[member.name] = member.size
                            self._starts[member.name] = member.offset_data
                self._file = path.open("rb")
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot read {path}: {reason}; give a .zip or an uncompressed .tar"
            ) from None
        self.names = tuple(self._sizes)

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
                return self._zip.read(name)
        except Exception as error:  # zlib and zipfile raise errors of any kind on damaged files
            raise InputError(f"cannot read {self.path}/{name}: {error}; replace it") from None
