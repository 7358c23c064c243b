"""Exact squared distances to one point, or of each point to one of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from usl.geometry import jit
from usl.geometry.points import SCRATCH, blocks, squared_distances

# Elements that a thread takes at a time.
SHARE = 4 * SCRATCH


def distances_to(rows: Tensor, target: Tensor) -> Tensor:
    """Exact squared distances of rows (N, D) to one point (D,), (N,), float64, on the CPU."""
    return distances_to_own(rows, target[None], torch.zeros(len(rows), dtype=torch.int64))


def distances_to_own(rows: Tensor, targets: Tensor, own: Tensor) -> Tensor:
    """Exact squared distance of each row to the target that is its own.

    Parameters
    ----------
    rows : Tensor (N, D), float32 or float64, on the CPU
    targets : Tensor (C, D), on the CPU
    own : Tensor (N,), int64
        A row of ``targets`` for each.

    Returns
    -------
    Tensor (N,), float64, with the bits of :func:`squared_distances`
    """
    found = torch.empty(len(rows), dtype=torch.float64)
    if not jit.works():
        for start, stop in blocks(len(rows), max(1, SCRATCH // rows.shape[1])):
            found[start:stop] = squared_distances(rows[start:stop], targets[own[start:stop]])
        return found
    from usl.geometry import kernels

    exact = targets.double().contiguous().numpy()

    def some(block: tuple[int, int]) -> None:
        inside = slice(*block)
        part = rows[inside].contiguous().numpy()
        kernels.distances_to_own(part, exact, own[inside].numpy(), found[inside].numpy())

    with jit.threads() as pool:
        list(pool.map(some, blocks(len(rows), max(1, SHARE // rows.shape[1]))))
    return found
