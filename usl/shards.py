"""Parts of a long result, kept until the whole is safe, so that a killed run goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from usl.artifacts import load_array, save_array, save_text
from usl.errors import InputError

log = logging.getLogger("usl")


class Shards:
    """Numbered parts in a folder, each of some arrays.

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
        self.folder = folder
        made_from = folder / "source.json"
        wanted = json.dumps(source | {"rows": list(sizes)}, sort_keys=True)
        if made_from.exists() and made_from.read_text(encoding="utf-8") == wanted:
            done = len(list(folder.glob("[0-9]*-0.npy")))
            log.info("%s: %d of %d shards are there already", what, done, len(sizes))
            return
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from None
        save_text(made_from, wanted)

    def has(self, number: int) -> bool:
        """Whether a part is there."""
        # The first array is written last.
        return self._path(number, 0).exists()

    def load(self, number: int) -> list[np.ndarray]:
        """The arrays of a part that is there."""
        paths = sorted(self.folder.glob(f"{number:05}-*.npy"))
        return [np.array(load_array(path)) for path in paths]

    def save(self, number: int, arrays: Sequence[np.ndarray]) -> None:
        """Keep the arrays of a part."""
        for place, array in reversed(list(enumerate(arrays))):
            save_array(self._path(number, place), array)

    def _path(self, number: int, place: int) -> Path:
        return self.folder / f"{number:05}-{place}.npy"
