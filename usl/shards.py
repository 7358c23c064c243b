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


class Shards:
    """Numbered parts in a folder, each of some arrays, with their fingerprints.

    Parameters
    ----------
    folder : Path
        It is made, or emptied where its parts are of another source.
    source : dict
        All that the parts depend on.
    sizes : sequence of int
        Rows of each part there will be.
    what : str
        They are, for the log.

    Raises
    ------
    InputError
        The folder cannot be written.
    """

    def __init__(
        self, folder: Path, source: dict[str, Any], sizes: Sequence[int], what: str
    ) -> None:
        self.folder, self.what = folder, what
        if _prepared(folder, source | {"rows": list(sizes)}):
            done = len(list(folder.glob("[0-9]*.json")))
            log.info("%s: %d of %d shards are there already", what, done, len(sizes))

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


class Snapshot:
    """The last state of what goes through many.

    Parameters
    ----------
    folder : Path
        It is made, or emptied where its state is of another source.
    source : dict
        All that the states depend on.

    Raises
    ------
    InputError
        The folder cannot be written.
    """

    def __init__(self, folder: Path, source: dict[str, Any]) -> None:
        self.folder = folder
        _prepared(folder, source)
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to keep another."""
        return time.monotonic() - self._saved >= SAVE_EVERY

    def load(self) -> tuple[int, dict[str, np.ndarray]]:
        """Number and arrays of the state that was kept last; 0 and none where there is none."""
        kept = self._kept()
        if not kept:
            return 0, {}
        paths = kept[-1].glob("*.npy")
        return int(kept[-1].name), {p.stem: np.array(load_array(p, kind="fiub")) for p in paths}

    def save(self, number: int, arrays: dict[str, np.ndarray]) -> None:
        """Keep state ``number`` instead of those before."""
        before, place = self._kept(), self.folder / f"{number:06}"
        unfinished = place.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, array in arrays.items():
            save_array(unfinished / f"{name}.npy", array)
        unfinished.rename(place)
        for old in before:
            shutil.rmtree(old)
        self._saved = time.monotonic()

    def _kept(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name.isdigit())


def _prepared(folder: Path, source: dict[str, Any]) -> bool:
    """Whether a folder has what was made from this source; else it is made, or emptied."""
    made_from, wanted = folder / "source.json", json.dumps(source, sort_keys=True)
    if made_from.exists() and made_from.read_text(encoding="utf-8") == wanted:
        return True
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None
    save_text(made_from, wanted)
    return False
