"""The engine of one machine, and what every engine has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

# Rows of a task: of neighbours seconds and more, so that starting it is nothing.
ROWS = 1 << 18
# Up to so many rows one task for all is faster.
MANY = 1 << 20


class Local:
    """Runs tasks in this process, one after the other; threads are theirs.

    A task is a function of a module with arguments that depend on nothing else, so that it may run
    anywhere, and again. It must not change its arguments. Results are the same bits wherever it
    runs: how rows are cut into tasks is the engine's to choose.
    """

    def __str__(self) -> str:
        return "this machine"

    def device(self, wanted: str | torch.device) -> str | torch.device:
        """Where tensors are, of those who want them there."""
        return wanted

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

    def cut(self, n: int) -> list[tuple[int, int]]:
        """(start, stop) of the rows of each task, of n rows; here all of them, unless many."""
        step = max(n, 1) if n <= MANY else ROWS
        return [(start, min(start + step, n)) for start in range(0, max(n, 1), step)]


LOCAL = Local()
