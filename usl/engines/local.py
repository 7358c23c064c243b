"""The engine of one machine, and what every engine has to offer."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from usl.errors import InputError

# Items that are loaded before they are wanted.
AHEAD = 2
# Rows of a task: of neighbours seconds and more, so that starting it is nothing.
ROWS = 1 << 18
# Up to so many rows one task for all is faster.
MANY = 1 << 20
# An array larger than one of so many parts of the memory lies in a file: there are a few of them,
# and what is read of files needs room, too.
SHARES = 16


class Encode(Protocol):
    """Makes features of what was loaded, on the device that it was moved to."""

    def to(self, device: torch.device | str) -> None:
        """Move there what it needs."""

    def ready(self, batch: Any, device: torch.device | str) -> Any:
        """What was loaded, where the device fetches it fastest."""

    def __call__(self, batch: Any, device: torch.device | str) -> Tensor:
        """Features of a batch."""


def ahead(load: Callable[[Any], Any], items: Sequence[Any]) -> Generator[Any, None, None]:
    """``load`` each item in turn, two ahead of the caller, in a thread."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(load, item) for item in items[:AHEAD])
        for item in items[AHEAD:]:
            waiting.append(pool.submit(load, item))
            yield waiting.popleft().result()
        for last in waiting:
            yield last.result()
    finally:
        pool.shutdown(cancel_futures=True)


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor, without a copy; also one that is mapped or shared, and so read-only."""
    with warnings.catch_warnings():
        # Whoever takes it writes to none of its inputs.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def cuts(n: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of parts of n rows, each of ``size`` rows but the last; one of no rows."""
    step = max(size, 1)
    return [(start, min(start + step, n)) for start in range(0, max(n, 1), step)]


def mapped(size: int, folder: Path) -> Tensor:
    """So many bytes, uint8, of a file in a folder, all 0; it has no name, and goes with them.

    Raises
    ------
    InputError
        There is no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                # In a file with holes a full disk would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
    except OSError as error:
        raise InputError(
            f"cannot keep {size / 1e9:.1f} GB in {folder}: {error.strerror}; make room there, or "
            "give more `memory`"
        ) from None


class Local:
    """Runs tasks in this process, one after the other; threads are theirs.

    A task is a function of a module with arguments that depend on nothing else, so that it may run
    anywhere, and again. It must not change its arguments. Results are the same bits wherever it
    runs: how rows are cut into tasks is the engine's to choose.

    Parameters
    ----------
    memory : int, optional
        Bytes for arrays that grow with the number of images; default as many as there are.
    folder : Path, optional
        Where arrays lie that are too large for that.

    Attributes
    ----------
    share : int or None
        Bytes that one array may take of the memory.
    """

    # Of a task that loads images; 0: as many as the data set says.
    threads = 0

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        self.memory, self.share = memory, None if memory is None else memory // SHARES
        self.folder = folder

    def spills(self, size: int) -> bool:
        """Whether an array of so many bytes lies in a file."""
        return self.share is not None and size > self.share

    def zeros(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Zeros in memory, or in a file that the system maps and that goes with them."""
        size = prod(shape) * dtype.itemsize
        if not self.spills(size):
            return torch.zeros(shape, dtype=dtype)
        return mapped(size, self.folder or Path(tempfile.gettempdir())).view(dtype).view(shape)

    def __str__(self) -> str:
        return "this machine"

    def device(self, wanted: str | torch.device) -> str | torch.device:
        """Where tensors are, of those who want them there; bounded memory is that of the CPU."""
        return wanted if self.memory is None else "cpu"

    def put(self, value: Any) -> Any:
        """What stands for a value among the arguments of many tasks; here itself."""
        return value

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a task; what stands for its result among the arguments of others, here itself."""
        return function(*arguments)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """The results of a function for the arguments of each task, in the order of the tasks."""
        for arguments in tasks:
            yield function(*arguments)

    def pipeline(
        self,
        load: Callable[[Any], Any],
        encode: Encode,
        items: Sequence[Any],
        device: str | torch.device,
    ) -> Generator[Tensor, None, None]:
        """Load each item and encode what was loaded, in the order of the items.

        Parameters
        ----------
        load : callable
            Decodes an item, on the CPU; the next ones while those before are encoded.
        encode : Encode
            Makes features of it.
        items : sequence
        device : str or torch.device
            Where, if not elsewhere.
        """
        encode.to(device)

        def ready(item: Any) -> Any:
            return encode.ready(load(item), device)

        with closing(ahead(ready, items)) as loaded:
            for batch in loaded:
                yield encode(batch, device)

    def cut(self, n: int) -> list[tuple[int, int]]:
        """(start, stop) of the rows of each task, of n rows; here all of them."""
        return [(0, n)]

    def steps(self, n: int) -> list[tuple[int, int]]:
        """The same for what takes long, so that it can go on where it was stopped."""
        return cuts(n, n if n <= MANY else ROWS)


LOCAL = Local()
