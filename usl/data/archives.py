"""Archives by their suffixes, and many of them as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from usl.data.archive import Archive, File, Tar, Zip, fingerprint_of
from usl.data.parquet import Parquet

# Archives that are listed at a time.
TOGETHER = 16
FORMATS: dict[str, Callable[[File], Archive]] = {".zip": Zip, ".tar": Tar, ".parquet": Parquet}


def is_archive(name: str) -> bool:
    """Whether a file is called as archives are."""
    return PurePosixPath(name).suffix.lower() in FORMATS


def open_archive(file: File) -> Archive:
    """Open an archive by its suffix."""
    return FORMATS[PurePosixPath(file.label).suffix.lower()](file)


class Archives:
    """Archives of one place, read as one: their names come before those of their files.

    Parameters
    ----------
    label : str
        What people call the place.
    files : mapping of str to File
    """

    def __init__(self, label: str, files: Mapping[str, File]) -> None:
        self.label = label
        with ThreadPoolExecutor(TOGETHER) as pool:
            found = pool.map(open_archive, files.values())
            self._archives = dict(zip(files, found, strict=True))
        self.names = tuple(
            f"{name}/{inside}"
            for name, archive in self._archives.items()
            for inside in archive.names
        )

    def read(self, name: str) -> bytes:
        """See :class:`Source`."""
        archive, inside = self._split(name)
        return self._archives[archive].read(inside)

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """See :class:`Source`."""
        used = dict.fromkeys(self._split(name)[0] for name in names)
        return fingerprint_of([self._archives[archive].file for archive in used], names)

    def _split(self, name: str) -> tuple[str, str]:
        parts = name.split("/")
        for count in range(1, len(parts)):
            archive = "/".join(parts[:count])
            if archive in self._archives:
                return archive, "/".join(parts[count:])
        raise KeyError(name)
