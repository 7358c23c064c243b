"""Candidates for neighbours by faiss, on a CPU.

Douze et al., "The Faiss library", 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.neighbors.proposal import Proposal, listed, width_for
from usl.geometry.points import Points

# Rows of one proposal.
HANDED_OVER = 16384


def check() -> Any:
    """The module; InputError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise InputError("`backend` faiss is not installed: pip install faiss-cpu") from None
    return faiss


def propose(
    points: Points, k: int, memory: int, start: int, stop: int, *, quiet: bool = False
) -> Iterator[Proposal]:
    """The points with the smallest float32 distances, a few more than k.

    Parameters
    ----------
    points : Points, on the CPU
    k : int
    memory : int
        Not used: faiss has its own blocks.
    start, stop : int
        The points to find candidates for.
    quiet : bool
        Show no progress.

    Notes
    -----
    Values are ``‖a‖² + ‖b‖² - 2 a·b`` in float32, with the error of ``points.bound``.
    """
    faiss, fast = check(), points.fast.numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())
    parts = torch.split(torch.arange(start, stop), HANDED_OVER)
    for some in tqdm(parts, desc="neighbours", unit="block", disable=quiet or None):
        values, indices = faiss.knn(fast[some.numpy()], fast, width_for(k, len(points)))
        yield listed(points, some, torch.from_numpy(values), torch.from_numpy(indices))
