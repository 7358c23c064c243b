"""Archives by their suffixes, and many of them as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

from tqdm import tqdm

from usl.data.archive import Archive, File, Tar, Zip, fingerprint_of
from usl.data.parquet import Parquet

# Seconds after which progress is shown.
SLOW = 2.0
# Archives that are listed at a time.
TOGETHER = 16
# Archives that stay open.
OPEN = 4
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
            shown = tqdm(found, "archives", len(files), unit="archive", delay=SLOW, disable=None)
            self._archives = dict(zip(files, shown, strict=True))
        self._start()
        self.names = tuple(
            f"{name}/{inside}"
            for name, archive in self._archives.items()
            for inside in archive.names
        )

    def read(self, name: str) -> bytes:
        """See :class:`Source`."""
        archive, inside = self._split(name)
        with self._lock:
            self._recent[archive] = self._recent.pop(archive, None)
            old = next(iter(self._recent)) if len(self._recent) > OPEN else None
            if old is not None:
                del self._recent[old]
        if old is not None:
            self._archives[old].close()
        return self._archives[archive].read(inside)

    def _start(self) -> None:
        self._lock = threading.Lock()
        # Those that may be open, the oldest first.
        self._recent: dict[str, None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {n: value for n, value in vars(self).items() if n not in ("_lock", "_recent")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

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
