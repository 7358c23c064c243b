"""Candidates for neighbours by faiss, on a CPU: all points, or those of nearby cells only.

Douze et al., "The Faiss library", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.neighbors.proposal import Proposal, listed, width_for
from usl.geometry.points import Points

# Rows of one proposal.
HANDED_OVER = 16384
# Of the cells so large a part is searched, and so many at least.
SEARCHED, LEAST = 1 / 16, 16
# There are 4 √N cells; so many points of each, at most, train them.
TRAINED_ON = 64

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def check() -> Any:
    """The module; InputError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise InputError("`backend` faiss is not installed: pip install 'usl[faiss]'") from None
    return faiss


def propose(points: Points, k: int, memory: int, start: int, stop: int) -> Iterator[Proposal]:
    """The points with the smallest float32 distances, a few more than k.

    Parameters
    ----------
    points : Points, on the CPU
    k : int
    memory : int
        Not used: faiss has its own blocks.
    start, stop : int
        The points to find candidates for.

    Notes
    -----
    Values are ``‖a‖² + ‖b‖² - 2 a·b`` in float32, with the error of ``points.bound``.
    """
    faiss, fast = check(), points.fast.numpy()
    width = width_for(k, len(points))
    rows = torch.arange(start, stop)
    yield from _proposals(points, rows, width, lambda some, width: faiss.knn(some, fast, width))


def propose_some(points: Points, k: int, memory: int, start: int, stop: int) -> Iterator[Proposal]:
    """The k nearest among the points of nearby cells (IVF): not exact.

    Parameters as for :func:`propose`. Rows for which the cells have fewer than k points are left to
    the caller.
    """
    faiss, fast = check(), points.fast.numpy()
    cells = max(1, round(4 * len(points) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.dim), points.dim, min(cells, len(points)))
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = TRAINED_ON, 1
    index.train(fast)
    index.add(fast)
    index.nprobe = max(LEAST, round(SEARCHED * index.nlist))
    for proposal in _proposals(points, torch.arange(start, stop), k, index.search):
        # What other cells hold is not asked for.
        proposal.left_out.fill_(torch.inf)
        proposal.left_out[proposal.fill < k] = -torch.inf
        yield proposal


def _proposals(points: Points, rows: Tensor, width: int, search: Search) -> Iterator[Proposal]:
    check().omp_set_num_threads(torch.get_num_threads())
    fast = points.fast.numpy()
    for some in tqdm(torch.split(rows, HANDED_OVER), desc="neighbours", unit="block", disable=None):
        values, indices = (torch.from_numpy(a) for a in search(fast[some.numpy()], width))
        yield listed(points, some, values, indices)
