"""Parts and states of a long computation, kept until its result is safe: a killed run goes on."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from usl.artifacts import fingerprint, load_array, save_array, save_text
from usl.engines.local import Local
from usl.errors import InputError

log = logging.getLogger("usl")

# Seconds between two states that are kept.
SAVE_EVERY = 60.0


class Parts:
    """Numbered parts in a folder, each of some arrays, with their fingerprints.

    Parameters
    ----------
    folder : Path
        It is made, or emptied where its parts are of another source.
    source : dict
        All that the parts depend on.
    what : str
        They are, for the log.

    Raises
    ------
    InputError
        The folder cannot be written.
    """

    def __init__(self, folder: Path, source: dict[str, Any], what: str) -> None:
        self.folder, self.what = folder, what
        made_from, wanted = folder / "source.json", json.dumps(source, sort_keys=True)
        if made_from.exists() and made_from.read_text(encoding="utf-8") == wanted:
            return
        try:
            remove(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from None
        save_text(made_from, wanted)

    @property
    def there(self) -> list[int]:
        """Numbers of the parts that are there, ascending, or were."""
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.json"))

    def has(self, number: int) -> bool:
        """Whether a part is there, as it was written."""
        manifest = self._manifest(number)
        if not manifest.exists():
            return False
        try:
            wanted = json.loads(manifest.read_text(encoding="utf-8"))
            if [fingerprint(array) for array in self._arrays(number, len(wanted))] == wanted:
                return True
        except (InputError, OSError, ValueError, TypeError):
            # Whatever it is, it is not as it was written.
            pass
        log.warning(
            "%s: shard %d is missing or has changed, and is computed again", self.what, number
        )
        manifest.unlink()
        return False

    def load(self, number: int) -> list[np.ndarray]:
        """The arrays of a part that is there."""
        wanted = json.loads(self._manifest(number).read_text(encoding="utf-8"))
        return [np.array(array) for array in self._arrays(number, len(wanted))]

    def save(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Keep the arrays of a part."""
        for place, array in enumerate(arrays):
            save_array(self.folder / f"{number:05}-{place}.npy", array)
        # It is there once its fingerprints are.
        save_text(self._manifest(number), json.dumps([fingerprint(array) for array in arrays]))

    def _arrays(self, number: int, count: int) -> list[np.ndarray]:
        return [
            load_array(self.folder / f"{number:05}-{place}.npy", kind="fiub")
            for place in range(count)
        ]

    def _manifest(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"


class Shards(Parts):
    """The parts of a long result, of so many rows each; see :class:`Parts`."""

    def __init__(
        self, folder: Path, source: dict[str, Any], sizes: Sequence[int], what: str
    ) -> None:
        super().__init__(folder, source | {"rows": list(sizes)}, what)
        if self.there:
            log.info("%s: %d of %d shards are there already", what, len(self.there), len(sizes))


def resumed(
    engine: Local,
    work: Callable[..., Any],
    tasks: Sequence[Callable[[], tuple[Any, ...]]],
    store: Shards | None,
) -> Iterator[list[np.ndarray]]:
    """The arrays that tasks give, in their order: from the store those there, else computed.

    Parameters
    ----------
    engine : Local or another engine
    work : callable
        What a task does; it returns tensors, on the CPU.
    tasks : sequence of callable
        Each gives the arguments of one.
    store : Shards, optional
        Has a part for each task.
    """
    missing = {number for number in range(len(tasks)) if store is None or not store.has(number)}
    found = engine.map(work, (tasks[number]() for number in sorted(missing)))
    for number in range(len(tasks)):
        if number not in missing:
            assert store is not None
            yield store.load(number)
            continue
        arrays = [tensor.numpy() for tensor in next(found)]
        if store is not None:
            store.save(number, arrays)
        yield arrays


class Snapshot(Parts):
    """The last state of what goes through many; see :class:`Parts`."""

    def __init__(self, folder: Path, source: dict[str, Any], what: str) -> None:
        super().__init__(folder, source, what)
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to keep another."""
        return time.monotonic() - self._saved >= SAVE_EVERY

    def last(self) -> tuple[int, list[np.ndarray]]:
        """Number and arrays of the state that was kept last; 0 and none where there is none."""
        for number in reversed(self.there):
            if self.has(number):
                return number, self.load(number)
        return 0, []

    def keep(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Keep a state instead of those before; where there is no room, go on without."""
        try:
            self.save(number, arrays)
            for old in self.there[:-1]:
                self._manifest(old).unlink()
                for path in self.folder.glob(f"{old:05}-*.npy"):
                    path.unlink()
        except (InputError, OSError) as error:
            log.warning("%s: its state is not kept: %s", self.what, error)
        self._saved = time.monotonic()


def remove(folder: Path) -> None:
    """Remove a folder of parts, if it is there; what a kill leaves of it is not used again."""
    (folder / "source.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
