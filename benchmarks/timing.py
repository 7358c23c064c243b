"""The clock of the benchmarks."""

import statistics
import time
from collections.abc import Callable

import torch


def rates(
    *works: Callable[[], object], images: int, device: torch.device, rounds: int = 5
) -> list[float]:
    """Images per second of each rival, the median of its calls.

    The rivals take turns, so that what else the machine does hits all of them; the first two
    rounds do not count.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 2):
        for spent, work in zip(seconds, works, strict=True):
            begin = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - begin)
    return [images / statistics.median(spent[2:]) for spent in seconds]
